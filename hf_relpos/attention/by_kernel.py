"""Attention with a bias by distance that learns nothing, or with one by key that may, a block of queries at a time through PyTorch's fused kernel in both directions.

The kernel has no gradient for its mask. A bias by distance that learns nothing needs none. That of a bias by key (gates) comes out of its own backward pass: a coordinate
more, 1 in the queries and 0 in the keys, changes no score, and its gradient in the keys sums those of the scores; another one, with the roles changed, does so for
the queries.

Each block leaves out the keys that none of its queries sees, or is near enough to weigh (:mod:`far_keys`). The logsumexp that the forward pass gave makes the backward
pass of each block independent of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .fused_kernel import (
    flash,
    flash_gradients,
    gate_gradients,
    hankel,
    kernel_takes_groups,
    per_group,
    per_head,
    refuse_second_gradient,
)


@dataclass(frozen=True)
class Block:
    """Queries ``a .. z - 1`` and keys ``c .. d - 1``; ``causal``: the kernel hides later keys itself."""

    a: int
    z: int
    c: int
    d: int
    causal: bool = False


@dataclass(frozen=True)
class Plan:
    """The blocks, and the mask of each, ``[B | 1, H, queries, keys]``."""

    blocks: list[Block]
    mask: Callable[[Block], Tensor]
    scale: float


def distance_plan(table: Tensor, blocks: list[tuple[int, int, int, int]], scale: float) -> Plan:
    """A bias by distance, keys reversed (:mod:`by_distance`)."""
    return Plan([Block(*block) for block in blocks], lambda o: hankel(table, o.a, o.z, o.c, o.d)[None], scale)


def key_plan(columns: Tensor, queries: int, causal: bool, scale: float) -> Plan:
    """A bias by key ``[B, H, Tk]``, all in one block."""
    mask = columns[:, :, None].expand(-1, -1, queries, -1)
    return Plan([Block(0, queries, 0, columns.shape[-1], causal)], lambda o: mask, scale)


def near_plan(columns: Tensor, starts: Sequence[int], fall: Tensor, size: int, scale: float) -> Plan:
    """A bias by key ``[B, H, T]`` of as many queries that see no later key: block number ``n``, of ``size`` queries, begins with key ``starts[n]``, and what lies ``fall`` ``[B, H]`` below a query's own
    key counts for nothing. The mask holds differences to that key, which stay small where the bias is a sum over a text."""
    count = columns.shape[-1]
    blocks = [
        Block(a, min(a + size, count), c, min(a + size, count))
        for a, c in zip(range(0, count, size), starts, strict=True)
    ]
    future = torch.ones(size, size, dtype=torch.bool).triu_(1)

    def mask(o: Block) -> Tensor:
        found = columns[:, :, None, o.c : o.d] - columns[:, :, o.a : o.z, None]
        found[..., o.a - o.c :].masked_fill_(future[: o.z - o.a, : o.z - o.a], -torch.inf)
        return found.masked_fill_(found < -fall[..., None, None], -torch.inf)

    return Plan(blocks, mask, scale)


class KernelAttention(torch.autograd.Function):
    """Output ``[B, H, Tq, D]`` of queries that see a key each; gradients of queries, keys, values, and of the bias by key ``columns`` ``[B, H, Tk]`` that the plan was
    made of. That of ``rows`` ``[B, H, Tq]``, which the softmax does not see, is a rounding error, and cancels others where keys and queries have their numbers from one sum."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, columns: Tensor | None, rows: Tensor | None, plan: Plan
    ) -> Tensor:
        groups = 1 if kernel_takes_groups() else query.shape[1] // key.shape[1]
        keys, values = per_head(key, groups), per_head(value, groups)
        outputs, sums = [], []
        for block in plan.blocks:
            a, z, c, d = block.a, block.z, block.c, block.d
            mask = plan.mask(block)
            output, logsumexp = flash(
                query[:, :, a:z], keys[:, :, c:d], values[:, :, c:d], mask, block.causal, plan.scale
            )
            outputs.append(output)
            sums.append(logsumexp)
        output, logsumexp = (x[0] if len(x) == 1 else torch.cat(x, dim=2) for x in (outputs, sums))
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.plan = plan
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_gradient()
        query, key, value, output, logsumexp = ctx.saved_tensors
        plan: Plan = ctx.plan
        groups = query.shape[1] // key.shape[1]
        keys, values = per_head(key, groups), per_head(value, groups)
        learned = any(ctx.needs_input_grad[3:5])
        dtype = logsumexp.dtype
        single = len(plan.blocks) == 1 and (plan.blocks[0].c, plan.blocks[0].d) == (0, key.shape[2])
        grads: list[Tensor] = []
        by_key = by_row = None
        for block in plan.blocks:
            a, z, c, d = block.a, block.z, block.c, block.d
            mask = plan.mask(block)
            given = (query[:, :, a:z], keys[:, :, c:d], values[:, :, c:d], output[:, :, a:z], logsumexp[:, :, a:z])
            options = (gradient[:, :, a:z], mask, block.causal, plan.scale)
            more: tuple[Tensor, ...] = ()
            if learned:
                *found, more_key, more_row = gate_gradients(*given, *options)
                more = (more_key, more_row)
            else:
                found = list(flash_gradients(*given, *options))
            if single:
                grads, (by_key, by_row) = found, more or (None, None)
                break
            if not grads:
                # sums over blocks are not to be rounded in between
                grads = [torch.empty_like(query), *(torch.zeros_like(x, dtype=dtype) for x in (keys, values))]
                if learned:
                    by_key, by_row = logsumexp.new_zeros(keys.shape[:3]), torch.empty_like(logsumexp)
            grads[0][:, :, a:z] = found[0]
            grads[1][:, :, c:d] += found[1]
            grads[2][:, :, c:d] += found[2]
            if by_key is not None and by_row is not None:
                by_key[:, :, c:d] += more[0]
                by_row[:, :, a:z] = more[1]
        needs = ctx.needs_input_grad
        return (
            grads[0],
            *((x if groups == 1 else per_group(x.to(dtype), groups)).to(key.dtype) for x in grads[1:]),
            by_key if needs[3] else None,
            by_row if needs[4] else None,
            None,
        )
