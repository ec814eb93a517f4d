"""The way from a host's attention module to our attention.

transformers calls a registered function for each attention module; ours only calls the :class:`Site` that placement left on the
module. That keeps the function free of state and of this package's version: two Hub repositories with different versions of
this code share transformers' registry, and each module still finds its own code.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, EncoderDecoderCache
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from ..attention.attend import attend
from ..attention.backends import BACKENDS
from ..attention.call import Mask
from ..encodings.composition import key_state
from ..encodings.positions import Positions
from .compact_mask import CompactMask
from .key_memory import KeyMemory, MappedKeys
from .model_inputs import Given, is_tracing

PREFIX = "relpos"
# how users of transformers spell a backend, where it differs from our name
_SPELLINGS = {"flex_attention": "flex"}


def implementation_name(requested: str | None) -> str:
    """The internal attention implementation for ``attn_implementation=requested``; ValueError lists the valid ones."""
    if requested in (None, "auto", PREFIX):
        return PREFIX
    backend = _SPELLINGS.get(requested, requested).removeprefix(f"{PREFIX}_")
    if backend not in BACKENDS:
        spelled = sorted({name: key for key, name in _SPELLINGS.items()}.get(name, name) for name in BACKENDS)
        raise ValueError(
            f"attn_implementation={requested!r} is not valid for a model with relative positions, which it would drop; "
            f"valid: {', '.join(spelled)}, or unset for automatic choice"
        )
    return f"{PREFIX}_{backend}"


def backend_of(implementation: str) -> str:
    """The backend of an internal attention implementation."""
    return "auto" if implementation == PREFIX else implementation.removeprefix(f"{PREFIX}_")


class Site:
    """What placement leaves on an attention module: where its encodings are, and how its host calls attention.

    ``base`` is the base model, which owns what its layers share; what belongs to one layer is the module's ``relpos``. They are
    looked up at each call, since PEFT and others replace modules by wrappers. ``order`` tells what acts here one after the other: a number of what the
    base model shares, or None for the next of the module's own. ``cross`` marks cross-attention, which has no encodings.
    ``projections`` names the module's own maps to queries and keys, where encodings may use them.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        cross: bool,
        causal: bool,
        prescaled_query: bool,
        order: Sequence[int | None] = (),
        projections: tuple[str, str] | None = None,
    ):
        self.base = base
        self.cross = cross
        self.causal = causal
        self.prescaled_query = prescaled_query
        self.order = order
        self.projections = projections

    def encodings(self, module: nn.Module) -> list[nn.Module]:
        """What acts on ``module``, in order."""
        if self.cross:
            return []
        common, own = members(self.base), iter(members(module))
        return [next(own) if number is None else common[number] for number in self.order]

    def _optional_inputs(
        self,
        module: nn.Module,
        encodings: list[nn.Module],
        positions: Positions,
        given: Given,
        memory: Any,
        hidden: Any,
    ) -> dict[str, Any]:
        needs: frozenset[str] = frozenset().union(*(encoding.needs for encoding in encodings))  # type: ignore[arg-type]
        found: dict[str, Any] = {"key_state": None if memory is None else memory.state, "forward": given.forward}
        if "hidden_states" in needs:
            found["hidden_states"] = hidden
        if "relation_ids" in needs:
            ids = given.relation_ids
            if (
                ids is not None
                and given.has_cache
                and ids.shape[2] == int(positions.query_start) + positions.num_queries
            ):
                # a static cache has keys that are not written yet
                ids = torch.nn.functional.pad(ids, (0, positions.num_keys - ids.shape[2]))
            found["relation_ids"] = ids
        if "seed" in needs:
            found["seed"] = given.seed
        if "index" in needs and given.index is not None:
            found["query_index"] = given.index
            found["key_index"] = given.index
            if given.has_cache:
                # older keys stand before the last new token, which is no padding; those of a static cache beyond it are not written yet
                first = positions.query[:, -1:] - given.index[:, -1:]
                older = (positions.key - first).clamp(min=0).minimum(given.index[:, -1:])
                place = torch.arange(positions.num_queries, device=positions.device) + (
                    positions.query_start - positions.key_start
                )
                found["key_index"] = older.index_copy(1, place, given.index.expand(older.shape[0], -1))
        if "projections" in needs and self.projections is not None:
            found["projections"] = tuple(partial(_project, module, name) for name in self.projections)
        return found

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        backend: str,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        relpos_query_offset: int | Tensor = 0,
        relpos_given: Given | None = None,
        relpos_memory: KeyMemory | None = None,
        relpos_keys_are_mapped: bool = False,
        relpos_hidden_states: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output ``[B, Tq, H, D]`` and weights or None, as transformers' attention functions give them."""
        queries, keys = query.shape[2], key.shape[2]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.prescaled_query:
            scale = module.scaling  # type: ignore[assignment]
            query = query / scale
        offset = 0 if self.cross else relpos_query_offset
        given = relpos_given or Given()
        weights = given.weights or backend == "eager"
        causal = self.causal and not self.cross
        if causal and isinstance(offset, int) and keys > offset + queries and not weights:
            # a static cache has keys that are not written yet, which no query sees
            keys = offset + queries
            key, value = key[:, :, :keys], value[:, :, :keys]
            if relpos_memory is not None:
                relpos_memory.state = relpos_memory.state[:, :keys]
        positions = Positions.consecutive(queries, keys, query_offset=offset, device=query.device)
        documents = None if self.cross else given.documents
        mask = _mask_of_call(attention_mask, positions, causal, sliding_window, given.masks_are_ours, documents)
        encodings = self.encodings(module)
        return attend(
            query,
            key,
            value,
            encodings,
            mask,
            scale=scale,
            dropout=dropout,
            backend=backend,
            need_weights=weights,
            keys_are_mapped=relpos_keys_are_mapped,
            **self._optional_inputs(module, encodings, positions, given, relpos_memory, relpos_hidden_states),
        )


