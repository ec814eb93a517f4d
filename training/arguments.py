"""Arguments of a training script: dataclasses, filled from a YAML file and from flags, the flags having the last word.

A script's arguments are one dataclass that inherits those of the common parts: ``class QAArguments(ModelArguments, DataArguments,
LoopArguments, ResultArguments)``. Each field is made by :func:`option`, whose group orders the help.
"""

import argparse
import dataclasses
import difflib
import json
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

ArgumentsT = TypeVar("ArgumentsT")

GROUPS = ("task", "data", "model", "encoding", "optimisation", "evaluation", "saving", "hub")


class _Help(str):
    """The help of a field, which knows its group: argparse takes whatever else a field's metadata hold for an option of its own."""

    group = GROUPS[0]


def option(default: Any, help: str, group: str = GROUPS[0]) -> Any:
    """A field of a dataclass of arguments, shown under ``group`` by ``--help``."""
    assert group in GROUPS, group
    text = _Help(help)
    text.group = group
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class Arguments:
    """Base of all argument dataclasses. Their ``__post_init__`` checks values and calls the next one."""

    # what a resumed run may be told otherwise than the run that it goes on from, for nothing computed depends on it
    free_to_change: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Raise ValueError that names the argument, says what is wrong and what is valid."""

    def need(self, name: str, valid: bool, what: str) -> None:
        """Raise ValueError unless ``valid``: the argument ``name`` must be ``what``."""
        if not valid:
            raise ValueError(f"{name}={getattr(self, name)!r} is not valid: it must be {what}")

    def need_at_least(self, least: int, *names: str) -> None:
        """Raise ValueError when one of the arguments ``names`` is given and less than ``least``."""
        for name in names:
            self.need(name, getattr(self, name) is None or getattr(self, name) >= least, f"at least {least}")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must be told as the run that it goes on from was."""
        free = frozenset().union(*(vars(cls).get("free_to_change", frozenset()) for cls in type(self).__mro__))
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}


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
    """Says what is wrong in one line, without the usage of all flags before it; its help has one entry a flag, in groups."""

    source = ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{Path(sys.argv[0]).name}: {self.source}{message}\n")

    def format_help(self) -> str:
        (cls,) = self.dataclass_types
        fields = {field.name: field for field in dataclasses.fields(cls)}
        kinds = get_type_hints(cls)
        width = min(shutil.get_terminal_size().columns, 120)
        lines = [
            f"usage: {self.prog} [--config FILE.yaml] [--key value ...]",
            "",
            *textwrap.wrap(self.description or "", width),
            "",
            "--config takes a YAML file with any of these arguments; flags override it.",
        ]
        for group in GROUPS:
            members = [field for field in fields.values() if _group(field) == group]
            lines += ["", f"{group}:"] if members else []
            for field in members:
                default = "" if field.default in (None, dataclasses.MISSING) else f" (default: {_shown(field.default)})"
                text = field.metadata.get("help", "") + default
                head = f"  --{field.name} {_kind(kinds[field.name])}"
                body = textwrap.wrap(text, width - 40)
                if len(head) < 39 and body:
                    lines.append(f"{head:<40}{body.pop(0)}")
                else:
                    lines.append(head)
                lines += [" " * 40 + line for line in body]
        return "\n".join(lines) + "\n"


def _group(field: Any) -> str:
    return getattr(field.metadata.get("help"), "group", GROUPS[0])


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _kind(annotation: Any) -> str:
    """How the help calls the values of a field: INT, FLOAT, TEXT, true|false."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return {int: "INT", float: "FLOAT", bool: "true|false"}.get(annotation, "TEXT")


def parse_arguments(
    cls: type[ArgumentsT], argv: Sequence[str] | None = None, description: str | None = None
) -> ArgumentsT:
    """An instance of the dataclass ``cls`` from ``--config FILE.yaml`` and ``--key value`` flags.

    An unknown key or flag, an unreadable file or a value of the wrong type ends the program with status 2 and a message that suggests
    the nearest valid name.
    """
    parser = _Parser(cls, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", help=argparse.SUPPRESS)
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


def parse_mapping(name: str, text: str | None) -> dict[str, Any]:
    """The JSON object that the argument ``name`` holds, {} of None; ValueError for anything else."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} is not valid JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={text!r} is not valid: it must be a JSON object")
    return dict(value)


def parse_numbers(name: str, text: str | None) -> list[int]:
    """The numbers of tokens that the argument ``name`` lists with commas between them, [] of None; ValueError for anything else."""
    try:
        return [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{name}={text!r} is not valid: give numbers of tokens, such as 256,1024") from None
