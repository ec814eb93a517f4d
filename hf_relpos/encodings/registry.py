"""The methods by name, and what a name or a dict in ``rel_pos`` stands for."""

import re
from typing import Any

from .card import Card
from .encoding import Encoding
from .options import EncodingOptions

_REGISTRY: dict[str, type[Encoding]] = {}


def register_encoding(cls: type[Encoding]) -> type[Encoding]:
    """Class decorator: make an encoding available under its ``name``.

    Raises ValueError when the name is taken by another class or is not a lower-case identifier, TypeError when the class lacks
    a card or options.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{cls.__name__}.name={name!r} is not a lower-case identifier")
    if not isinstance(getattr(cls, "card", None), Card) or not issubclass(cls.Options, EncodingOptions):
        raise TypeError(f"{cls.__name__} needs `card` (a Card) and `Options` (a subclass of EncodingOptions)")
    taken = _REGISTRY.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the encoding name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    _REGISTRY[name] = cls
    return cls


def registered_encodings() -> dict[str, type[Encoding]]:
    """All registered encodings by name, in order of name."""
    return dict(sorted(_REGISTRY.items()))


def encoding_class(name: str) -> type[Encoding]:
    """The registered class of a ``rel_pos`` type; ValueError lists the valid ones."""
    known = registered_encodings()
    if name not in known:
        raise ValueError(f"unknown rel_pos type {name!r}; valid types: {', '.join(known)}")
    return known[name]


def parse_part(part: Any) -> tuple[type[Encoding], EncodingOptions]:
    """Class and options that a name or a dict with a ``type`` stands for; ValueError says what is wrong with it."""
    if isinstance(part, str):
        part = {"type": part}
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(
            f"rel_pos={part!r} is not valid: give a dict such as {{'type': NAME, ...}} or a list of dicts; "
            f"valid types: {', '.join(registered_encodings())}"
        )
    cls = encoding_class(part["type"])
    return cls, cls.Options.from_dict(cls.name, {key: value for key, value in part.items() if key != "type"})
