"""Attention with relative positions in memory linear in length, gradients included, in plain PyTorch.

*Distances.* When all that is added is a number for each head and distance, it is one table ``w[h, i - j]`` of ``Tq + Tk - 1`` numbers. With keys and values
reversed, ``j = Tk - 1 - j'``, the bias is ``w[h, i + j' - (Tk - 1)]``: a Hankel matrix, every row the one above it shifted by one element, and so a strided
view of the table that the fused kernel takes for its mask without copying it. What is causal or out of a window is minus infinity in the table, and
queries go in blocks that leave out the keys which none of them sees. Padding at the ends and packed documents become ranges of keys, by sample.

*Gradient of the table.* The kernel's own backward pass has none for its mask. :class:`_TableAttention` recomputes the scores in tiles from the kernel's
logsumexp; the gradient of a score is then written into a buffer whose rows are one element longer than a tile's, so that one diagonal is one column,
and summed over rows: no atomic adds, the same bits in every run. A bias by key alone (gates) takes the same path, as sums over columns.

*Everything else* is computed in blocks of queries from ``term.tile``, each recomputed for its gradient, by the dense backends' own code.

A handful of queries over a long cache is another matter (``few_queries.py``).
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..encodings.terms import DistanceTable, KeyVector
from .call import AttentionCall, Mask
from .eager import attend_block as eager_block
from .few_queries import FEW_QUERIES
from .few_queries import run as run_few
from .sdpa import attend_block as sdpa_block

# queries of one call of the kernel, where blocks pay: 8 of them, but never below its own tile
BLOCKS, SMALLEST_BLOCK = 8, 256
# tile of the own backward pass, and elements of the largest temporary: allocations beyond 32 MiB are returned to the system each time
TILE_ROWS, TILE_COLS = 256, 512
MOST_ELEMENTS = 2**22

# scores of one call beyond which "auto" spares them whatever it costs: half a GiB in float32, and several copies are held for a gradient
MANY_SCORES = 2**27

ENDLESS = 2**62


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``."""
    reasons = []
    if call.need_weights:
        reasons.append("attention weights are asked for, which are quadratic in length")
    if call.row_maps:
        reasons.append("the encoding maps whole rows of scores")
    if call.mask.dense is not None:
        reasons.append("the mask is a dense tensor, quadratic in length already")
    return reasons


def suits(call: AttentionCall) -> bool:
    """Whether this is the backend to take where dense ones run too: for distances on a CPU, for what is not learned, and where scores are many.

    Blocks that are recomputed for their gradient take longer than dense scores that fit in memory.
    """
    if call.query.shape[2] <= FEW_QUERIES:
        return call.query.device.type == "cpu"
    scores = call.query.shape[0] * call.query.shape[1] * call.query.shape[2] * call.key.shape[2]
    if scores > MANY_SCORES:
        return True
    if call.query.device.type != "cpu":
        return False
    kinds = {type(term) for term in call.score_terms}
    by_distance = kinds <= {DistanceTable} or kinds == {KeyVector}
    return (by_distance and not call.value_terms and not call.dropout) or not torch.is_grad_enabled()


def run(call: AttentionCall) -> tuple[Tensor, None]:
    """Output ``[B, Tq, H, Dv]``; no weights."""
    if call.query.shape[2] <= FEW_QUERIES:
        return run_few(call), None
    output = _by_distance(call)
    if output is None:
        output = _by_blocks(call)
    return output.transpose(1, 2), None


@dataclass(frozen=True)
class _Region:
    """Samples, queries and keys of which every query sees every key, but for what is causal or out of the window."""

    samples: slice
    rows: slice
    cols: slice


