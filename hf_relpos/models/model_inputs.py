"""What happens once at the entrance of a base model, before its forward."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

from ..encodings.encoding import Encoding
from ..encodings.inputs import OncePerForward, Tokens
from .architectures import ArchSpec
from .compact_mask import CompactMask
from .key_memory import remembered


@dataclass(frozen=True)
class Given:
    """What the entrance of a model passes on to all its attention modules, for the encodings that need it.

    ``weights``: attention weights are asked for. ``index`` ``[B|1, T]``: the place of each new token in its own text. ``has_cache``: there
    may be keys besides the new ones. ``tokens``: what the new tokens bring along, hidden states excepted. ``relation_ids`` ``[B, T, Tk]``. ``seed``: drawn once
    for the forward. ``masks_are_ours``: the caller gave no mask by query and key, so that all masks are made by our mask function. ``documents`` ``[B, T]``:
    the packed text of each token, where no mask tells. ``forward``: what layers compute once for all of them.
    """

    weights: bool = False
    index: Tensor | None = None
    has_cache: bool = False
    tokens: Tokens = field(default_factory=Tokens)
    relation_ids: Tensor | None = None
    seed: int | None = None
    masks_are_ours: bool = False
    documents: Tensor | None = None
    forward: OncePerForward | None = None


def is_tracing() -> bool:
    """Whether a graph is being made, in which tensors have no values to look at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class Entrance:
    """State of :func:`before_model` on a base model or the stack in it.

    ``owner`` is the base model; ``keep``: its own table of positions is kept; ``encodings``: copies of all that it has, to ask what they need.
    Raises ValueError when absolute positions are to be drawn at random that the model does not have.
    """

    def __init__(
        self, stack: nn.Module, owner: nn.Module, spec: ArchSpec, *, keep: bool, causal: bool, encodings: list[Encoding]
    ):
        self.owner = owner
        self.spec = spec
        self.keep = keep
        self.causal = causal
        self.needs: frozenset[str] = frozenset().union(*(encoding.needs for encoding in encodings))
        self.names = tuple(inspect.signature(type(stack).forward).parameters)[1:]
        # what one layer's encoding adds to the input has no parameters, so the copy serves as well as the placed one
        copies = {str(e.config()): e for e in encodings if e.adds_to_input and not e.share_layers}
        self.local_input_encodings = list(copies.values())
        drawn = [kind for encoding in encodings if (kind := encoding.random_absolute) is not None]
        if len(set(drawn)) > 1:
            raise ValueError(f"rel_pos draws absolute positions in different ways: {' and '.join(sorted(set(drawn)))}")
        self.random_absolute = drawn[0] if drawn else None
        self.reads_segments = any("segment_ids" in encoding.needs for encoding in encodings)
        if self.random_absolute and (not keep or spec.native != "table" or "position_ids" not in self.names):
            raise ValueError(
                f"rel_pos draws absolute positions at random (absolute={self.random_absolute!r}), which takes a model with a table of "
                f"them, absolute='keep', and position_ids among its arguments"
            )

    def input_encodings(self) -> list[Any]:
        """All encodings that add to the input, those shared by layers as the model holds them now: PEFT and others replace modules by wrappers."""
        common = getattr(self.owner, "relpos", None)
        shared: list[Any] = [] if common is None else list(getattr(common, "members", [common]))
        return [part for part in shared if getattr(part, "adds_to_input", False)] + self.local_input_encodings