def _mask_of_call(
    mask: Tensor | None,
    positions: Positions,
    causal: bool,
    sliding_window: int | None,
    ours: bool,
    documents: Tensor | None,
) -> Mask:
    """What the host's ``mask`` says about the queries and keys at ``positions``, dense only where it cannot be said otherwise.

    ``causal`` and ``sliding_window`` are the attention module's own, which count where the mask is ``ours``, and so do the ``documents`` ``[B, T]`` of tokens.
    """
    # hosts count the window from the query, which sees this many keys on its own side of it, itself included only where causal
    window = sliding_window if sliding_window is None or causal else sliding_window + 1
    if isinstance(mask, CompactMask) and mask.shape[2] == positions.num_queries and mask.shape[3] >= positions.num_keys:
        found = mask.conditions(positions)
        return found if window is None or found.window is not None else replace(found, window=window)
    if mask is None:
        found = Mask(positions, causal, window)
    else:
        visible = as_visibility(mask)[..., : positions.num_keys]
        if visible.shape[1] > 1 or (visible.shape[2] > 1 and visible.stride(2)):
            return Mask(positions, dense=visible)
        # one row for all queries: a mask of keys
        padding = visible[:, 0, 0]
        found = Mask(positions, key_padding=padding)
        if ours:
            found = Mask(positions, causal, window, padding)
    return found if documents is None else replace(found, query_documents=documents, key_documents=documents)


def members(owner: nn.Module) -> list[Any]:
    """What stands one after the other in the ``relpos`` of a base model or an attention module, as it is now."""
    placed = getattr(owner, "relpos", None)
    return [] if placed is None else list(getattr(placed, "members", [placed]))


def _project(module: nn.Module, name: str, rows: Tensor) -> Tensor:
    """``rows`` ``[N, E]`` through the module's own map to queries or keys, by head: ``[H|G, N, D]``."""
    width: int = module.head_dim if hasattr(module, "head_dim") else module.attention_head_size  # type: ignore[assignment]
    return module.get_submodule(name)(rows).unflatten(-1, (-1, width)).transpose(0, 1)


