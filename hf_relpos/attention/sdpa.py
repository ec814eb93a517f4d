"""PyTorch's fused attention with the terms as a dense additive mask: fast kernels, but memory quadratic in length.

``scaled_dot_product_attention(q, k, v, mask = sum of terms, -inf at invisible keys)``. Rows without a visible key are opened before the
softmax and zeroed after it, so that they give zero and pass no gradient whatever the kernel does with an empty row.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..encodings.terms import ALL, DistanceTable
from .added import added
from .call import AttentionCall, rows_without_keys


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``."""
    reasons = []
    if call.need_weights:
        reasons.append("attention weights are asked for, and the fused kernel does not return them")
    if call.value_terms:
        reasons.append("the encoding adds to the values by distance, which needs the attention weights")
    if call.row_maps:
        reasons.append("the encoding maps whole rows of scores, which the fused kernel does not show")
    return reasons


def suits(call: AttentionCall) -> bool:
    """Whether this is the backend to take where the eager one runs too: not for gradients of what is added on a CPU, of which the fused kernel there has none; what
    PyTorch does instead takes longer than plain products and as much memory."""
    if call.query.device.type != "cpu" or not torch.is_grad_enabled():
        return True
    return all(isinstance(term, DistanceTable) and not term.table.requires_grad for term in call.score_terms)


def run(call: AttentionCall) -> tuple[Tensor, None]:
    """Output ``[B, Tq, H, Dv]``; no weights."""
    if not call.score_terms and call.mask.is_plain_causal:
        output = scaled_dot_product_attention(
            call.query,
            call.key,
            call.value,
            is_causal=True,
            dropout_p=call.dropout,
            scale=call.scale,
            enable_gqa=bool(call.groups > 1),
        )
    else:
        output = attend_block(call, call.query, call.key, call.value)
    return output.transpose(1, 2), None


def attend_block(
    call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, rows: slice = ALL, cols: slice = ALL
) -> Tensor:
    """Output ``[B, H, rows, Dv]`` of some queries ``[B, H, rows, D]`` over some keys, which must be all that these queries see."""
    sees = added(call, rows, cols)
    mask, blind = sees.bias, sees.blind
    if mask is None and sees.visible is not None:
        blind = ~sees.visible.any(dim=-1, keepdim=True)
        mask = sees.visible | blind
    elif mask is not None:
        if sees.visible is not None:
            mask = mask.masked_fill(~sees.visible, -math.inf)
            blind = rows_without_keys(mask)
        mask = (mask if blind is None else mask.masked_fill(blind, 0.0)).to(query.dtype)
    if mask is not None:
        mask = mask.expand(query.shape[0], -1, -1, -1)
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=call.dropout, scale=call.scale, enable_gqa=bool(call.groups > 1)
    )
    return output if blind is None else output.masked_fill(blind, 0.0)
