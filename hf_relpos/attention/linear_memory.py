"""Attention with relative positions in memory linear in length, gradients included, in plain PyTorch.

*By distance.* What depends on a distance is computed by :mod:`by_distance`: numbers for each head and distance as a strided view of their table, which the
fused kernel takes for its mask; vectors by distance a block of queries at a time; gradients from recomputed tiles. Padding at the ends and packed documents
are taken apart beforehand, into rectangles of queries and keys of which every query sees every key (:mod:`regions`).

*Far keys* whose weights would vanish in rounding are left out where a number for each distance or key is all that is added (:mod:`far_keys`). Such numbers go through the kernel in both
directions (:mod:`by_kernel`), unless they are a table that learns.

*Everything else* is computed in blocks of queries from ``term.tile``, each recomputed for its gradient, by the dense backends' own code.

*A handful of queries* over a long cache is left to plain matrix products: the scores are then no larger than what is read (:mod:`few_queries`).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..encodings.terms import DistanceTable, KeyBuckets, KeyVector, QueryBuckets, ValueBuckets
from .by_distance import MOST_ELEMENTS, SMALLEST_BLOCK, Shape, TermAttention, blind_rows, query_blocks
from .by_kernel import KernelAttention, distance_plan, key_plan, near_plan
from .call import AttentionCall
from .eager import attend_block as eager_block
from .far_keys import alike, fall_needed, first_near_keys, may_fall, split_heads, visible_entries, without_far
from .few_queries import FEW_QUERIES
from .few_queries import run as run_few
from .fused_kernel import in_transform, kernel_works
from .regions import ENDLESS, Region, regions_of, visible_distances
from .sdpa import attend_block as sdpa_block

# scores of one call beyond which "auto" spares them whatever it costs: half a GiB in float32, and several copies are held for a gradient
MANY_SCORES = 2**27
# where "auto" takes this backend on a CPU, by what is added: nothing but numbers by key, by distance too, or vectors. Without gradients: the number of keys from which on;
# with them: the number of scores of all samples and heads, which dense backends hold several times over. Made from benchmarks/crossovers.py, whose run is stored in
# benchmarks/results: where most kinds of encodings are as fast as elsewhere, or take half the memory and at most a quarter longer
CROSSOVERS = {"keys": (64, 2**19), "distances": (256, 2**21), "vectors": (512, 2**23)}

# share of the scores before a query above which leaving out far ones, for which the kernel's own causality must be given up, is no gain
WORTHWHILE = 0.7


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``."""
    reasons = []
    if in_transform():
        reasons.append("it is inside of torch.func or vmap, which need rules that its own passes have not")
    if call.need_weights:
        reasons.append("attention weights are asked for, which are quadratic in length")
    if call.row_maps:
        reasons.append("the encoding maps whole rows of scores")
    if call.mask.dense is not None:
        reasons.append("the mask is a dense tensor, quadratic in length already")
    return reasons


def suits(call: AttentionCall) -> bool:
    """Whether this is the backend to take where dense ones run too: on a CPU from ``CROSSOVERS`` on, and wherever scores are many.

    Blocks that are recomputed for their gradient take longer than dense scores that fit in memory; a compiler sees blocks only.
    """
    keys, on_cpu = call.key.shape[2], call.query.device.type == "cpu"
    if call.query.shape[2] <= FEW_QUERIES:
        return on_cpu
    plain = (call.mask.is_plain_causal or call.mask.hides_nothing) and call.query.shape[-1] == call.value.shape[-1]
    if plain and not (call.score_terms or call.value_terms or (call.dropout and on_cpu)):
        # PyTorch's own kernels hold no scores then
        return False
    scores = call.query.shape[0] * call.query.shape[1] * call.query.shape[2] * keys
    if scores > MANY_SCORES:
        return True
    if not on_cpu or torch.compiler.is_compiling():
        return False
    terms = (*call.score_terms, *call.value_terms)
    kind = "keys" if all(isinstance(term, KeyVector) for term in terms) else "distances"
    if not all(isinstance(term, (DistanceTable, KeyVector)) for term in terms):
        kind = "vectors"
    least_keys, least_scores = CROSSOVERS[kind]
    if not torch.is_grad_enabled():
        return keys >= least_keys
    return scores >= least_scores and all(isinstance(term, _BY_DISTANCE) for term in terms)