def as_visibility(mask: Tensor) -> Tensor:
    """A host's 4-D mask as booleans, True = attend. ValueError for an additive mask that holds anything but 0 and minus infinity,
    which would be a second, foreign bias."""
    if mask.ndim != 4:
        raise ValueError(f"the attention mask has shape {list(mask.shape)}, but must be [B, T] or [B|1, 1|H, Tq, Tk]")
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return mask != 0
    visible = mask == 0
    if not torch.compiler.is_compiling() and not bool((visible | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
        raise ValueError(
            "a 4-D attention mask of floats may hold only 0 (attend) and the dtype's minimum or -inf (hide)"
        )
    return visible


def before_attention(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of a self-attention module, before its cache is updated: pass on how many slots lie before the first query, the layer's
    input where an encoding reads it, and let what encodings remember of keys travel through the cache, or keys enter it as they are mapped.

    Raises RuntimeError when the config, which models may share, was switched to an attention that knows no relative positions.
    """
    implementation = module.config._attn_implementation  # type: ignore[union-attr]
    if implementation is None or not implementation.startswith(PREFIX):
        raise RuntimeError(
            f"the attention implementation was switched to {implementation!r} behind the model's back, which would drop its "
            f"relative positions; use model.set_attn_implementation(...), and do not share its config with another model"
        )
    arguments: list[tuple[Any, Any]] = [*enumerate(args), *kwargs.items()]
    place, cache = next(((place, value) for place, value in arguments if isinstance(value, Cache)), (None, None))
    offset: int | Tensor = 0
    if cache is not None:
        layer = getattr(module, "layer_idx", None)
        offset = cache.get_query_offset(layer if layer is not None else 0)
        if isinstance(offset, Tensor):
            # a static cache returns its live counter, which the update is about to move; reading it costs nothing on a CPU
            offset = int(offset) if offset.device.type == "cpu" and not is_tracing() else offset.clone()
    kwargs = {**kwargs, "relpos_query_offset": offset}
    site: Site = module._relpos_site  # type: ignore[assignment]
    encodings = site.encodings(module)
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    stand_in: Any = None
    if any(encoding.state_width or "hidden_states" in encoding.needs for encoding in encodings):  # type: ignore[operator]
        given: Given = kwargs.get("relpos_given") or Given()
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        kwargs["relpos_hidden_states"] = hidden
        state = key_state(encodings, replace(given.tokens, hidden_states=hidden))
        if state is not None:
            stand_in = KeyMemory(own, state)
            kwargs["relpos_memory"] = stand_in
    elif cache is not None and encodings and all(encoding.maps_keys_alone for encoding in encodings):
        stand_in = MappedKeys(own, encodings, offset)
        kwargs["relpos_keys_are_mapped"] = True
    if stand_in is not None and isinstance(place, int):
        args = (*args[:place], stand_in, *args[place + 1 :])
    elif stand_in is not None and isinstance(place, str):
        kwargs[place] = stand_in
    return args, kwargs


def _attention_function(
    backend: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    site: Callable[..., Any] | None = getattr(module, "_relpos_site", None)
    if site is None:
        raise RuntimeError(
            f"{type(module).__name__} was given a relative attention implementation, but no encoding is placed on it"
        )
    return site(module, query, key, value, mask, backend=backend, **kwargs)


def _plain_kind(
    mask_function: Callable[..., Any],
    local_size: int | None = None,
    use_vmap: bool = False,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool | None = None,
    config: Any = None,
    **kwargs: Any,
) -> tuple[bool, int | None] | None:
    """Causality and window of a mask that is no more than these and padding; None for one that hosts lay something else over."""
    if local_size is None:
        known = {causal_mask_function: True, bidirectional_mask_function: False}
        return (known[mask_function], None) if mask_function in known else None
    # a window is made anew at each call; a host allows to skip one, where it hides nothing, only if nothing lies over it
    if use_vmap or local_size != getattr(config, "sliding_window", None):
        return None
    if allow_is_bidirectional_skip is not None:
        return (False, local_size + 1) if allow_is_bidirectional_skip else None
    return (True, local_size) if allow_is_causal_skip else None


def _mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask of a call: compact where it is padding, causality and a window, dense where hosts lay something else over these.

    While tracing, where no compact mask can be made, it is what differs by key, with a stride of 0 over queries, and the attention module knows the rest.
    A query over the unwritten part of a static cache has a mask as large as a row of it, whoever makes it.
    """
    kind = _plain_kind(mask_function, **kwargs)
    if kind is not None and not (isinstance(q_offset, Tensor) and q_length == 1):
        causal, window = kind
        padding = attention_mask
        if padding is not None:
            missing = kv_offset + kv_length - padding.shape[-1]
            padding = torch.nn.functional.pad(padding, (0, max(missing, 0)))[:, kv_offset : kv_offset + kv_length]
        if is_tracing():
            return None if padding is None else padding[:, None, None].expand(-1, -1, q_length, -1)
        if padding is not None and bool(padding.all()):
            padding = None
        if padding is None and not causal and window is None:
            return None
        return CompactMask(
            batch_size,
            q_length,
            kv_length,
            causal=causal,
            window=window,
            offset=q_offset - kv_offset,
            padding=padding,
            device=device,
        )
    # never skipped for causal calls: whoever gets None trusts flags that a bias must not rely on
    return sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset=q_offset,  # type: ignore[arg-type]
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        device=device,
        **{**kwargs, "allow_is_causal_skip": False},
    )


def register_implementations() -> None:
    """Make transformers know our attention under its internal names, with the mask function that goes with it."""
    for name in (PREFIX, *(f"{PREFIX}_{backend}" for backend in BACKENDS)):
        AttentionInterface.register(name, partial(_attention_function, backend_of(name)))
        AttentionMaskInterface.register(name, _mask_function)


register_implementations()