def _by_distance(call: AttentionCall) -> Tensor | None:
    """Output ``[B, H, Tq, Dv]``; None where the call is not of that kind."""
    positions = call.mask.positions
    if call.value_terms or call.dropout or positions.has_gaps or call.query.is_meta or torch.compiler.is_compiling():
        return None
    if call.query.device.type != "cpu" or call.query.shape[-1] != call.value.shape[-1] or not _kernel_works():
        return None
    tables = [term for term in call.score_terms if isinstance(term, DistanceTable)]
    vectors = [term for term in call.score_terms if isinstance(term, KeyVector)]
    if len(tables) + len(vectors) < len(call.score_terms) or (tables and vectors):
        return None
    # an encoding may have given its keys other slots than the mask's, with gaps
    if any(term.positions.has_gaps for term in tables):
        return None
    regions = _regions(call.mask, call.query.shape[0])
    if regions is None:
        return None
    offset = int(positions.query_start) - int(positions.key_start)
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    bias: Tensor | None = None
    for vector in vectors:
        bias = vector.values.to(dtype) if bias is None else bias + vector.values.to(dtype)
    table: Tensor | None = None
    for term in tables:
        table = term.table.to(dtype) if table is None else table + term.table.to(dtype)
    # the kernel reads masks in place only where their last stride is 1 or 0
    bias = None if bias is None else bias.contiguous()
    table = None if table is None else table.contiguous()
    lowest, highest = _visible_distances(call.mask)
    square = _square(call, regions, offset)
    if table is None and (call.mask.window is not None or (call.mask.causal and not square)):
        if bias is not None:
            return None
        table = torch.zeros(1, positions.num_distances, dtype=dtype, device=call.query.device)
    if table is not None and (call.mask.causal or call.mask.window is not None):
        distances = positions.distances()
        table = table.masked_fill((distances < lowest) | (distances > highest), -torch.inf)

    call = replace(call, key=call.key.to(call.query.dtype), value=call.value.to(call.query.dtype))
    # autocast would hand the kernel a rounded and therefore dense copy of the mask
    with torch.autocast("cpu", enabled=False):
        found = [_region(call, region, table, bias, offset, lowest, highest) for region in regions]
    pieces = [piece for piece in found if piece is not None]
    if len(pieces) == 1 and pieces[0][1].shape[:3] == call.query.shape[:3]:
        return pieces[0][1]
    output = call.query.new_zeros(*call.query.shape[:3], call.value.shape[-1])
    for region, piece in pieces:
        output[region.samples, :, region.rows] = piece
    return output


def _visible_distances(mask: Mask) -> tuple[int, int]:
    """The smallest and largest distance ``i - j`` that the mask allows."""
    reach = ENDLESS if mask.window is None else mask.window - 1
    return (0 if mask.causal else -reach), reach


def _square(call: AttentionCall, regions: list[_Region], offset: int) -> bool:
    """Whether causality is the kernel's own kind in every region: the first query stands at the first key, and there are as many."""
    return all(
        region.rows.start + offset == region.cols.start
        and region.rows.stop - region.rows.start == region.cols.stop - region.cols.start
        for region in regions
    )


def _regions(mask: Mask, batch: int) -> list[_Region] | None:
    """The regions of a call, one for all samples where they agree; None where padding or documents have holes."""
    rows, cols = slice(0, mask.positions.num_queries), slice(0, mask.positions.num_keys)
    if mask.key_padding is None and mask.key_documents is None:
        return [_Region(slice(0, batch), rows, cols)]
    by_sample: list[list[tuple[slice, slice]]] = []
    for b in range(batch):
        inside = cols
        if mask.key_padding is not None:
            shown = mask.key_padding[b].nonzero()[:, 0]
            if not len(shown):
                by_sample.append([])
                continue
            inside = slice(int(shown[0]), int(shown[-1]) + 1)
            if inside.stop - inside.start != len(shown):
                return None
        if mask.key_documents is None or mask.query_documents is None:
            by_sample.append([(rows, inside)])
            continue
        keys, queries = _runs(mask.key_documents[b, inside]), _runs(mask.query_documents[b])
        if any(len({name for name, _, _ in runs}) < len(runs) for runs in (keys, queries)):
            return None
        places = {name: slice(inside.start + first, inside.start + last) for name, first, last in keys}
        by_sample.append([(slice(a, z), places[name]) for name, a, z in queries if name in places])
    if all(parts == by_sample[0] for parts in by_sample):
        return [_Region(slice(0, batch), *part) for part in by_sample[0]]
    return [_Region(slice(b, b + 1), *part) for b, parts in enumerate(by_sample) for part in parts]


def _runs(ids: Tensor) -> list[tuple[int, int, int]]:
    """Value, start and end of each run of equal numbers."""
    values, counts = torch.unique_consecutive(ids, return_counts=True)
    ends = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *ends[:-1]], ends, strict=True))