def run(call: AttentionCall) -> tuple[Tensor, None]:
    """Output ``[B, Tq, H, Dv]``; no weights."""
    if call.query.shape[2] <= FEW_QUERIES:
        return run_few(call), None
    output = _by_distance(call)
    if output is None:
        output = _by_blocks(call)
    return output.transpose(1, 2), None


_BY_DISTANCE = (DistanceTable, KeyVector, QueryBuckets, KeyBuckets, ValueBuckets)


@dataclass(frozen=True)
class _Vectors:
    """Vectors by distance that queries, keys or weights meet: distance number ``e`` has row ``clamp(e - start, 0, N - 1)`` of ``table`` ``[N, W]`` or ``[H, N, W]``.

    ``factor`` ``[B, H, T, W]`` is what meets them, None for weights.
    """

    met_by: Literal["query", "key", "weights"]
    start: int
    table: Tensor
    factor: Tensor | None


def _vectors(term: QueryBuckets | KeyBuckets | ValueBuckets, dtype: torch.dtype) -> _Vectors:
    """The term with a row for each distance between the clipped ones."""
    table, start = term.table.to(dtype), 0
    if term.bucket is not None:
        first, last = ((term.bucket != term.bucket[end]).nonzero()[:, 0] for end in (0, -1))
        # all distances in one bucket: its row stands for both ends
        start, stop = (int(first[0]) - 1, int(last[-1]) + 2) if len(first) else (0, 1)
        table = table[..., term.bucket[start:stop], :]
    if isinstance(term, ValueBuckets):
        return _Vectors("weights", start, table, None)
    if isinstance(term, KeyBuckets):
        return _Vectors("key", start, table, term.key.to(dtype))
    return _Vectors("query", start, table, term.query.to(dtype))


def _total(parts: list[Tensor], dtype: torch.dtype) -> Tensor | None:
    """The sum of broadcastable ``parts``, contiguous because the kernel reads masks in place only where their last stride is 1 or 0."""
    total: Tensor | None = None
    for part in parts:
        total = part.to(dtype) if total is None else total + part.to(dtype)
    return None if total is None else total.contiguous()


def _by_distance(call: AttentionCall) -> Tensor | None:
    """Output ``[B, H, Tq, Dv]``; None where the call is not of that kind."""
    positions, terms = call.mask.positions, (*call.score_terms, *call.value_terms)
    if positions.has_gaps or call.query.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    # the kernel's own causality is minus infinity before it scales
    if call.scale <= 0:
        return None
    if call.query.device.type != "cpu" or call.query.shape[-1] != call.value.shape[-1] or not kernel_works():
        return None
    # an encoding may have given its keys other slots than the mask's, with gaps
    if not all(isinstance(term, _BY_DISTANCE) and not term.positions.has_gaps for term in terms):
        return None
    regions = regions_of(call.mask, call.query.shape[0])
    if regions is None:
        return None
    offset = int(positions.query_start) - int(positions.key_start)
    given = call.query.dtype
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    vectors_by_key = [term for term in terms if isinstance(term, KeyVector)]
    columns = _total([term.values for term in vectors_by_key], dtype)
    rows = _total([term.rows for term in vectors_by_key if term.rows is not None], dtype)
    table = _total([term.table for term in terms if isinstance(term, DistanceTable)], dtype)
    vectors = [_vectors(term, dtype) for term in terms if isinstance(term, (QueryBuckets, KeyBuckets, ValueBuckets))]
    lowest, highest = visible_distances(call.mask)
    # left to the kernel: causality of its own kind, beside no bias or one by key
    own_causality = table is None and not vectors and not call.dropout and call.mask.window is None
    if not (own_causality and _square(regions, offset)) and (call.mask.causal or call.mask.window is not None):
        if table is None:
            table = torch.zeros(1, positions.num_distances, dtype=dtype, device=call.query.device)
        distances = positions.distances()
        table = table.masked_fill((distances < lowest) | (distances > highest), -torch.inf)

    inside = call.query.dtype
    if columns is not None and columns.requires_grad and torch.is_grad_enabled():
        # gradients of gates are sums over a whole text, in which what rounding leaves of each would add up
        inside = dtype
    # the kernel reads coordinates that lie side by side
    query, key, value = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (y.to(inside) for y in (call.query, call.key, call.value))
    )
    call = replace(call, query=query, key=key, value=value)
    # autocast would hand the kernel a rounded and therefore dense copy of the mask
    with torch.autocast("cpu", enabled=False):
        found = [_region(call, region, table, columns, rows, vectors, offset, lowest, highest) for region in regions]
    pieces = [piece for piece in found if piece is not None]
    if not pieces:
        return _nothing(call).to(given)
    if len(pieces) == 1 and pieces[0][1].shape[:3] == call.query.shape[:3]:
        return pieces[0][1].to(given)
    output = call.query.new_zeros(*call.query.shape[:3], call.value.shape[-1])
    for region, piece in pieces:
        output[region.samples, :, region.rows] = piece
    return output.to(given)


