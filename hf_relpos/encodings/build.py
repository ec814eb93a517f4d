"""From a ``rel_pos`` value (a name, a dict with a ``type``, or a list of these) to encodings."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .card import Card
from .catalogue import METHODS
from .encoding import Composition, Encoding, registered_encodings
from .options import EncodingOptions, Host

RelPos = str | dict[str, Any] | Sequence[str | dict[str, Any]]

assert METHODS, "importing the catalogue registers the package's methods"


def list_encodings() -> list[str]:
    """Every registered method by its config name, sorted."""
    return list(registered_encodings())


def encoding_card(name: str) -> Card:
    """Citation, formula and properties of a method; ValueError lists the valid names."""
    return encoding_class(name).card


def encoding_class(name: str) -> type[Encoding]:
    """The registered class of a ``rel_pos`` type; ValueError lists the valid ones."""
    known = registered_encodings()
    if name not in known:
        raise ValueError(f"unknown rel_pos type {name!r}; valid types: {', '.join(known)}")
    return known[name]


def parse_rel_pos(rel_pos: RelPos) -> list[tuple[type[Encoding], EncodingOptions]]:
    """The classes and options that a ``rel_pos`` value names, in order; ValueError says what is wrong with it."""
    parts = list(rel_pos) if isinstance(rel_pos, (list, tuple)) else [rel_pos]
    if not parts:
        raise ValueError("rel_pos=[] names no encoding; use {'type': 'none'} for a model without positions")
    parsed = []
    for part in parts:
        if isinstance(part, str):
            part = {"type": part}
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError(
                f"rel_pos={part!r} is not valid: give a dict such as {{'type': NAME, ...}} or a list of dicts; "
                f"valid types: {', '.join(registered_encodings())}"
            )
        cls = encoding_class(part["type"])
        parsed.append(
            (cls, cls.Options.from_dict(cls.name, {key: value for key, value in part.items() if key != "type"}))
        )
    return parsed


def build_encodings(rel_pos: RelPos, host: Host) -> list[Encoding]:
    """One freshly initialised encoding for each part of ``rel_pos``."""
    return [cls(options, host) for cls, options in parse_rel_pos(rel_pos)]


def compose(encodings: Sequence[Encoding]) -> Encoding | Composition:
    """One module for one or several encodings."""
    return encodings[0] if len(encodings) == 1 else Composition(encodings)


def build_encoding(
    rel_pos: RelPos,
    *,
    num_heads: int,
    head_dim: int,
    hidden_size: int | None = None,
    max_position_embeddings: int | None = None,
    causal: bool = False,
) -> nn.Module:
    """An encoding for attention with ``num_heads`` query heads of width ``head_dim``.

    ``rel_pos`` is a dict with a ``type`` and that method's options, a name alone, or a list of these, which composes them: terms add,
    rotations chain. ``hidden_size`` defaults to ``num_heads * head_dim``. ``causal`` says that queries see no later keys; options left
    to ``auto`` follow it. Raises ValueError for an unknown type or option, a value out of range, or options that do not fit the host.
    """
    host = Host(num_heads, head_dim, hidden_size or num_heads * head_dim, max_position_embeddings, causal)
    return compose(build_encodings(rel_pos, host))


def resolved_config(encoding: nn.Module) -> dict[str, Any] | list[dict[str, Any]]:
    """The ``rel_pos`` value, every option filled in, that builds ``encoding`` again."""
    if not isinstance(encoding, (Encoding, Composition)):
        raise TypeError(f"{type(encoding).__name__} is not an encoding")
    return encoding.config()


def legacy_encoding(position_embedding_type: str | None) -> type[Encoding] | None:
    """The encoding that transformers 4 called ``position_embedding_type``, or None."""
    for cls in registered_encodings().values():
        if (
            position_embedding_type is not None
            and cls.__dict__.get("legacy_position_embedding_type") == position_embedding_type
        ):
            return cls
    return None