def _region(
    call: AttentionCall,
    region: _Region,
    table: Tensor | None,
    bias: Tensor | None,
    offset: int,
    lowest: int,
    highest: int,
) -> tuple[_Region, Tensor] | None:
    """Output of a region ``[b, H, rows, Dv]`` and the rows that it is for, without those that see no key of it."""
    cols, num_keys = region.cols, call.mask.positions.num_keys
    first = max(region.rows.start, cols.start + lowest - offset)
    last = min(region.rows.stop, cols.stop + highest - offset)
    if first >= last:
        return None
    region = replace(region, rows=slice(first, last))
    query = call.query[region.samples, :, first:last]
    key, value = call.key[region.samples, :, cols], call.value[region.samples, :, cols]
    if table is None:
        causal, mask = call.mask.causal, None
        if bias is not None:
            columns = bias[region.samples if bias.shape[0] > 1 else slice(0, 1), :, cols].expand(*query.shape[:2], -1)
            if bias.requires_grad and torch.is_grad_enabled():
                return region, _TableAttention.apply(query, key, value, None, columns, call.scale, causal, 0, ENDLESS)
            mask = columns.detach()[:, :, None].expand(-1, -1, query.shape[2], -1)
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=call.scale, enable_gqa=call.groups > 1
        )
        return region, output
    # local table: entry i' + j' for the local query i' and the key j' counted from the region's end
    start = first - (cols.stop - 1) + num_keys - 1
    table = table[:, start : start + (last - first) + (cols.stop - cols.start) - 1].expand(query.shape[1], -1)
    zero = -(first + offset - (cols.stop - 1))
    low, high = zero + max(lowest, -ENDLESS), zero + min(highest, ENDLESS)
    blind = _blind_rows(table, cols.stop - cols.start)
    hidden = bool(blind.any())
    if hidden or (table.requires_grad and torch.is_grad_enabled()):
        return region, _TableAttention.apply(query, key, value, table, None, call.scale, False, low, high)
    key, value, table = key.flip(2), value.flip(2), table.detach()
    parts = [
        scaled_dot_product_attention(
            query[:, :, a:z],
            key[:, :, c:d],
            value[:, :, c:d],
            attn_mask=_hankel(table, a, z, c, d)[None],
            scale=call.scale,
            enable_gqa=call.groups > 1,
        )
        for a, z, c, d in _query_blocks(query.shape[2], key.shape[2], low, high)
    ]
    return region, parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _blind_rows(table: Tensor, keys: int) -> Tensor:
    """Rows of the Hankel matrix of ``table`` that hold nothing but minus infinity, ``[H, rows]``."""
    seen = pad((table.detach() > -torch.inf).long().cumsum(-1), (1, 0))
    return seen[:, keys:] == seen[:, :-keys]


def _hankel(table: Tensor, first: int, last: int, start: int, stop: int) -> Tensor:
    """Rows ``first .. last - 1`` and columns ``start .. stop - 1`` of the Hankel matrix of ``table`` ``[H, L]``: a view."""
    return table[:, first + start : last + stop - 1].unfold(-1, stop - start, 1)