def _nothing(call: AttentionCall) -> Tensor:
    """The output where no query sees a key: zeros that pass zeros on as gradients."""
    everything = torch.ones((), dtype=torch.bool, device=call.query.device)
    zero = sum(x.masked_fill(everything, 0.0).sum() for x in (call.query, call.key, call.value))
    return call.query.new_zeros(*call.query.shape[:3], call.value.shape[-1]) + zero


def _square(regions: list[Region], offset: int) -> bool:
    """Whether causality is the kernel's own kind in every region: the first query stands at the first key, and there are as many."""
    return all(
        region.rows.start + offset == region.cols.start
        and region.rows.stop - region.rows.start == region.cols.stop - region.cols.start
        for region in regions
    )


def _region(
    call: AttentionCall,
    region: Region,
    table: Tensor | None,
    columns: Tensor | None,
    row_numbers: Tensor | None,
    vectors: list[_Vectors],
    offset: int,
    lowest: int,
    highest: int,
) -> tuple[Region, Tensor] | None:
    """Output of a region ``[b, H, rows, Dv]`` and the rows that it is for, without those that see no key of it."""
    samples, cols = region.samples, region.cols
    first = max(region.rows.start, cols.start + lowest - offset)
    last = min(region.rows.stop, cols.stop + highest - offset)
    if first >= last:
        return None
    region = replace(region, rows=slice(first, last))
    query = call.query[samples, :, first:last]
    key, value = call.key[samples, :, cols], call.value[samples, :, cols]
    if columns is not None:
        columns = columns[samples if columns.shape[0] > 1 else slice(0, 1), :, cols].expand(*query.shape[:2], -1)
    if row_numbers is not None:
        row_numbers = row_numbers[samples if row_numbers.shape[0] > 1 else slice(0, 1), :, first:last].expand(
            *query.shape[:2], -1
        )
    # distances of the region: entry i + j' for the local query i and the key j' counted from the region's end
    start = first - cols.stop + call.mask.positions.num_keys
    zero = cols.stop - 1 - first - offset
    shape = Shape(call.scale, call.dropout, zero + lowest, zero + highest)
    if table is None:
        shape = replace(shape, low=-ENDLESS, high=ENDLESS)
    else:
        table = table[:, start : start + query.shape[2] + key.shape[2] - 1].expand(query.shape[1], -1)
    if vectors or call.dropout or (table is not None and columns is not None):
        bare = not any(isinstance(term, DistanceTable) for term in call.score_terms)
        kinds = tuple((part.met_by, part.start - start) for part in vectors)
        flat: list[Tensor | None] = []
        for part in vectors:
            places = {"query": slice(first, last), "key": cols, "weights": slice(0)}[part.met_by]
            flat += [None if part.factor is None else part.factor[samples, :, places], part.table]
        seed = int(torch.randint(2**62, ())) if call.dropout else 0
        shape = replace(shape, bare=bare and bool(kinds), kinds=kinds, seed=seed)
        return region, TermAttention.apply(query, key, value, table, columns, row_numbers, shape, *flat)
    if table is not None:
        return region, _with_table(query, key, value, table, shape)
    if columns is not None:
        return region, _with_columns(query, key, value, columns, row_numbers, call.mask.causal, call.scale)
    output = scaled_dot_product_attention(
        query, key, value, is_causal=call.mask.causal, scale=call.scale, enable_gqa=bool(call.groups > 1)
    )
    return region, output