def before_model(
    base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of a base model.

    Refuses sequences longer than a kept table, separates packed sequences (some hosts do so, some do not), adds what
    encodings add to the input, and passes on to attention what encodings need and a wish for attention weights, which not every
    host does. ``segment_ids`` (the host's ``token_type_ids`` unless given) and ``relation_ids`` are arguments of our models.
    """
    entrance: Entrance = base._relpos_entrance  # type: ignore[assignment]
    kwargs = {**dict(zip(entrance.names, args, strict=False)), **kwargs}
    relation_ids, segment_ids = kwargs.pop("relation_ids", None), kwargs.pop("segment_ids", None)
    config: Any = base.config
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        return (), kwargs
    batch, length = tokens.shape[:2]
    past = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    offset = 0 if past is None else past.get_seq_length()
    if entrance.keep and entrance.spec.native == "table" and kwargs.get("position_ids") is None:
        _check_length(config, entrance.spec, length, offset)
    index = _text_index(kwargs, length, offset, tokens.device, entrance.spec.reserved_positions is not None)
    segment_ids = _segments(segment_ids, kwargs.get("token_type_ids"), entrance, batch, length)
    mask, documents = kwargs.get("attention_mask"), None
    masks_are_ours = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
    if past is None and mask is None and isinstance(kwargs.get("position_ids"), Tensor):
        documents = _documents(kwargs["position_ids"])
        if documents is not None:
            documents = documents.expand(batch, -1)
            # hosts must not look for packed texts themselves, and make a mask of them
            if is_tracing():
                kwargs["attention_mask"] = torch.ones_like(documents)
            else:
                kwargs["attention_mask"], documents = _apart(documents, entrance.causal), None
    ids = kwargs.get("input_ids") if "input_ids" in entrance.needs else None
    given_tokens = Tokens(None, segment_ids, ids, offset)
    kwargs["relpos_given"] = Given(
        weights=bool(kwargs.get("output_attentions", getattr(config, "output_attentions", False))),
        index=index if "index" in entrance.needs else None,
        has_cache=past is not None,
        tokens=given_tokens,
        relation_ids=_relations(relation_ids, entrance, batch, length),
        seed=int(torch.randint(2**31, ())) if "seed" in entrance.needs and base.training else None,
        masks_are_ours=masks_are_ours,
        documents=documents,
        # a graph shares equal parts by itself
        forward=None if is_tracing() else OncePerForward(),
    )
    if entrance.random_absolute is not None and base.training and past is None and kwargs.get("position_ids") is None:
        kwargs["position_ids"] = _draw_absolute(config, entrance, index, length)
        if kwargs.get("attention_mask") is None:
            # hosts take gaps between positions for the borders of packed texts unless they see a mask
            kwargs["attention_mask"] = torch.ones(batch, length, dtype=torch.long, device=tokens.device)
    _add_input_terms(base, kwargs, entrance, given_tokens, past, index)
    return (), kwargs


def table_length(config: Any, spec: ArchSpec) -> tuple[int, int]:
    """How many absolute positions tokens can have, and the first of them."""
    first = 0 if spec.reserved_positions is None else getattr(config, spec.reserved_positions) + 1
    return config.max_position_embeddings - first, first


def _draw_absolute(config: Any, entrance: Entrance, index: Tensor, length: int) -> Tensor:
    """Absolute positions of the tokens at ``index`` ``[B|1, T]`` of their texts: from a random start, or sorted random ones."""
    limit, first = table_length(config, entrance.spec)
    if entrance.random_absolute == "offset":
        return index + first + int(torch.randint(limit - length + 1, ()))
    return torch.randperm(limit)[:length].sort().values.to(index.device)[index] + first


def example_inputs(base: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """The arguments beyond ``input_ids`` ``[B, T]`` without which a model would refuse them, filled with zeros."""
    entrance: Any = next(
        module for module in base.modules() if isinstance(getattr(module, "_relpos_entrance", None), Entrance)
    )
    if "relation_ids" not in entrance._relpos_entrance.needs:
        return {}
    batch, length = input_ids.shape
    return {"relation_ids": torch.zeros(batch, length, length, dtype=torch.long, device=input_ids.device)}


def _relations(relation_ids: Tensor | None, entrance: Entrance, batch: int, length: int) -> Tensor | None:
    if "relation_ids" not in entrance.needs:
        if relation_ids is not None:
            raise ValueError("relation_ids are given, but no encoding of this model reads them")
        return None
    if relation_ids is None:
        raise ValueError(
            f"this model needs relation_ids, an integer for each pair of query and key: [{batch}, {length}, number of keys]"
        )
    if not isinstance(relation_ids, Tensor) or not _holds_integers(relation_ids):
        kind = relation_ids.dtype if isinstance(relation_ids, Tensor) else type(relation_ids).__name__
        raise ValueError(f"relation_ids is {kind}, but must hold integers")
    if relation_ids.ndim != 3 or relation_ids.shape[:2] != (batch, length):
        raise ValueError(
            f"relation_ids has shape {list(relation_ids.shape)}, but must be [{batch}, {length}, number of keys]"
        )
    return relation_ids


def _segments(
    given: Tensor | None, token_types: Tensor | None, entrance: Entrance, batch: int, length: int
) -> Tensor | None:
    """Segment numbers ``[B, T]`` int64 as given, or the host's token types; ValueError for another shape or dtype."""
    segments = token_types if given is None else given
    if segments is None or not entrance.reads_segments:
        if given is not None:
            raise ValueError("segment_ids are given, but no encoding of this model reads them")
        return None
    name = "token_type_ids" if given is None else "segment_ids"
    if not isinstance(segments, Tensor) or segments.shape != (batch, length) or not _holds_integers(segments):
        found = f"{segments.dtype} {list(segments.shape)}" if isinstance(segments, Tensor) else type(segments).__name__
        raise ValueError(f"{name} is {found}, but must be integers [{batch}, {length}]")
    return segments.long()


def _holds_integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _text_index(
    kwargs: dict[str, Any], length: int, offset: int | Tensor, device: torch.device, host_ids: bool
) -> Tensor:
    """The place of each new token in its own text, ``[B|1, T]``.

    Counted from the end of the padding that a 2-D mask shows; else from where the caller's ``position_ids`` begin anew, whatever number that is; with
    a cache these are the place themselves, unless ``host_ids`` says that the family numbers positions in its own way.
    """
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if positions is not None and (
        not isinstance(positions, Tensor) or positions.ndim != 2 or positions.shape[1] != length
    ):
        found = list(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
        raise ValueError(f"position_ids is {found}, but must be a tensor [B|1, {length}]")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    place = torch.arange(length, device=device)[None]
    if positions is None or (host_ids and not (isinstance(offset, int) and offset == 0)):
        return place + offset
    if isinstance(offset, int) and offset == 0:
        begins = torch.nn.functional.pad(positions[:, 1:] != positions[:, :-1] + 1, (1, 0), value=True)
        return place - torch.where(begins, place, 0).cummax(-1).values
    return positions


def _check_length(config: Any, spec: ArchSpec, length: int, offset: int | Tensor) -> None:
    limit, _ = table_length(config, spec)
    if isinstance(offset, int) and offset + length > limit:
        raise ValueError(
            f"a sequence of {offset + length} tokens is longer than the table of {limit} absolute positions that absolute='keep' "
            "keeps; shorten it, or use a model made with absolute='drop'"
        )


def _documents(position_ids: Tensor) -> Tensor | None:
    """The document of each token where positions restart within a row, else None."""
    if position_ids.ndim != 2:
        return None
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    # while tracing there are no values to look at: one document is separated from none
    if not is_tracing() and not bool(starts.any()):
        return None
    return torch.nn.functional.pad(starts.long().cumsum(-1), (1, 0))


def _past_state(owner: nn.Module, cache: Any, encoding: Any) -> Tensor | None:
    """What ``encoding`` remembers of the tokens in ``cache``, ``[B, P, state_width]``, as the first layer that has it stores it; None of none."""
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    modules: Any = owner.modules()
    for module in modules:
        site: Any = getattr(module, "_relpos_site", None)
        parts = [] if site is None else site.encodings(module)
        parts = [member for part in parts for member in getattr(part, "members", [part])]
        if not any(part is encoding for part in parts):
            continue
        if module.layer_idx >= len(own.layers):
            return None
        layer = own.layers[module.layer_idx]
        if not layer.is_initialized or layer.keys is None:
            return None
        if layer.is_sliding:
            raise ValueError(f"the encoding {encoding.name!r} needs all earlier tokens, which a sliding cache forgets")
        width = encoding.host.head_dim
        before = next(number for number, part in enumerate(parts) if part is encoding)
        first = sum(part.state_width for part in parts[:before])
        state = remembered(layer.keys, width, sum(part.state_width for part in parts))
        return state[:, : int(layer.get_seq_length()), first : first + encoding.state_width]
    return None


def _apart(documents: Tensor, causal: bool) -> CompactMask:
    """The mask ``[B, 1, T, T]`` that keeps documents apart."""
    batch, length = documents.shape
    return CompactMask(batch, length, length, causal=causal, documents=documents, device=documents.device)


def _add_input_terms(
    base: nn.Module, kwargs: dict[str, Any], entrance: Entrance, tokens: Tokens, past: Any, index: Tensor
) -> None:
    encodings = entrance.input_encodings()
    if not encodings:
        return
    embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
    if embeds is None:
        embeds = base.get_input_embeddings()(ids)  # type: ignore[operator]
    terms = []
    for encoding in encodings:
        state = _past_state(entrance.owner, past, encoding) if past is not None and encoding.state_width else None
        terms.append(encoding.input_term(index, embeds.shape[-1], tokens, state))
    if (
        entrance.keep
        and entrance.spec.reserved_positions is not None
        and kwargs.get("position_ids") is None
        and ids is not None
    ):
        # the host derives its padded positions from ids, which it will not see
        embeddings = base.get_submodule(entrance.spec.embeddings or "")
        kwargs["position_ids"] = embeddings.create_position_ids_from_input_ids(  # type: ignore[operator]
            ids, embeddings.padding_idx, tokens.before
        )
    kwargs["inputs_embeds"], kwargs["input_ids"] = embeds + sum(terms).to(embeds.dtype), None
