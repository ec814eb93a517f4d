"""The oracle among the backends: dense, readable, runs every call and returns the weights.

``softmax(scale * q k^T + sum of terms, over visible keys) @ (v + value terms)``, where row maps may replace the content scores. Scores are kept in float32
at least. A query that sees no key (left padding makes such rows) gives zero and passes no gradient.
"""

import math

import torch
from torch import Tensor

from ..encodings.terms import ALL
from .added import Added, added
from .call import AttentionCall, rows_without_keys


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``: none, ever."""
    return []


def run(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Output ``[B, Tq, H, Dv]`` and weights ``[B, H, Tq, Tk]``."""
    output, weights = attend_block(call, call.query, call.key, call.value)
    return output.transpose(1, 2), weights


def attend_block(
    call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, rows: slice = ALL, cols: slice = ALL
) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, rows, Dv]`` and weights ``[B, H, rows, cols]`` of some queries ``[B, H, rows, D]`` over some keys, which must be all that these
    queries see; row maps take all rows and keys."""
    if call.groups > 1:
        key, value = key.repeat_interleave(call.groups, dim=1), value.repeat_interleave(call.groups, dim=1)
    dtype = torch.promote_types(query.dtype, torch.float32)
    # the factor on the query passes over far fewer numbers, but rounds in half precision
    exact = dtype == query.dtype
    scores = (query * call.scale) @ key.mT if exact else (query @ key.mT).to(dtype) * call.scale
    if call.row_maps:
        sees = Added(call.bias(rows, cols), call.mask.tile(rows, cols), None)
        for row_map in call.row_maps:
            scores = row_map(scores, sees.bias, sees.visible, call.scale)
    else:
        sees = added(call, rows, cols)
    if sees.bias is not None:
        scores = scores + sees.bias
    blind = sees.blind
    if sees.visible is not None or call.row_maps:
        if sees.visible is not None:
            scores = scores.masked_fill(~sees.visible, -math.inf)
        blind = rows_without_keys(scores)
    if blind is None:
        weights = scores.softmax(dim=-1).to(value.dtype)
    else:
        weights = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0).to(value.dtype)
    weights = torch.nn.functional.dropout(weights, call.dropout)
    output = weights @ value
    for term in call.value_terms:
        output = output + term.apply(weights, rows, cols)
    return output, weights
