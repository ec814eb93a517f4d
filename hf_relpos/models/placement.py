"""Putting encodings on the attention modules of a base model, and taking its own positions away where asked."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..encodings.build import build_encodings, compose, is_layered, layer_values, named_methods
from ..encodings.encoding import Encoding, Part
from ..encodings.options import Host
from .architectures import ArchSpec, is_causal
from .model_inputs import Entrance, before_model
from .neutral import check_absolute, drop_positions
from .routing import Site, before_attention

# how configs call the width of the input embeddings where it can differ from hidden_size
EMBEDDING_SIZES = ("embedding_size", "word_embed_proj_dim")


def host_of(config: Any, spec: ArchSpec) -> Host:
    """What encodings must know of a model with ``config``."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None:
        if hidden % heads:
            raise ValueError(f"hidden_size={hidden} is not a multiple of num_attention_heads={heads}")
        head_dim = hidden // heads
    causal = is_causal(config)
    table = getattr(config, "max_position_embeddings", None)
    embedding = next((size for name in EMBEDDING_SIZES if (size := getattr(config, name, None)) is not None), None)
    return Host(heads, head_dim, hidden, table, causal, spec.projections is not None, embedding)


@dataclass(frozen=True)
class Layout:
    """The encodings of a model: ``config``, the resolved ``rel_pos``; ``shared``, the modules that its layers share; and for each value that takes turns
    over the layers ``patterns``: what acts there in order, a number of ``shared`` or the ``rel_pos`` part of a module that each such layer has of its own.
    ``encodings``: one of each kind, to ask what it needs."""

    config: Any
    shared: list[Part]
    patterns: list[list[int | dict[str, Any]]]
    encodings: list[Encoding]


def lay_out(rel_pos: Any, host: Host, layers: int) -> Layout:
    """Which modules the ``layers`` of a model share and which each has of its own; ValueError for a bad ``rel_pos`` or more values than layers."""
    values = layer_values(rel_pos)
    if len(values) > layers:
        raise ValueError(f"rel_pos gives encodings for {len(values)} layers, but the model has {layers}")
    shared: list[Part] = []
    known: list[tuple[Any, ...]] = []
    patterns, resolved, all_encodings = [], [], []
    for value in values:
        encodings = build_encodings(value, host)
        all_encodings += encodings
        pattern: list[int | dict[str, Any]] = []
        configs = [encoding.config() for encoding in encodings]
        for number, encoding in enumerate(encodings):
            common = encoding if encoding.share_layers else encoding.take_shared_part()
            if common is not None:
                # the same encoding twice in one value is two modules; in the values of two layers it is one
                identity = (encoding.share_layers, configs[number], configs[:number].count(configs[number]))
                if identity not in known:
                    known.append(identity)
                    shared.append(common)
                pattern.append(known.index(identity))
            if not encoding.share_layers:
                pattern.append(configs[number])
        patterns.append(pattern)
        resolved.append(configs if isinstance(value, (list, tuple)) else configs[0])
    return Layout({"layers": resolved} if is_layered(rel_pos) else resolved[0], shared, patterns, all_encodings)


def place(base: nn.Module, config: Any, spec: ArchSpec) -> None:
    """Give ``base`` the encodings that ``config.rel_pos`` names and write their resolved options back to it.

    Encodings shared by all layers become ``base.relpos``; those of one layer the ``relpos`` of its attention module.
    Raises ValueError for a bad ``rel_pos`` or ``absolute``, RuntimeError when the base model has no attention module of its family.
    """
    check_absolute(config.absolute)
    host = host_of(config, spec)
    sites = [
        module for module in base.modules() if type(module).__name__ in (*spec.self_attention, *spec.cross_attention)
    ]
    if not sites:
        raise RuntimeError(f"{type(base).__name__} has no module of class {' or '.join(spec.self_attention)}")
    crossing = [
        type(module).__name__ not in spec.self_attention or bool(getattr(module, "is_cross_attention", False))
        for module in sites
    ]
    layout = lay_out(config.rel_pos, host, crossing.count(False))
    if layout.shared:
        base.relpos = compose(layout.shared)
    layer = 0
    for module, cross in zip(sites, crossing, strict=True):
        pattern = layout.patterns[layer % len(layout.patterns)]
        local = [part for part in pattern if isinstance(part, dict)]
        module._relpos_site = Site(  # type: ignore[assignment]
            base,
            cross=cross,
            causal=host.causal,
            prescaled_query=spec.prescaled_query,
            order=[None if isinstance(part, dict) else part for part in pattern],
            projections=spec.projections,
        )
        if cross:
            continue
        layer += 1
        if local:
            own = build_encodings(local, host)
            for encoding in own:
                encoding.take_shared_part()
            module.relpos = compose(own)
        module.register_forward_pre_hook(before_attention, with_kwargs=True)
    entrance: Any = base.get_submodule(spec.stack)
    entrance._relpos_entrance = Entrance(
        entrance,
        base,
        spec,
        keep=config.absolute == "keep",
        causal=host.causal,
        encodings=layout.encodings,
    )
    entrance.register_forward_pre_hook(before_model, with_kwargs=True)
    if config.absolute == "drop":
        drop_positions(base, spec)
    config.rel_pos = layout.config
    base._relpos_placed = copy.deepcopy(layout.config)  # type: ignore[assignment]


def same_encodings(left: Any, right: Any) -> bool:
    """Whether two ``rel_pos`` values name the same methods in the same places, inside others and by layer too."""
    return [_outline(value) for value in layer_values(left)] == [_outline(value) for value in layer_values(right)]


def _outline(value: Any) -> list[str]:
    return [cls.name for cls, _ in named_methods(value)]
