"""Attention of a handful of queries over many keys, as in decoding: plain matrix products mostly, since the scores are no larger than what is read.

Time goes into reading keys and values once, so nothing else may touch them: heads that share keys are rows of one product (keys are never repeated), and
half precision is left to the products, with scores, softmax and terms in float32 (the fused kernel converts keys and values piecewise, and takes
several times as long on most CPUs; where they have units for matrices of bfloat16 it is the other way round). All else is as large as the scores: a bias is added once, for all samples where they agree; what a mask hides is put into
that bias; and rows that see nothing are looked for only where something may hide keys.

A term that keys meet would read them once more. Far keys mostly share one row ``e`` of its table, and ``scale * q . k + e . k`` is ``scale * (q + e / scale) . k``: the
row goes into the query, and only near keys, which meet other rows, are read again (:func:`_into_query`).
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from ..encodings.terms import ALL, KeyBuckets
from .call import AttentionCall, Mask, rows_without_keys

# queries up to which this is faster than the fused kernel, whatever the number of keys
FEW_QUERIES = 8


def run(call: AttentionCall) -> Tensor:
    """Output ``[B, Tq, H, Dv]`` of a call without row maps."""
    call, near = _into_query(call)
    batch, heads, queries, width = call.query.shape
    shape = (batch, call.key.shape[1], call.groups * queries)
    added, visible = call.bias(), None if _sees_all(call.mask) else call.mask.tile()
    if visible is not None:
        nothing = call.query.new_zeros((), dtype=_dtype(call)) if added is None else added
        added = nothing.masked_fill(~visible, -math.inf)
    blind = None if added is None else rows_without_keys(added)
    if added is not None and blind is not None:
        added = added.masked_fill(blind, 0.0)
    query = call.query.reshape(*shape, width)
    if near is not None:
        added = near if added is None else near + added
    if _kernel_is_faster(call):
        mask = None
        if added is not None:
            rows = added.expand(-1, heads, queries, -1).reshape(added.shape[0], *shape[1:], -1)
            mask = rows.expand(batch, -1, -1, -1)
        # autocast would round the mask
        with torch.autocast("cpu", enabled=False):
            output = scaled_dot_product_attention(query, call.key, call.value, attn_mask=mask, scale=call.scale)
        output = output.reshape(batch, heads, queries, -1)
        return (output if blind is None else output.masked_fill(blind, 0.0)).transpose(1, 2)
    scores = query @ call.key.transpose(-1, -2)
    scores = scores.view(batch, heads, queries, -1).to(_dtype(call)) * call.scale
    if added is not None:
        scores = scores + added
    weights = scores.softmax(dim=-1)
    if blind is not None:
        weights = weights.masked_fill(blind, 0.0)
    weights = dropout(weights.to(call.value.dtype), call.dropout)
    output = (weights.view(*shape, -1) @ call.value).view(batch, heads, queries, -1)
    for term in call.value_terms:
        output = output + term.apply(weights)
    return output.transpose(1, 2)


def _dtype(call: AttentionCall) -> torch.dtype:
    """Of scores."""
    return torch.promote_types(call.query.dtype, torch.float32)


def _kernel_is_faster(call: AttentionCall) -> bool:
    """Whether the fused kernel has the better products in this precision, as on CPUs with units for matrices of bfloat16; it shows no weights and drops none."""
    if call.query.dtype != torch.bfloat16 or call.dropout or call.value_terms or call.query.device.type != "cpu":
        return False
    # a graph cannot ask
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    # before some version PyTorch does not tell
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("amx_bf16"))


def _sees_all(mask: Mask) -> bool:
    """Whether it is plain without a look at numbers that every query sees every key."""
    p = mask.positions
    if any(other is not None for other in (mask.key_padding, mask.key_documents, mask.dense)):
        return False
    if not mask.causal and mask.window is None:
        return True
    if p.has_gaps or not isinstance(p.query_start, int) or not isinstance(p.key_start, int):
        return False
    nearest = p.query_start - (p.key_start + p.num_keys - 1)
    farthest = p.query_start + p.num_queries - 1 - p.key_start
    reach = farthest if mask.window is None else mask.window - 1
    return farthest <= reach and nearest >= (0 if mask.causal else -reach)


def _shows_values(tensor: Tensor) -> bool:
    """Whether a look at numbers costs nothing: a GPU would have to be waited for, and a graph in the making has none."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _into_query(call: AttentionCall) -> tuple[AttentionCall, Tensor | None]:
    """The call of one query with what far keys meet moved into the query, and what near keys meet beside it ``[B, H, 1, Tk]``."""
    terms = [
        term
        for term in call.score_terms
        if isinstance(term, KeyBuckets) and term.key is call.key and term.bucket is not None
    ]
    # to find where far keys end takes a look at numbers
    if not terms or not call.scale or call.query.shape[2] > 1 or not _shows_values(call.query):
        return call, None
    query, rest, near = call.query, list(call.score_terms), None
    for term in terms:
        assert term.bucket is not None
        keys = term.positions.num_keys
        index = term.bucket[term.positions.distance_index()[0]]
        others = (index != index[0]).nonzero()
        first = int(others[0]) if len(others) else keys
        if 2 * first < keys:
            continue
        edge = term.table.select(-2, int(index[0]))
        edge = edge if edge.ndim == 1 else edge[:, None]
        query = query + edge / call.scale
        rows = term.rows_of_keys(ALL, slice(first, None)) - edge
        beside = pad(torch.einsum("...jw,...jw->...j", call.key[:, :, first:], rows), (first, 0))[:, :, None]
        near = beside if near is None else near + beside
        rest = [other for other in rest if other is not term]
    return replace(call, query=query, score_terms=tuple(rest)), near
