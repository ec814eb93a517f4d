"""Arguments of a training script: a dataclass, filled from a YAML file and from flags, the flags having the last word."""

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

ArgumentsT = TypeVar("ArgumentsT")


def parse_arguments(
    cls: type[ArgumentsT], argv: Sequence[str] | None = None, description: str | None = None
) -> ArgumentsT:
    """An instance of the dataclass ``cls`` from ``--config FILE.yaml`` and ``--key value`` flags.

    An unknown key or flag, an unreadable file or a value of the wrong type ends the program with status 2 and a message that suggests
    the nearest valid name.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(cls, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help="YAML file with any of these arguments; flags override it")
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def fail(message: str) -> NoReturn:
        parser.exit(2, f"{Path(sys.argv[0]).name}: {message}\n")

    def check(name: str, where: str) -> None:
        if name not in (*names, "config", "help", "h"):
            near = difflib.get_close_matches(name, names, n=1)
            fail(
                f"{where} {name!r} is unknown"
                + (f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(names)}")
            )

    flags: list[str] = []
    for word in given:
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            flag = flag.replace("-", "_")
            check(flag, "the flag")
            flags += [f"--{flag}", value] if equals else [f"--{flag}"]
        else:
            flags.append(word)
    defaults: list[str] = []
    if "--config" in flags:
        position = flags.index("--config")
        if position + 1 >= len(flags):
            fail("--config needs a file")
        path = Path(flags[position + 1])
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            fail(f"{path} cannot be read: {' '.join(str(error).split())}")
        if not isinstance(settings, dict):
            fail(f"{path} holds no mapping of arguments")
        for key, setting in settings.items():
            check(str(key), f"{path}: the key")
            if setting is not None:
                defaults += [f"--{key}", json.dumps(setting) if isinstance(setting, (dict, list)) else str(setting)]
    namespace = parser.parse_args(defaults + flags)
    values = {name: getattr(namespace, name) for name in names}
    try:
        return cls(**values)
    except ValueError as error:
        fail(str(error))


def as_scalars(arguments: Any) -> dict[str, Any]:
    """The arguments as numbers and texts, for trackers and cards."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in dataclasses.asdict(arguments).items()
        if value is not None
    }
