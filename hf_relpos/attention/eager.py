"""The oracle among the backends: dense, readable, runs every call and returns the weights.

``softmax(scale * q k^T + sum of terms, over visible keys) @ (v + value terms)``, where row maps may replace the content scores. Scores are kept in float32 at least. A query that sees no
key (left padding makes such rows) gives zero and passes no gradient.
"""

import math

import torch
from torch import Tensor

from .call import AttentionCall


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``: none, ever."""
    return []


def run(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Output ``[B, Tq, H, Dv]`` and weights ``[B, H, Tq, Tk]``."""
    key, value = call.key, call.value
    if call.groups > 1:
        key, value = key.repeat_interleave(call.groups, dim=1), value.repeat_interleave(call.groups, dim=1)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    scores = (call.query @ key.transpose(-1, -2)).to(dtype) * call.scale
    bias = None
    for term in call.score_terms:
        bias = term.tile().to(dtype) if bias is None else bias + term.tile().to(dtype)
    visible = call.mask.tile()
    for row_map in call.row_maps:
        scores = row_map(scores, bias, visible)
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    blind = (scores == -math.inf).all(dim=-1, keepdim=True)
    weights = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0).to(value.dtype)
    weights = torch.nn.functional.dropout(weights, call.dropout)
    output = weights @ value
    for added in call.value_terms:
        output = output + added.apply(weights)
    return output.transpose(1, 2), weights
