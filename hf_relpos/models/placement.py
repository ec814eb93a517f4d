"""Putting encodings on the attention modules of a base model, and taking its own positions away where asked."""

from typing import Any

from torch import nn

from ..encodings.build import build_encodings, compose, parse_rel_pos
from ..encodings.options import Host
from .architectures import ArchSpec
from .model_inputs import Entrance, before_model
from .neutral import drop_positions
from .routing import Site, before_attention

ABSOLUTE = ("keep", "drop")


def check_absolute(absolute: Any) -> None:
    """Raise ValueError unless ``absolute`` is "keep" or "drop"."""
    if absolute not in ABSOLUTE:
        raise ValueError(f"absolute={absolute!r} is not valid; valid: {', '.join(map(repr, ABSOLUTE))}")


def host_of(config: Any, spec: ArchSpec) -> Host:
    """What encodings must know of a model with ``config``."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None:
        if hidden % heads:
            raise ValueError(f"hidden_size={hidden} is not a multiple of num_attention_heads={heads}")
        head_dim = hidden // heads
    causal = bool(config.is_decoder) if spec.causal is None else spec.causal
    return Host(heads, head_dim, hidden, getattr(config, "max_position_embeddings", None), causal)


def place(base: nn.Module, config: Any, spec: ArchSpec) -> None:
    """Give ``base`` the encodings that ``config.rel_pos`` names and write their resolved options back to it.

    Encodings shared by all layers become ``base.relpos``; those of one layer the ``relpos`` of its attention module.
    Raises ValueError for a bad ``rel_pos`` or ``absolute``, RuntimeError when the base model has no attention module of its family.
    """
    check_absolute(config.absolute)
    host = host_of(config, spec)
    encodings = build_encodings(config.rel_pos, host)
    sites = [
        module for module in base.modules() if type(module).__name__ in (*spec.self_attention, *spec.cross_attention)
    ]
    if not sites:
        raise RuntimeError(f"{type(base).__name__} has no module of class {' or '.join(spec.self_attention)}")
    shared = [encoding for encoding in encodings if encoding.share_layers]
    local = [encoding.config() for encoding in encodings if not encoding.share_layers]
    if shared:
        base.relpos = compose(shared)
    for module in sites:
        cross = type(module).__name__ not in spec.self_attention or bool(getattr(module, "is_cross_attention", False))
        module._relpos_site = Site(base, cross=cross, causal=host.causal, prescaled_query=spec.prescaled_query)  # type: ignore[assignment]
        if cross:
            continue
        if local:
            module.relpos = compose(build_encodings(local, host))
        module.register_forward_pre_hook(before_attention, with_kwargs=True)
    entrance: Any = base.get_submodule(spec.stack)
    entrance._relpos_entrance = Entrance(entrance, spec, keep=config.absolute == "keep", causal=host.causal)
    # what they add to the input has no parameters, so these copies serve as well as the placed ones
    entrance._relpos_input_encodings = [encoding for encoding in encodings if encoding.adds_to_input]
    entrance.register_forward_pre_hook(before_model, with_kwargs=True)
    if config.absolute == "drop":
        drop_positions(base, spec)
    resolved = [encoding.config() for encoding in encodings]
    config.rel_pos = resolved if isinstance(config.rel_pos, (list, tuple)) else resolved[0]


def same_encodings(left: Any, right: Any) -> bool:
    """Whether two ``rel_pos`` values name the same methods in the same order."""
    return [cls.name for cls, _ in parse_rel_pos(left)] == [cls.name for cls, _ in parse_rel_pos(right)]