def _with_table(query: Tensor, key: Tensor, value: Tensor, table: Tensor, shape: Shape) -> Tensor:
    """A region's output where a number for each distance is all that is added, runs of heads together that reach about as far."""
    groups, keys = query.shape[1] // key.shape[1], key.shape[2]
    if bool(blind_rows(table, keys).any()):
        return TermAttention.apply(query, key, value, table, None, None, shape)
    table = without_far(table, query, key, value, shape.scale)
    first, last = visible_entries(table)
    runs = alike([stop - start + 1 for start, stop in zip(first, last, strict=True)], groups)
    learned = torch.is_grad_enabled() and table.requires_grad
    outputs = []
    for run, q, k, v, entries in zip(
        runs,
        split_heads(query, runs),
        split_heads(key, runs, groups),
        split_heads(value, runs, groups),
        split_heads(table[None], runs),
        strict=True,
    ):
        own = replace(shape, low=max(shape.low, min(first[run])), high=min(shape.high, max(last[run])))
        if learned:
            outputs.append(TermAttention.apply(q, k, v, entries[0], None, None, own))
        else:
            plan = distance_plan(entries[0].detach(), query_blocks(query.shape[2], keys, own), shape.scale)
            outputs.append(KernelAttention.apply(q, k.flip(2), v.flip(2), None, None, plan))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def _with_columns(
    query: Tensor, key: Tensor, value: Tensor, columns: Tensor, rows: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """A region's output where a number for each key is all that is added; where keys are hidden from queries before them, as many of them as of queries."""
    groups, keys = query.shape[1] // key.shape[1], key.shape[2]
    if not causal or not may_fall(columns):
        plan = key_plan(columns.detach(), query.shape[2], causal, scale)
        return KernelAttention.apply(query, key, value, columns, rows, plan)
    fall = fall_needed(query, key, value, scale)
    starts = first_near_keys(columns, fall, SMALLEST_BLOCK).amin(0)
    ends = torch.arange(1, starts.shape[-1] + 1) * SMALLEST_BLOCK
    costs = ((ends.clamp(max=keys) - starts) * SMALLEST_BLOCK).sum(-1)
    runs = alike(costs.tolist(), groups)
    outputs = []
    for run, q, k, v, own, own_rows in zip(
        runs,
        split_heads(query, runs),
        split_heads(key, runs, groups),
        split_heads(value, runs, groups),
        split_heads(columns, runs),
        [None] * len(runs) if rows is None else split_heads(rows, runs),
        strict=True,
    ):
        plan = key_plan(own.detach(), query.shape[2], causal, scale)
        if int(costs[run].max()) < WORTHWHILE * keys * keys / 2:
            plan = near_plan(own.detach(), starts[run].amin(0).tolist(), fall[:, run], SMALLEST_BLOCK, scale)
        outputs.append(KernelAttention.apply(q, k, v, own, own_rows, plan))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]


def _by_blocks(call: AttentionCall) -> Tensor:
    """Output ``[B, H, Tq, Dv]`` from blocks of queries, each with the keys that some of its queries see."""
    positions, (lowest, highest) = call.mask.positions, visible_distances(call.mask)
    batch, heads, queries = call.query.shape[:3]
    keys = call.key.shape[2]
    size = max(16, min(queries, MOST_ELEMENTS // max(1, batch * heads * keys)))
    offset = None
    if not positions.has_gaps and isinstance(positions.query_start, int) and isinstance(positions.key_start, int):
        offset = positions.query_start - positions.key_start
    learning = torch.is_grad_enabled()
    outputs, blind = [], 0
    for first in range(0, queries, size):
        rows, cols = slice(first, min(first + size, queries)), slice(0, keys)
        if offset is not None:
            start, stop = rows.start + offset - highest, rows.stop + offset - lowest
            cols = slice(min(max(0, start), keys), max(0, min(keys, stop)))
        parts = (call.query[:, :, rows], call.key[:, :, cols], call.value[:, :, cols])
        if cols.start >= cols.stop:
            blind += 1
            outputs.append(parts[0].new_zeros(*parts[0].shape[:3], call.value.shape[-1]))
        elif learning:
            outputs.append(checkpoint(_block, call, *parts, rows, cols, use_reentrant=False))
        else:
            outputs.append(_block(call, *parts, rows, cols))
    return torch.cat(outputs, dim=2) if blind < len(outputs) else _nothing(call)


def _block(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, rows: slice, cols: slice) -> Tensor:
    # with a mask that learns, or dropout, the fused kernel would take the same way and more memory
    if call.value_terms or call.dropout or torch.is_grad_enabled():
        return eager_block(call, query, key, value, rows, cols)[0]
    return sdpa_block(call, query, key, value, rows, cols)
