"""PyTorch's fused attention with the terms as a dense additive mask: fast kernels, but memory quadratic in length.

``scaled_dot_product_attention(q, k, v, mask = sum of terms, -inf at invisible keys)``. Rows without a visible key are opened before the
softmax and zeroed after it, so that they give zero and pass no gradient whatever the kernel does with an empty row.
"""

import math

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..encodings.terms import ALL
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
    visible = call.mask.tile(rows, cols)
    bias = call.bias(rows, cols)
    mask, blind = visible, None
    if bias is not None:
        if visible is not None:
            bias = bias.masked_fill(~visible, -math.inf)
        blind = rows_without_keys(bias)
        mask = (bias if blind is None else bias.masked_fill(blind, 0.0)).to(query.dtype)
    elif visible is not None:
        blind = ~visible.any(dim=-1, keepdim=True)
        mask = visible | blind
    if mask is not None:
        mask = mask.expand(query.shape[0], -1, -1, -1)
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=call.dropout, scale=call.scale, enable_gqa=bool(call.groups > 1)
    )
    return output if blind is None else output.masked_fill(blind, 0.0)
