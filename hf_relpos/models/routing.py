"""The way from a host's attention module to our attention.

transformers calls a registered function for each attention module; ours only calls the :class:`Site` that placement left on the
module. That keeps the function free of state and of this package's version: two Hub repositories with different versions of
this code share transformers' registry, and each module still finds its own code.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import sdpa_mask

from ..attention.attend import attend
from ..attention.backends import BACKENDS
from ..attention.call import Mask
from ..encodings.positions import Positions

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

    ``base`` is the base model, which owns the encodings shared by its layers; those of one layer are the module's ``relpos``. They are
    looked up at each call, since PEFT and others replace modules by wrappers. ``cross`` marks cross-attention, which has none.
    """

    def __init__(self, base: nn.Module, *, cross: bool, causal: bool, prescaled_query: bool):
        self.base = base
        self.cross = cross
        self.causal = causal
        self.prescaled_query = prescaled_query

    def encodings(self, module: nn.Module) -> list[nn.Module]:
        """The encodings that act on ``module``."""
        if self.cross:
            return []
        owners = (self.base, module) if self.base is not module else (module,)
        return [owner.relpos for owner in owners if isinstance(getattr(owner, "relpos", None), nn.Module)]  # type: ignore[misc]

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
        relpos_query_offset: int | Tensor = 0,
        relpos_weights: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output ``[B, Tq, H, D]`` and weights or None, as transformers' attention functions give them."""
        queries, keys = query.shape[2], key.shape[2]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if self.prescaled_query:
            scale = module.scaling  # type: ignore[assignment]
            query = query / scale
        offset = 0 if self.cross else relpos_query_offset
        positions = Positions.consecutive(queries, keys, query_offset=offset, device=query.device)
        dense = None if attention_mask is None else as_visibility(attention_mask[..., :keys])
        causal = self.causal and dense is None and not self.cross
        return attend(
            query,
            key,
            value,
            self.encodings(module),
            Mask(positions, causal=causal, dense=dense),
            scale=scale,
            dropout=dropout,
            backend=backend,
            need_weights=relpos_weights or backend == "eager",
        )


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
    """Pre-hook of a self-attention module, before its cache is updated: pass on how many slots lie before the first query.

    Raises RuntimeError when the config, which models may share, was switched to an attention that knows no relative positions.
    """
    implementation = module.config._attn_implementation  # type: ignore[union-attr]
    if implementation is None or not implementation.startswith(PREFIX):
        raise RuntimeError(
            f"the attention implementation was switched to {implementation!r} behind the model's back, which would drop its "
            f"relative positions; use model.set_attn_implementation(...), and do not share its config with another model"
        )
    cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
    offset: int | Tensor = 0
    if cache is not None:
        layer = getattr(module, "layer_idx", None)
        offset = cache.get_query_offset(layer if layer is not None else 0)
        if isinstance(offset, Tensor):
            # a static cache returns its live counter, which the update is about to move
            offset = offset.clone()
    return args, {**kwargs, "relpos_query_offset": offset}


def _attention_function(
    backend: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    site: Callable[..., Any] | None = getattr(module, "_relpos_site", None)
    if site is None:
        raise RuntimeError(
            f"{type(module).__name__} was given a relative attention implementation, but no encoding is placed on it"
        )
    return site(module, query, key, value, mask, backend=backend, **kwargs)


def _mask_function(*args: Any, **kwargs: Any) -> Tensor | None:
    # never skipped for causal calls: whoever gets None trusts flags that a bias must not rely on
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


def register_implementations() -> None:
    """Make transformers know our attention under its internal names, with the mask function that goes with it."""
    for name in (PREFIX, *(f"{PREFIX}_{backend}" for backend in BACKENDS)):
        AttentionInterface.register(name, partial(_attention_function, backend_of(name)))
        AttentionMaskInterface.register(name, _mask_function)


register_implementations()
