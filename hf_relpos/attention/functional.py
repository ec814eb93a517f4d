"""``hf_relpos.attention``: attention with a relative encoding on plain tensors, no model needed."""

from typing import Any

import torch
from torch import Tensor, nn

from ..encodings.composition import key_state
from ..encodings.encoding import Encoding
from ..encodings.inputs import Tokens
from ..encodings.positions import Positions
from .attend import attend
from .call import Mask


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor, shape in (
        ("query", query, "[B, H, Tq, D]"),
        ("key", key, "[B, G, Tk, D]"),
        ("value", value, "[B, G, Tk, Dv]"),
    ):
        _expect(tensor.ndim == 4, f"{name} has shape {list(tensor.shape)}, but must be {shape}")
        _expect(tensor.is_floating_point(), f"{name} has dtype {tensor.dtype}, but must be floating point")
        _expect(tensor.dtype == query.dtype, f"{name} has dtype {tensor.dtype}, but query has {query.dtype}")
    _expect(
        query.shape[0] == key.shape[0] == value.shape[0] and query.shape[-1] == key.shape[-1],
        f"query {list(query.shape)}, key {list(key.shape)} and value {list(value.shape)} disagree in batch or head width",
    )
    _expect(
        key.shape[1:3] == value.shape[1:3],
        f"key {list(key.shape)} and value {list(value.shape)} disagree in heads or length",
    )
    _expect(
        query.shape[1] % key.shape[1] == 0,
        f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key heads",
    )


def _as_dense(mask: Tensor, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    fits = all(size in (1, full) for size, full in zip(mask.shape[:2], (batch, heads), strict=True))
    _expect(
        fits and mask.shape[2:] == (queries, keys) and mask.dtype == torch.bool,
        f"attention_mask has shape {list(mask.shape)} and dtype {mask.dtype}, but must be [B, Tk] (1 = attend), or bool "
        f"[B|1, 1|H, Tq, Tk] = [{batch}|1, 1|{heads}, {queries}, {keys}]",
    )
    return mask


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    encoding: nn.Module | None = None,
    *,
    attention_mask: Tensor | None = None,
    is_causal: bool = False,
    window: int | None = None,
    query_offset: int | Tensor = 0,
    key_offset: int | Tensor | None = None,
    document_ids: Tensor | None = None,
    hidden_states: Tensor | None = None,
    segment_ids: Tensor | None = None,
    relation_ids: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
    return_weights: bool = False,
) -> Any:
    """``softmax(scale * q k^T + what the encoding adds, over visible keys) v``.

    Args:
        query, key, value: ``[B, H, Tq, D]``, ``[B, G, Tk, D]``, ``[B, G, Tk, Dv]``; ``G`` divides ``H`` (grouped keys).
        encoding: from ``build_encoding``; None for plain attention.
        attention_mask: ``[B, Tk]`` with 1 = attend, or bool ``[B|1, 1|H, Tq, Tk]`` with True = attend.
        is_causal: a query sees no key in a later slot.
        window: a query sees keys at a distance below it.
        query_offset, key_offset: slots of the first query and the first key; ``key_offset=None`` means
            ``max(query_offset + Tq - Tk, 0)``.
        document_ids: ``[B, Tk]``; a query sees its own document. Queries must stand among the keys.
        hidden_states, segment_ids, relation_ids: ``[B, Tk, E]``, ``[B, Tk]``, ``[B, Tq, Tk]``, for encodings that need them; with the first two,
            queries must stand among the keys.
        scale: of the content score; ``1/sqrt(D)`` unless given.
        dropout_p: dropout of the attention weights.
        backend: ``"auto"`` or one of ``list_backends()``.
        return_weights: also return the weights ``[B, H, Tq, Tk]``.

    Returns:
        ``[B, H, Tq, Dv]``, or with ``return_weights`` a pair. A query that sees no key gives zero.

    Raises:
        ValueError: shapes or dtypes disagree, an option is out of range, the backend is unknown or refuses (with reasons).
    """
    _check_tensors(query, key, value)
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    _expect(0.0 <= dropout_p < 1.0, f"dropout_p={dropout_p!r} is not valid: it must be at least 0 and below 1")
    _expect(window is None or window >= 1, f"window={window!r} is not valid: it must be at least 1")
    for part in getattr(encoding, "members", (encoding,)):
        if isinstance(part, Encoding):
            _expect(
                part.attention_heads == heads and part.host.head_dim == width,
                f"the encoding was built for {part.attention_heads} heads of width {part.host.head_dim}, but query has {heads} of {width}",
            )
    for name, tensor, shape in (
        ("document_ids", document_ids, (batch, keys)),
        ("segment_ids", segment_ids, (batch, keys)),
        ("relation_ids", relation_ids, (batch, queries, keys)),
    ):
        if tensor is not None:
            _expect(tensor.shape == shape, f"{name} has shape {list(tensor.shape)}, but must be {list(shape)}")
            _expect(
                not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool),
                f"{name} has dtype {tensor.dtype}, but must hold integers",
            )
    if hidden_states is not None:
        fits = hidden_states.ndim == 3 and hidden_states.shape[:2] == (batch, keys)
        for part in getattr(encoding, "members", (encoding,)):
            if isinstance(part, Encoding) and "hidden_states" in part.needs:
                wide = hidden_states.shape[-1] == part.host.hidden_size
                _expect(
                    wide,
                    f"hidden_states is {hidden_states.shape[-1]} wide, but the encoding was built for {part.host.hidden_size}",
                )
        _expect(fits, f"hidden_states has shape {list(hidden_states.shape)}, but must be [{batch}, {keys}, E]")

    positions = Positions.consecutive(
        queries, keys, query_offset=query_offset, key_offset=key_offset, device=query.device
    )
    padding = dense = None
    if attention_mask is not None and attention_mask.ndim == 2:
        _expect(
            attention_mask.shape == (batch, keys),
            f"attention_mask has shape {list(attention_mask.shape)}, but must be [B, Tk] = [{batch}, {keys}]",
        )
        padding = attention_mask.to(torch.bool)
    elif attention_mask is not None:
        _expect(
            attention_mask.ndim == 4,
            f"attention_mask has shape {list(attention_mask.shape)}, but must be [B, Tk] or [B|1, 1|H, Tq, Tk]",
        )
        dense = _as_dense(attention_mask, batch, heads, queries, keys)
    query_documents = None
    if document_ids is not None:
        query_documents = positions.of_queries(document_ids)
    mask = Mask(positions, is_causal, window, padding, query_documents, document_ids, dense)
    given = optional_inputs(encoding, positions, padding, document_ids, hidden_states, segment_ids, relation_ids)
    output, weights = attend(
        query,
        key,
        value,
        () if encoding is None else (encoding,),
        mask,
        scale=width**-0.5 if scale is None else scale,
        dropout=dropout_p,
        backend=backend,
        need_weights=return_weights,
        **given,
    )
    output = output.transpose(1, 2)
    return (output, weights) if return_weights else output


