"""From a ``rel_pos`` value (a name, a dict with a ``type``, or a list of these) to encodings."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from .card import Card
from .catalogue import METHODS
from .composition import Composition
from .encoding import Encoding, Part
from .nested import NestedEncoding
from .options import EncodingOptions, Host
from .registry import encoding_class, parse_part, registered_encodings

# a name, a dict with a "type", a list of these, or {"layers": [any of these, ...]}
RelPos = str | dict[str, Any] | Sequence[str | dict[str, Any]]

assert METHODS, "importing the catalogue registers the package's methods"


def list_encodings() -> list[str]:
    """Every registered method by its config name, sorted."""
    return list(registered_encodings())


def encoding_card(name: str) -> Card:
    """Citation, formula and properties of a method; ValueError lists the valid names."""
    return encoding_class(name).card


def is_layered(rel_pos: Any) -> bool:
    """Whether a ``rel_pos`` value gives different layers different encodings: ``{"layers": [...]}``."""
    return isinstance(rel_pos, dict) and "layers" in rel_pos


def layer_values(rel_pos: Any) -> list[Any]:
    """The ``rel_pos`` value of each layer, to be repeated for as many layers as there are: one for all unless it is ``{"layers": [...]}``.

    Raises ValueError when that has other keys, is empty or is nested.
    """
    if not is_layered(rel_pos):
        return [rel_pos]
    layers = rel_pos["layers"]
    if len(rel_pos) > 1 or not isinstance(layers, (list, tuple)) or not layers or any(map(is_layered, layers)):
        raise ValueError(
            f"rel_pos={rel_pos!r} is not valid: encodings by layer are {{'layers': [A, B, ...]}}, one rel_pos value for each layer, "
            "repeated from the start when there are more layers"
        )
    return list(layers)


def parse_rel_pos(rel_pos: Any) -> list[tuple[type[Encoding], EncodingOptions]]:
    """The classes and options that a ``rel_pos`` value names, in order, layer after layer where they differ; ValueError says what is wrong with it."""
    if is_layered(rel_pos):
        return [part for value in layer_values(rel_pos) for part in parse_rel_pos(value)]
    parts = list(rel_pos) if isinstance(rel_pos, (list, tuple)) else [rel_pos]
    if not parts:
        raise ValueError("rel_pos=[] names no encoding; use {'type': 'none'} for a model without positions")
    return [parse_part(part) for part in parts]


def named_methods(rel_pos: Any) -> list[tuple[type[Encoding], EncodingOptions]]:
    """As :func:`parse_rel_pos`, each method followed by those that its options name."""
    found = []
    for cls, options in parse_rel_pos(rel_pos):
        found.append((cls, options))
        inner = getattr(options, cls.inner_option) if issubclass(cls, NestedEncoding) else None
        if inner is not None:
            found += named_methods(inner)
    return found


def fitting_value(rel_pos: Any) -> Any:
    """``rel_pos`` with the options that it leaves open set so that it can be fitted to a trained model: each layer has its own parameters, and a method
    that has none unless asked is asked."""
    if is_layered(rel_pos):
        return {"layers": [fitting_value(value) for value in layer_values(rel_pos)]}
    if isinstance(rel_pos, (list, tuple)):
        return [fitting_value(part) for part in rel_pos]
    cls, _ = parse_part(rel_pos)
    given = {"type": rel_pos} if isinstance(rel_pos, str) else rel_pos
    return {"type": cls.name, "share_layers": False, **cls.fitting_options, **given}


def build_encodings(rel_pos: RelPos, host: Host) -> list[Encoding]:
    """One freshly initialised encoding for each part of ``rel_pos``; ValueError when it differs by layer."""
    if is_layered(rel_pos):
        raise ValueError(
            "rel_pos={'layers': ...} describes a whole model; an encoding belongs to one layer: build one of its values"
        )
    return [cls(options, host) for cls, options in parse_rel_pos(rel_pos)]


def compose(encodings: Sequence[Part]) -> Part:
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
