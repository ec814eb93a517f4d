"""PyTorch's fused attention on a CPU, as an internal operator: it returns the logsumexp, which no public function gives, and takes a mask by its strides.

What it does is found out before its first use (:func:`kernel_works`); where it does something else, or is not there, blocks in plain PyTorch stand in for it.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def hankel(table: Tensor, first: int, last: int, start: int, stop: int) -> Tensor:
    """Rows ``first .. last - 1`` and columns ``start .. stop - 1`` of the Hankel matrix of ``table`` ``[H, L]``: a view."""
    return table[:, first + start : last + stop - 1].unfold(-1, stop - start, 1)


def flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The fused CPU kernel's output and logsumexp ``[B, H, Tq]``."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = operator(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    return output, logsumexp


@cache
def kernel_works() -> bool:
    """Whether the kernel does what is meant here, found out once, in a thread of its own: what the caller is in the middle of (a transform, a checkpoint, inference
    mode) neither changes the answer nor is changed by it."""
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(_probe).result()


def _probe() -> bool:
    """Whether this PyTorch's kernel, an internal operator, takes strided masks, also with its own causality, and returns what is meant here."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        query, key, value = (torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(3))
        table = torch.randn(2, 17, generator=generator, dtype=torch.float64)
        columns = torch.randn(1, 2, 1, 9, generator=generator, dtype=torch.float64).expand(-1, -1, 9, -1)
        causal = torch.ones(9, 9, dtype=torch.bool).tril()
        try:
            for mask, is_causal in ((None, False), (hankel(table, 0, 9, 0, 9)[None], False), (columns, True)):
                scores = query @ key.mT * 0.3
                if mask is not None:
                    scores = scores + mask
                if is_causal:
                    scores = scores.masked_fill(~causal, -torch.inf)
                output, logsumexp = flash(query, key, value, mask, is_causal, 0.3)
                for ours, theirs in ((output, scores.softmax(-1) @ value), (logsumexp, scores.logsumexp(-1))):
                    if not torch.allclose(ours, theirs, rtol=0, atol=1e-12):
                        return False
            with torch.enable_grad():
                leaves = [x.requires_grad_() for x in (query, key, value, columns[:, :, 0].clone())]
                scores = query @ key.mT * 0.3 + leaves[3][:, :, None]
                expected = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ value
                gates = torch.autograd.grad(expected.sum(), leaves)
            query, key, value, gate = (x.detach() for x in leaves)
            found = gate_gradients(query, key, value, gate, output, logsumexp, torch.ones_like(output), True, 0.3)
            for mine, theirs in zip(found[:4], gates, strict=True):
                if not torch.allclose(mine, theirs, rtol=0, atol=1e-12):
                    return False
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
    return True


def gate_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    gradient: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values and of a bias by key and by query, from the kernel's own backward pass: a coordinate more, 1 in the queries and 0 in the
    keys, changes no score, and its gradient in the keys sums those of the scores; another one, with the roles changed, does so for the queries."""
    groups, width = query.shape[1] // key.shape[1], query.shape[-1]
    wide = [pad(x, (0, 8)) for x in (gradient, query, per_head(key, groups), per_head(value, groups), output)]
    wide[1][..., width] = wide[2][..., width + 1] = 1.0
    mask = columns[:, :, None].expand(-1, -1, query.shape[2], -1)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grads = backward(*wide, logsumexp, 0.0, causal, attn_mask=mask, scale=scale)
    grad_query, grad_key, grad_value = (x[..., :width] for x in grads)
    return (
        grad_query,
        per_group(grad_key, groups),
        per_group(grad_value, groups),
        grads[1][..., width] / scale,
        grads[0][..., width + 1] / scale,
    )


def per_head(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def per_group(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)
