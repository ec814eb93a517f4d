"""How far a head reaches: keys are left out whose weights are certain to vanish in rounding, because a bias takes them farther down than any content could lift them.

Two keys' scores of one query differ in content by ``scale |q . (k - k')|``, which is at most ``spread = 2 scale max|q| max|k - c|`` for any point ``c``, here the mean of the
keys. If a query sees some key with a bias of ``t``, the weight of one with a bias of ``b`` is at most ``exp(b - t + spread)``. Below ``t - spread - log(keys) + log(eps)``
all of them together weigh less than ``eps`` of the whole. The bound is found anew from the numbers of each call, so that content which does lift far keys keeps them.

Heads that fall quickly (ALiBi, gates) read a short stretch of keys instead of all. They also meet few or none of the weights below the smallest normal number, on
which some CPUs compute many times more slowly. The adaptive computation pruning of the forgetting transformer (arXiv 2504.06949) is the same idea with a threshold by
block on a GPU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

# heads in a run read up to so many times as much as each other
ALIKE = 2.0
# runs that are worth their calls, or three quarters as many as there are heads
MOST_RUNS = 4


def fall_needed(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """How far below another visible key's a bias must lie to count for nothing, ``[B, H]``, farther where single values stand out; not finite where content or values are not."""
    with torch.no_grad():
        dtype = torch.promote_types(query.dtype, torch.float32)
        center = key.mean(2, keepdim=True, dtype=dtype)
        length = torch.linalg.vector_norm(query, dim=-1, dtype=dtype).amax(-1)
        radius = torch.linalg.vector_norm(key - center, dim=-1).amax(-1)
        groups = query.shape[1] // key.shape[1]
        spread = 2 * abs(scale) * length * radius.repeat_interleave(groups, dim=1)
        size = torch.linalg.vector_norm(value, dim=-1, dtype=dtype)
        outstanding = (size.amax(-1) / size.mean(-1).clamp(min=torch.finfo(dtype).tiny)).clamp(min=1).log()
        return spread.add_(outstanding.repeat_interleave(groups, dim=1)).add_(rounding(key.shape[2], dtype))


def rounding(keys: int, dtype: torch.dtype) -> float:
    """The fall that is needed where all content is the same."""
    return math.log(keys) - math.log(torch.finfo(dtype).eps)


def may_fall(columns: Tensor) -> bool:
    """Whether some head's bias by key falls so far that it could leave keys out."""
    with torch.no_grad():
        low, high = columns.aminmax(dim=-1)
        return bool((high - low > rounding(columns.shape[-1], columns.dtype)).any())


def without_far(table: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """``table`` ``[H, Tq + Tk - 1]`` (as in :mod:`by_distance`) with minus infinity where it counts for nothing."""
    if not query.numel():
        return table
    with torch.no_grad():
        best = window_maximum(table, key.shape[2])
        # queries that see nothing have nothing to compare with
        least = best.masked_fill(best == -torch.inf, torch.inf).amin(-1)
        lowest = table.masked_fill(table == -torch.inf, torch.inf).amin(-1)
        if not bool((lowest < least - rounding(key.shape[2], table.dtype)).any()):
            return table
        far = table < (least - fall_needed(query, key, value, scale).amax(0))[:, None]
    return table.masked_fill(far, -torch.inf)


def window_maximum(table: Tensor, width: int) -> Tensor:
    """The largest of each ``width`` numbers side by side in ``[H, N]``: ``[H, N - width + 1]``, by running maxima from both ends of stretches as long as that."""
    count = table.shape[-1]
    stretches = pad(table, (0, -count % width), value=-math.inf).unflatten(-1, (-1, width))
    ahead = stretches.cummax(-1).values.flatten(-2)
    back = stretches.flip(-1).cummax(-1).values.flip(-1).flatten(-2)
    return torch.maximum(back[..., : count - width + 1], ahead[..., width - 1 : count])


def alike(costs: Sequence[float], groups: int = 1) -> list[slice]:
    """Runs of heads by what each reads; those that share keys stay together."""
    shared = [max(costs[first : first + groups]) for first in range(0, len(costs), groups)]
    runs: list[tuple[int, int]] = []
    least = most = 0.0
    for number, cost in enumerate(shared):
        if runs and max(most, cost) <= ALIKE * min(least, cost):
            runs[-1] = (runs[-1][0], number + 1)
            least, most = min(least, cost), max(most, cost)
        else:
            runs.append((number, number + 1))
            least = most = cost
    if len(runs) > max(MOST_RUNS, len(shared) * 3 // 4):
        # in no order: single heads would take more calls than they spare keys
        runs = [(0, len(shared))]
    return [slice(first * groups, last * groups) for first, last in runs]


def split_heads(x: Tensor, runs: Sequence[slice], groups: int = 1) -> Sequence[Tensor]:
    """The share of each run in ``x`` ``[B, H // groups, ...]``, views whose gradients are put together once."""
    return x.split([(run.stop - run.start) // groups for run in runs], dim=1)


def visible_entries(table: Tensor) -> tuple[list[int], list[int]]:
    """The first and the last entry of each head of ``table`` that is not minus infinity, of those where all are the very first and last."""
    seen = table.detach() > -torch.inf
    some = seen.any(-1)
    first = seen.to(torch.uint8).argmax(-1)
    last = seen.shape[-1] - 1 - seen.flip(-1).to(torch.uint8).argmax(-1)
    return first.where(some, 0).tolist(), last.where(some, seen.shape[-1] - 1).tolist()


def first_near_keys(columns: Tensor, fall: Tensor, size: int) -> Tensor:
    """Of a bias by key ``[B, H, T]`` of as many queries that see no later key, the first key that counts for blocks of ``size`` queries, ``[B, H, blocks]``: every query of a
    block sees the keys up to its first query, the highest of which is what ``fall`` counts from."""
    with torch.no_grad():
        highest = columns.detach().cummax(-1).values
        wanted = highest[..., ::size] - fall[..., None]
        # what is no number leaves nothing out
        found = torch.searchsorted(highest.nan_to_num(nan=math.inf), wanted.nan_to_num(nan=-math.inf, neginf=-math.inf))
        return found.clamp(max=torch.arange(0, columns.shape[-1], size))