def optional_inputs(
    encoding: nn.Module | None,
    positions: Positions,
    padding: Tensor | None = None,
    document_ids: Tensor | None = None,
    hidden_states: Tensor | None = None,
    segment_ids: Tensor | None = None,
    relation_ids: Tensor | None = None,
) -> dict[str, Any]:
    """The optional fields of ``EncodingInputs`` for ``encoding``, from what :func:`attention` is given."""
    if encoding is None:
        return {}
    given: dict[str, Any] = {
        "relation_ids": relation_ids,
        "key_state": key_state([encoding], Tokens(hidden_states, segment_ids)),
    }
    if "hidden_states" in encoding.needs and hidden_states is not None:  # type: ignore[operator]
        given["hidden_states"] = positions.of_queries(hidden_states)
    if "index" in encoding.needs:  # type: ignore[operator]
        given["key_index"] = _text_index(positions, padding, document_ids)
        given["query_index"] = positions.of_queries(given["key_index"])
    return given


def _text_index(positions: Positions, padding: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """The place of each key in its own text ``[B|1, Tk]``: its slot, counted from the end of the padding before it or from the start of its document."""
    slots = positions.key
    first_slot = torch.zeros_like(slots)
    if padding is not None:
        leading = padding.long().cumsum(-1) == 0
        # a padded row starts behind its padding, any other at slot 0, which a sliding cache may have dropped
        first_slot = torch.where(leading.any(-1), positions.key_start + leading.sum(-1), 0)[:, None].expand(
            -1, slots.shape[1]
        )
    if document_ids is not None:
        begins = torch.nn.functional.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0))
        first_slot = torch.where(begins, slots, first_slot).cummax(-1).values
    return (slots - first_slot).clamp(min=0)
