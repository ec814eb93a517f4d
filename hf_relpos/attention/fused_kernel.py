"""PyTorch's fused attention on a CPU, as an internal operator: it returns the logsumexp, which no public function gives, and takes a mask by its strides.

What it does is found out before its first use (:func:`kernel_works`); where it does something else, or is not there, blocks in plain PyTorch stand in for it.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def in_transform() -> bool:
    """Whether ``torch.func`` or ``vmap`` is at work, in which tensors have no numbers to look at."""
    # a graph cannot ask, and is made by one of its own
    if torch.compiler.is_compiling():
        return False
    stack = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
    return stack is not None and stack() is not None


def refuse_second_gradient() -> None:
    """Raise RuntimeError in a backward pass that is to have a gradient itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the backend 'linear_memory' has no gradient of its gradient (create_graph=True); backends that have: eager, sdpa"
        )


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


@cache
def kernel_takes_groups() -> bool:
    """Whether several heads of queries may share one of keys and values without copies of it, found out once in the same way."""

    def probe() -> bool:
        with torch.no_grad(), torch.device("cpu"):
            query, key = (torch.linspace(-1, 1, 32 * n).sin().view(1, 2 * n, 2, 8) for n in (2, 1))
            try:
                found = flash(query, key, key, None, False, 0.3)
            except RuntimeError:
                return False
            repeated = per_head(key, 2)
            expected = flash(query, repeated, repeated, None, False, 0.3)
            return all(
                torch.allclose(mine, theirs, rtol=0, atol=1e-6) for mine, theirs in zip(found, expected, strict=True)
            )

    with ThreadPoolExecutor(1) as alone:
        return alone.submit(probe).result()


def _probe() -> bool:
    """Whether this PyTorch's kernel, an internal operator, takes strided masks, also with its own causality, and returns what is meant here; and so does its backward
    pass, also for some of the keys at a time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        query, key, value = (torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(3))
        table = torch.randn(2, 17, generator=generator, dtype=torch.float64)
        # one query does not see its last key
        table[0, 0] = -torch.inf
        columns = torch.randn(1, 2, 1, 9, generator=generator, dtype=torch.float64).expand(-1, -1, 9, -1)
        causal = torch.ones(9, 9, dtype=torch.bool).tril()
        cases = ((None, False, [9]), (hankel(table, 0, 9, 0, 9)[None], False, [4, 5]), (columns, True, [9]))
        try:
            return all(_agrees(query, key, value, mask, causal if own else None, parts) for mask, own, parts in cases)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False


def _agrees(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: Tensor | None, parts: list[int]
) -> bool:
    """Whether the kernel gives what plain products give, its backward pass for ``parts`` of the keys at a time."""
    with torch.enable_grad():
        gate = query.new_zeros(query.shape[:3])
        leaves = [x.detach().clone().requires_grad_() for x in (query, key, value, gate)]
        scores = leaves[0] @ leaves[1].mT * 0.3 + leaves[3][:, :, None]
        if mask is not None:
            scores = scores + mask
        if causal is not None:
            scores = scores.masked_fill(~causal, -torch.inf)
        expected = scores.softmax(-1) @ leaves[2]
        grads = torch.autograd.grad(expected.sum(), leaves)
    own = causal is not None
    output, logsumexp = flash(query, key, value, mask, own, 0.3)
    found: list[list[Tensor]] = []
    first = 0
    for count in parts:
        some = slice(first, first + count)
        pieces = (query, key[:, :, some], value[:, :, some], output, logsumexp, torch.ones_like(output))
        found.append(list(gate_gradients(*pieces, None if mask is None else mask[..., some], own, 0.3)))
        first += count
    by_query, by_key, by_value, by_gate, _ = zip(*found, strict=True)
    pairs = [
        (output, expected),
        (logsumexp, scores.logsumexp(-1)),
        (sum(by_query), grads[0]),
        *(
            (torch.cat(mine, dim=2), theirs)
            for mine, theirs in zip((by_key, by_value, by_gate), grads[1:], strict=True)
        ),
    ]
    return all(torch.allclose(torch.as_tensor(mine), theirs, rtol=0, atol=1e-12) for mine, theirs in pairs)


def flash_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    gradient: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from the kernel's own backward pass; ``logsumexp`` and ``output`` may be those of more keys than these."""
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: tuple[Tensor, Tensor, Tensor] = operator(
        gradient, query, key, value, output, logsumexp, 0.0, causal, attn_mask=mask, scale=scale
    )
    return found


def gate_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    gradient: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same and, by key and by query, the sums of the gradients of scores: a coordinate more, 1 in the queries and 0 in the keys, changes no score, and its gradient
    in the keys is such a sum; another one, with the roles changed, does so for the queries."""
    width = query.shape[-1]
    query, key, value, output, gradient = (pad(x, (0, 8)) for x in (query, key, value, output, gradient))
    query[..., width] = key[..., width + 1] = 1.0
    grads = flash_gradients(query, key, value, output, logsumexp, gradient, mask, causal, scale)
    grad_query, grad_key, grad_value = (x[..., :width] for x in grads)
    return grad_query, grad_key, grad_value, grads[1][..., width] / scale, grads[0][..., width + 1] / scale


def per_head(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def per_group(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)
