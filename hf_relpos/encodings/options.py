"""Options of an encoding: a frozen dataclass in Python, a plain dict in JSON, checked by name, type and value."""

import dataclasses
import re
import types
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Host:
    """What an encoding must know of the attention it serves."""

    num_heads: int
    head_dim: int
    hidden_size: int
    max_position_embeddings: int | None
    causal: bool
    # whether the host lends its own maps to queries and keys
    projections: bool = False
    # the width of a model's input embeddings, where it is not hidden_size
    embedding_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a positive integer")
        if self.max_position_embeddings is not None and self.max_position_embeddings < 1:
            raise ValueError(f"max_position_embeddings={self.max_position_embeddings!r} is not a positive integer")


def _matches(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_matches(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if hint is None else hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    return (
        "null"
        if hint is type(None)
        else {
            int: "an integer",
            float: "a number",
            bool: "true or false",
            list: "a list",
            dict: "a dict",
            str: "a string",
        }.get(hint, str(hint))
    )


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """Options that every encoding has.

    ``share_layers``: one set of parameters for all layers of a model (true), one for each layer (false), or as the method's
    authors do it (null). ``heads``: ``[first, last + 1]``, the query heads that it acts on, all (null) or some of them.
    """

    share_layers: bool | None = None
    heads: list | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _matches(value, hints[field.name]):
                raise ValueError(f"{field.name}={value!r} is not valid: it must be {_describe(hints[field.name])}")
        heads = self.heads
        whole = heads is None or (len(heads) == 2 and all(_matches(head, int) for head in heads))
        self.require(whole and (heads is None or 0 <= heads[0] < heads[1]), "heads", "null or [first, last + 1]")

    def require(self, condition: bool, name: str, what: str) -> None:
        """Raise a ValueError that names option ``name``, its value, and ``what`` it must be, unless ``condition`` holds."""
        if not condition:
            raise ValueError(f"{name}={getattr(self, name)!r} is not valid: it must be {what}")

    def resolve(self, host: Host) -> Self:
        """These options with everything that was left to the host filled in; raises where they do not fit it."""
        return self

    def or_host(self, name: str, host: Host, least: int = 1) -> Self:
        """These options with the host's ``max_position_embeddings`` for option ``name`` where that is null; ValueError when it is less than
        ``least`` or the host has none."""
        if getattr(self, name) is not None:
            return self
        size = host.max_position_embeddings
        if size is None or size < least:
            raise ValueError(
                f"{name}=None is not valid: the host's max_position_embeddings is {size}, so it must be given, at least {least}"
            )
        filled: dict[str, Any] = {name: size}
        return replace(self, **filled)

    @classmethod
    def from_dict(cls, name: str, given: dict[str, Any]) -> Self:
        """Options of the encoding ``name`` from a JSON dict without its ``type``; unknown keys raise, naming the valid ones."""
        valid = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in given if key not in valid]
        if unknown:
            raise ValueError(
                f"rel_pos type {name!r} has no option {unknown[0]!r}; valid options: {', '.join(sorted(valid))}"
            )
        try:
            return cls(**given)
        except ValueError as error:
            raise ValueError(f"rel_pos type {name!r}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """All options, defaults included, as JSON values; ``heads`` only where it is not all of them."""
        values = dataclasses.asdict(self)
        if self.heads is None:
            del values["heads"]
        return values


@dataclass(frozen=True, kw_only=True)
class DirectedOptions(EncodingOptions):
    """``direction`` auto = causal in a decoder, symmetric in an encoder: there ``|i - j|`` stands where the paper has ``i - j``."""

    direction: Literal["auto", "causal", "symmetric"] = "auto"

    def resolve(self, host: Host) -> Self:
        if self.direction == "auto":
            return replace(self, direction="causal" if host.causal else "symmetric")
        if self.direction == "causal" and not host.causal:
            raise ValueError(
                "direction='causal' is not valid in a bidirectional model, whose queries see later keys; valid here: auto, symmetric"
            )
        return self


def option_table(options: type[EncodingOptions]) -> list[tuple[str, Any, str]]:
    """Name, default and valid values of each option, those that every encoding has last. What an option must be is what it says when it is refused."""
    hints = get_type_hints(options)
    common = {field.name for field in dataclasses.fields(EncodingOptions)}
    rows = [
        (field.name, field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
        for field in sorted(dataclasses.fields(options), key=lambda field: field.name in common)
    ]
    return [(name, default, _valid(options, name, hints[name])) for name, default in rows]


def _valid(options: type[EncodingOptions], name: str, hint: Any) -> str:
    for wrong, kind in ((-7.0, "a number, "), (-7, "an integer, "), ([], "")):
        if not _matches(wrong, hint):
            continue
        try:
            options.from_dict("", {name: wrong})
        except ValueError as error:
            told = re.search(rf": {name}=.* is not valid: it must be (.*)", str(error), re.DOTALL)
            if told is None:
                continue
            if "null" in told[1] or "integer" in told[1]:
                kind = ""
            nullable = _matches(None, hint) and "null" not in told[1]
            return f"{'null or ' if nullable else ''}{kind}{told[1]}"
    return _describe(hint)
