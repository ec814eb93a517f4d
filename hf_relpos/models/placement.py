"""Putting encodings on the attention modules of a base model, and taking its own positions away where asked."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..encodings.build import build_encodings, compose, is_layered, layer_values, parse_rel_pos
from ..encodings.encoding import Composition, Encoding, Part
from ..encodings.options import Host
from .architectures import ArchSpec
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
    causal = bool(config.is_decoder) if spec.causal is None else spec.causal
    table = getattr(config, "max_position_embeddings", None)
    embedding = next((size for name in EMBEDDING_SIZES if (size := getattr(config, name, None)) is not None), None)
    return Host(heads, head_dim, hidden, table, causal, spec.projections is not None, embedding)


@dataclass(frozen=True)
class Layout:
    """The encodings of a model: ``config``, the resolved ``rel_pos``; ``shared``, the modules that its layers share; and for each value that takes turns
    over the layers ``patterns``: the numbers of the shared modules that act there and the ``rel_pos`` parts that each such layer has of its own."""

    config: Any
    shared: list[Part]
    patterns: list[tuple[tuple[int, ...], list[dict[str, Any]]]]
    encodings: list[Encoding]


def lay_out(rel_pos: Any, host: Host, layers: int) -> Layout:
    """Which modules the ``layers`` of a model share and which each has of its own; ValueError for a bad ``rel_pos`` or more values than layers."""
    values = layer_values(rel_pos)
    if len(values) > layers:
        raise ValueError(f"rel_pos gives encodings for {len(values)} layers, but the model has {layers}")
    shared: list[Part] = []
    known: list[tuple[bool, Any]] = []
    patterns, resolved, all_encodings = [], [], []
    for value in values:
        encodings = build_encodings(value, host)
        all_encodings += encodings
        numbers = []
        for encoding in encodings:
            part = encoding if encoding.share_layers else encoding.take_shared_part()
            if part is None:
                continue
            identity = (encoding.share_layers, encoding.config())
            if identity not in known:
                known.append(identity)
                shared.append(part)
            numbers.append(known.index(identity))
        patterns.append((tuple(numbers), [encoding.config() for encoding in encodings if not encoding.share_layers]))
        configs = [encoding.config() for encoding in encodings]
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
    layered = len(layout.patterns) > 1
    if layout.shared:
        base.relpos = Composition(layout.shared) if layered else compose(layout.shared)
    layer = 0
    for module, cross in zip(sites, crossing, strict=True):
        numbers, local = layout.patterns[layer % len(layout.patterns)]
        module._relpos_site = Site(  # type: ignore[assignment]
            base,
            cross=cross,
            causal=host.causal,
            prescaled_query=spec.prescaled_query,
            shared=numbers if layered else None,
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


def same_encodings(left: Any, right: Any) -> bool:
    """Whether two ``rel_pos`` values name the same methods in the same order."""
    return [cls.name for cls, _ in parse_rel_pos(left)] == [cls.name for cls, _ in parse_rel_pos(right)]