def _query_blocks(queries: int, keys: int, low: int, high: int) -> list[tuple[int, int, int, int]]:
    """Blocks of queries ``a .. z - 1`` and the reversed keys ``c .. d - 1`` that some of them see, entries ``low .. high`` of the table being visible."""
    if low <= 0 and high >= queries + keys - 2:
        return [(0, queries, 0, keys)]
    size = max(SMALLEST_BLOCK, -(-queries // BLOCKS))
    blocks = []
    for a in range(0, queries, size):
        z = min(a + size, queries)
        blocks.append((a, z, max(0, low - (z - 1)), min(keys, high - a + 1)))
    return blocks


def _flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The fused CPU kernel's output and logsumexp ``[B, H, Tq]``."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, logsumexp = flash(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    return output, logsumexp


@cache
def _kernel_works() -> bool:
    """Whether this PyTorch's kernel, an internal operator, takes strided masks, also with its own causality, and returns what is meant here."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        query, key, value = (torch.randn(1, 2, 9, 8, generator=generator, dtype=torch.float64) for _ in range(3))
        table = torch.randn(2, 17, generator=generator, dtype=torch.float64)
        columns = torch.randn(1, 2, 1, 9, generator=generator, dtype=torch.float64).expand(-1, -1, 9, -1)
        causal = torch.ones(9, 9, dtype=torch.bool).tril()
        try:
            for mask, is_causal in ((_hankel(table, 0, 9, 0, 9)[None], False), (columns, True)):
                scores = query @ key.mT * 0.3 + mask
                if is_causal:
                    scores = scores.masked_fill(~causal, -torch.inf)
                output, logsumexp = _flash(query, key, value, mask, is_causal, 0.3)
                fused = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=0.3)
                expected = scores.softmax(-1) @ value
                for ours, theirs in (
                    (output, expected),
                    (fused, expected),
                    (logsumexp, scores.logsumexp(-1)),
                ):
                    if not torch.allclose(ours, theirs, rtol=0, atol=1e-12):
                        return False
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
    return True


class _TableAttention(torch.autograd.Function):
    """Attention with a learned bias: ``table`` ``[H, Tq + Tk - 1]`` by distance, or ``columns`` ``[B, H, Tk]`` by key.

    Entries ``low .. high`` of the table are visible, the others minus infinity; ``causal`` (with ``columns``) as the kernel has it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor | None,
        columns: Tensor | None,
        scale: float,
        causal: bool,
        low: int,
        high: int,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        wide_key, wide_value = _per_head(key, groups), _per_head(value, groups)
        if table is None:
            assert columns is not None
            mask = columns[:, :, None].expand(-1, -1, query.shape[2], -1)
            output, logsumexp = _flash(query, wide_key, wide_value, mask, causal, scale)
        else:
            back_key, back_value = wide_key.flip(2), wide_value.flip(2)
            parts = [
                _flash(
                    query[:, :, a:z],
                    back_key[:, :, c:d],
                    back_value[:, :, c:d],
                    _hankel(table, a, z, c, d)[None],
                    False,
                    scale,
                )
                for a, z, c, d in _query_blocks(query.shape[2], key.shape[2], low, high)
            ]
            output = torch.cat([part for part, _ in parts], dim=2) if len(parts) > 1 else parts[0][0]
            logsumexp = torch.cat([part for _, part in parts], dim=2) if len(parts) > 1 else parts[0][1]
            blind = _blind_rows(table, key.shape[2])
            if bool(blind.any()):
                output = output.masked_fill(blind[None, ..., None], 0.0)
                logsumexp = logsumexp.masked_fill(blind[None], torch.inf)
        ctx.save_for_backward(query, key, value, table, columns, output, logsumexp)
        ctx.settings = (scale, causal, low, high)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, table, columns, output, logsumexp = ctx.saved_tensors
        scale, causal, low, high = ctx.settings
        dtype = logsumexp.dtype
        groups = query.shape[1] // key.shape[1]
        queries, keys = query.shape[2], key.shape[2]
        delta = (gradient.to(dtype) * output.to(dtype)).sum(-1, keepdim=True)
        # key order of the table's view: reversed, so that a bias entry is i' + j'
        turn = (lambda x: x.flip(2)) if table is not None else (lambda x: x)
        all_key, all_value = turn(key.to(dtype)), turn(value.to(dtype))
        grad_query = torch.zeros(query.shape, dtype=dtype, device=query.device)
        grad_key, grad_value = torch.zeros_like(all_key), torch.zeros_like(all_value)
        grad_table = None if table is None else torch.zeros_like(table)
        grad_columns = None if columns is None else torch.zeros_like(columns)

        batch = query.shape[0]
        heads = max(1, min(query.shape[1], MOST_ELEMENTS // (batch * TILE_ROWS * TILE_COLS * 2)))
        while query.shape[1] % heads or (heads % groups and groups % heads):
            heads -= 1
        for h in range(0, query.shape[1], heads):
            span = slice(h, h + heads)
            # heads of a chunk are whole groups, or part of one
            kv = slice(h // groups, max(h // groups + 1, (h + heads) // groups))
            q, g = query[:, span].to(dtype) * scale, gradient[:, span].to(dtype)
            k, v = (_per_head(x[:, kv], min(groups, heads)) for x in (all_key, all_value))
            for a in range(0, queries, TILE_ROWS):
                z = min(a + TILE_ROWS, queries)
                q_tile, g_tile = q[:, :, a:z], g[:, :, a:z]
                lse, dot = logsumexp[:, span, a:z, None], delta[:, span, a:z]
                first, stop = 0, keys
                if table is not None:
                    first, stop = max(0, low - (z - 1)), min(keys, high - a + 1)
                elif causal:
                    stop = min(keys, z)
                for c in range(first, stop, TILE_COLS):
                    d = min(c + TILE_COLS, stop)
                    k_tile, v_tile = k[:, :, c:d], v[:, :, c:d]
                    scores = q_tile @ k_tile.mT
                    if table is not None:
                        scores += _hankel(table[span], a, z, c, d)
                    else:
                        scores += columns[:, span, None, c:d]
                        if causal and d > a:
                            i = torch.arange(a, z, device=query.device)[:, None]
                            scores.masked_fill_(i < torch.arange(c, d, device=query.device), -torch.inf)
                    weights = scores.sub_(lse).exp_()
                    change = (g_tile @ v_tile.mT).sub_(dot)
                    if grad_table is not None:
                        wide = d - c + z - a
                        skewed = change.new_zeros(*change.shape[:3], wide)
                        change = torch.mul(weights, change, out=_diagonals_as_columns(skewed, d - c))
                        grad_table[span, a + c : z + d - 1] += skewed.sum(dim=(0, 2))[:, :-1]
                    else:
                        change = change.mul_(weights)
                        assert grad_columns is not None
                        grad_columns[:, span, c:d] += change.sum(2)
                    grad_query[:, span, a:z] += change @ k_tile
                    grad_key[:, kv, c:d] += _per_group(change.mT @ q_tile, min(groups, heads))
                    grad_value[:, kv, c:d] += _per_group(weights.mT @ g_tile, min(groups, heads))
        return (
            (grad_query * scale).to(query.dtype),
            turn(grad_key).to(key.dtype),
            turn(grad_value).to(value.dtype),
            grad_table,
            grad_columns,
            None,
            None,
            None,
            None,
        )


def _per_head(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _per_group(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)


def _diagonals_as_columns(buffer: Tensor, columns: int) -> Tensor:
    """A view ``[..., R, columns]`` of ``buffer`` ``[..., R, R + columns]`` whose row r starts at column r: element (r, c) lies in column r + c."""
    *outer, rows, width = buffer.shape
    strides = buffer.stride()
    return buffer.as_strided((*outer, rows, columns), (*strides[:-2], width + 1, 1))


def _by_blocks(call: AttentionCall) -> Tensor:
    """Output ``[B, H, Tq, Dv]`` from blocks of queries, each with the keys that some of its queries see."""
    positions, (lowest, highest) = call.mask.positions, _visible_distances(call.mask)
    batch, heads, queries = call.query.shape[:3]
    keys = call.key.shape[2]
    size = max(16, min(queries, MOST_ELEMENTS // (batch * heads * keys)))
    offset = None
    if not positions.has_gaps and isinstance(positions.query_start, int) and isinstance(positions.key_start, int):
        offset = positions.query_start - positions.key_start
    learning = torch.is_grad_enabled()
    outputs = []
    for first in range(0, queries, size):
        rows, cols = slice(first, min(first + size, queries)), slice(0, keys)
        if offset is not None:
            start, stop = rows.start + offset - highest, rows.stop + offset - lowest
            cols = slice(min(max(0, start), keys), max(0, min(keys, stop)))
        parts = (call.query[:, :, rows], call.key[:, :, cols], call.value[:, :, cols])
        if cols.start >= cols.stop:
            outputs.append(parts[0].new_zeros(*parts[0].shape[:3], call.value.shape[-1]))
        elif learning:
            outputs.append(checkpoint(_block, call, *parts, rows, cols, use_reentrant=False))
        else:
            outputs.append(_block(call, *parts, rows, cols))
    return torch.cat(outputs, dim=2)


def _block(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor, rows: slice, cols: slice) -> Tensor:
    # with a mask that learns, or dropout, the fused kernel would take the same way and more memory
    if call.value_terms or call.dropout or torch.is_grad_enabled():
        return eager_block(call, query, key, value, rows, cols)[0]
    return sdpa_block(call, query, key, value, rows, cols)
