"""Arguments of a training script: a dataclass, filled from a YAML file and from flags, the flags having the last word."""

import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

ArgumentsT = TypeVar("ArgumentsT")


class _Loader(yaml.SafeLoader):
    """YAML whose only truth values are ``true`` and ``false``, as in version 1.2: ``mixed_precision: no`` means the word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


class _Parser(HfArgumentParser):
    """Says what is wrong in one line, without the usage of all flags before it."""

    source = ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{Path(sys.argv[0]).name}: {self.source}{message}\n")


def parse_arguments(
    cls: type[ArgumentsT], argv: Sequence[str] | None = None, description: str | None = None
) -> ArgumentsT:
    """An instance of the dataclass ``cls`` from ``--config FILE.yaml`` and ``--key value`` flags.

    An unknown key or flag, an unreadable file or a value of the wrong type ends the program with status 2 and a message that suggests
    the nearest valid name.
    """
    parser = _Parser(cls, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file with any of these arguments; flags override it")
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    # argparse knows --no_NAME too, of what is true unless given
    known = [*names, *(f"no_{field.name}" for field in fields if field.default is True), "config", "help"]

    def check(name: str, valid: Sequence[str], what: str) -> None:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(names)}"
            parser.error(f"{what} {name!r} is unknown; {hint}")

    flags: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            flag = flag.replace("-", "_")
            check(flag, known, "the flag")
            word = f"--{flag}{equals}{value}"
        flags.append(word)
    given = parser.parse_args(flags)
    defaults: list[str] = []
    if given.config is not None:
        parser.source = f"{given.config}: "
        for key, value in _settings(parser, Path(given.config)).items():
            check(str(key), names, "the key")
            if value is not None:
                defaults.append(f"--{key}={json.dumps(value) if isinstance(value, (dict, list)) else value}")
        parser.parse_args(defaults)
        parser.source = ""
    namespace = parser.parse_args(defaults + flags)
    try:
        return cls(**{name: getattr(namespace, name) for name in names})
    except ValueError as error:
        parser.error(str(error))


def _settings(parser: _Parser, path: Path) -> dict[Any, Any]:
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"it cannot be read: {' '.join(str(error).split())}")
    if settings is not None and not isinstance(settings, dict):
        parser.error("it holds no mapping of arguments")
    return settings or {}


def as_scalars(arguments: Any) -> dict[str, Any]:
    """The arguments as numbers and texts, for trackers and cards."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in dataclasses.asdict(arguments).items()
        if value is not None
    }
