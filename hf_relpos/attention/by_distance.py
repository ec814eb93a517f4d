"""Attention of a region with what is added by distance, and its gradients, without a tensor of all scores.

*Distances.* A number for each head and distance is one table ``w[h, i - j]`` of ``Tq + Tk - 1`` numbers. With keys and values reversed, ``j = Tk - 1 - j'``, the
bias is ``w[h, i + j' - (Tk - 1)]``: a Hankel matrix, every row the one above it shifted by one element, and so a strided view of the table that the fused
kernel takes for its mask without copying it. What is causal or out of a window is minus infinity in the table, and queries go in blocks that leave out the
keys which none of them sees.

*Vectors by distance* that queries meet, ``q_i . r[i - j]``, are computed for a block of queries as one product with all distances of the block, and that
product, whose row i starts at distance ``i``, is again a mask by its strides alone. What keys meet is the same with the roles changed, added tile by tile.

*Far keys.* Beyond the last row of a clipped table all distances share it, so that ``q_i . r`` is one number for a query: softmax over far keys alone does not see it. They
go through the kernel without that bias, and the parts are put together by their logsumexp, to which the number is added.

*Gradients.* The kernel's own backward pass has none for its mask. :class:`TermAttention` recomputes the scores in tiles from the logsumexp, which enters the product
as one more feature. The gradient of a score is written into a buffer whose rows are shifted as the bias is, so that one distance is one column: its
column sums are the table's gradient, and its products with the vectors and the queries are theirs. No atomic adds: the same bits in every run.

*Weights that are needed* (dropout, vectors added to the values) are computed for a block of queries and again for the gradient, dropout from its seed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .fused_kernel import flash, hankel, per_head, refuse_second_gradient

# queries of one call of the kernel, where blocks pay: 8 of them, or as many queries as one sees keys, but never below its own tile
BLOCKS, SMALLEST_BLOCK = 8, 256
# tile of the own backward pass; of what keys meet, a narrower one wastes less on distances that do not occur
TILE_ROWS, TILE_COLS, KEY_TILE_COLS = 256, 512, 128
# far keys that are worth a call of their own
FAR_COLS = 256
# elements of a block's scores for one head, which shortens blocks where keys are many
MOST_ELEMENTS = 2**22
# elements of what a chunk of heads adds to a block's scores: what is used again and again then stays near the cores, and adds little to the peak of memory
CHUNK_ELEMENTS = 2**20
# weights of less than 2 to this power are 0, where a bias goes below what is called deep
LOG2_E, LEAST_EXPONENT, DEEP = math.log2(math.e), -100.0, -40.0


@dataclass(frozen=True)
class Shape:
    """What a region's attention is told beside tensors: entries ``low .. high`` of the distances are visible; ``bare``: a table says no
    more than that; ``kinds``: by what each table of vectors is met, and its ``start``; the seed of dropout."""

    scale: float
    dropout: float
    low: int
    high: int
    bare: bool = False
    kinds: tuple[tuple[str, int], ...] = ()
    seed: int = 0

    @property
    def told_apart(self) -> bool:
        """Whether far keys, of which vectors by distance say one thing only, go through the kernel by themselves."""
        return self.bare and not self.dropout

    @property
    def share_kept(self) -> float:
        """The share of the weights that dropout leaves, of which it knows 65,536 steps."""
        return 1 - self.steps_dropped / 65536

    @property
    def steps_dropped(self) -> int:
        """The share that dropout takes, in steps, of which one at least is left."""
        return min(round(self.dropout * 65536), 65535)


def blind_rows(table: Tensor, keys: int) -> Tensor:
    """Rows of the Hankel matrix of ``table`` that hold nothing but minus infinity, ``[H, rows]``."""
    seen = pad((table.detach() > -torch.inf).long().cumsum(-1), (1, 0))
    return seen[:, keys:] == seen[:, :-keys]


def query_blocks(queries: int, keys: int, shape: Shape, size: int | None = None) -> list[tuple[int, int, int, int]]:
    """Blocks of queries ``a .. z - 1`` and the reversed keys ``c .. d - 1`` that some of them see, of ``size`` queries or as suits the kernel."""
    if size is None:
        if shape.low <= 0 and shape.high >= queries + keys - 2:
            return [(0, queries, 0, keys)]
        # no more than what a query sees, or most of a block's scores are of keys that few of its queries see
        size = max(SMALLEST_BLOCK, min(-(-queries // BLOCKS), shape.high - shape.low + 1))
    blocks = []
    for a in range(0, queries, size):
        z = min(a + size, queries)
        blocks.append((a, z, max(0, shape.low - (z - 1)), min(keys, shape.high - a + 1)))
    return blocks


def _shifted(buffer: Tensor, columns: int) -> Tensor:
    """A view ``[N, R, columns]`` of contiguous ``buffer`` ``[N, R, R + columns - 1]`` whose row r starts at column r: element (r, c) lies in column r + c."""
    _, rows, width = buffer.shape
    return buffer.as_strided((buffer.shape[0], rows, columns), (rows * width, width + 1, 1))


class _Span:
    """Distances ``first .. first + count - 1`` of a block against a table whose row 0 serves all before ``start`` and whose last row all beyond it."""

    def __init__(self, table: Tensor, start: int, first: int, count: int):
        self.table, self.count = table, count
        # columns before `left` have row 0, those from `right` on the last row
        self.left = min(max(start - first, 0), count)
        self.right = max(min(start + table.shape[-2] - first, count), self.left)
        self.rows = slice(self.left + first - start, self.right + first - start) if self.right > self.left else slice(0)

    @classmethod
    def far(cls, table: Tensor, end: int) -> "_Span":
        """All distances beyond one end of the table, 0 or -1, as one."""
        return cls(table, 1, 0, 1) if end == 0 else cls(table, -table.shape[-2], 0, 1)

    @property
    def near(self) -> bool:
        """Whether any distance has a row of its own."""
        return self.right > self.left

    def met(self, factor: Tensor, base: Tensor | None) -> Tensor:
        """``base + factor_r . row(e)`` for each row of ``factor`` ``[N, R, W]`` and each distance: ``[N, R, count]``, contiguous."""
        outer = factor.shape[:2]
        if self.right - self.left == self.count:
            near = self.table[..., self.rows, :].mT
            return factor @ near if base is None else torch.baddbmm(base, factor, near.expand(outer[0], -1, -1))
        values = factor.new_empty(*outer, self.count)
        if base is None:
            base = factor.new_zeros(1, 1, self.count)
        for place, row in self._ends():
            # written by an addition because a copy that repeats its last axis is slow
            torch.add(base[..., place], factor @ self.table[..., row, :].mT, out=values[..., place])
        if self.near:
            place = slice(self.left, self.right)
            torch.add(base[..., place], factor @ self.table[..., self.rows, :].mT, out=values[..., place])
        return values

    def summed(self, weights: Tensor) -> Tensor:
        """``sum_e weights[r, e] row(e)``: ``[N, R, W]`` from ``weights`` ``[N, R, count]``."""
        total = weights[..., self.left : self.right] @ self.table[..., self.rows, :]
        for place, row in self._ends():
            total += weights[..., place].sum(-1, keepdim=True) * self.table[..., row, :]
        return total

    def collect(self, weights: Tensor, factor: Tensor, into: Tensor) -> None:
        """Add ``sum_r weights[r, e] factor_r`` to the row of each distance in ``into`` ``[heads | 1, rows, W]``, for all samples of a head."""
        pieces = [(weights[..., self.left : self.right].mT @ factor, self.rows)] if self.near else []
        pieces += [(weights[..., place].sum(-1, keepdim=True).mT @ factor, row) for place, row in self._ends()]
        for piece, rows in pieces:
            into[:, rows] += piece.unflatten(0, (-1, into.shape[0])).sum(0)

    def _ends(self) -> Iterator[tuple[slice, slice]]:
        """The distances beyond either end of the table, and the row that serves them."""
        if self.left:
            yield slice(0, self.left), slice(0, 1)
        if self.right < self.count:
            yield slice(self.right, None), slice(self.table.shape[-2] - 1, None)


class _Room:
    """Memory for one tensor after another."""

    def __init__(self, dtype: torch.dtype):
        self.flat = torch.empty(0, dtype=dtype)
        self.shape: tuple[int, ...] = ()

    def zeros(self, *shape: int) -> Tensor:
        """A tensor to be written through :func:`_shifted`, its view as a whole: if the last one had the same shape, what lies beside the view is zero still."""
        size = math.prod(shape)
        if self.flat.numel() < size:
            self.flat = self.flat.new_zeros(size)
        elif self.shape != shape:
            self.flat[:size].zero_()
        self.shape = shape
        return self.flat[:size].view(shape)

    def empty(self, *shape: int) -> Tensor:
        """A tensor to be written as a whole."""
        size = math.prod(shape)
        if self.flat.numel() < size:
            self.flat = self.flat.new_empty(size)
        return self.flat[:size].view(shape)


class _Rooms:
    """What the tiles of a backward pass are written into: gradients of scores and weights by distance, weights and gradients of scores of one tile."""

    def __init__(self, dtype: torch.dtype):
        self.changes, self.seen, self.weights, self.change = (_Room(dtype) for _ in range(4))


@dataclass
class _Part:
    """A chunk of samples and heads, flattened to ``N``: its share of what is added, and of the gradients being gathered."""

    table: Tensor | None
    columns: Tensor | None
    kinds: tuple[tuple[str, int], ...]
    factors: list[Tensor]
    tables: list[Tensor]

    def terms(self, met_by: str) -> list[tuple[int, Tensor, Tensor, int]]:
        """Number, factor, table and start of the vectors that are met by one kind of thing."""
        pairs = zip(self.kinds, self.factors, self.tables, strict=True)
        return [(n, f, t, start) for n, ((kind, start), f, t) in enumerate(pairs) if kind == met_by]

    def segments(self, a: int, z: int, c: int, d: int, shape: Shape) -> Iterator[tuple[int, int, int | None]]:
        """The keys of a block in up to three runs: those for which every query's distance lies beyond the first row of every table of vectors (0), those near
        (None), those beyond the last row (-1). Far ones are told apart where they are many, all visible, and near ones are to
        every query as well."""
        first, last = c, d
        if shape.told_apart:
            edges = [
                (start, start + table.shape[-2] - 1) for (_, start), table in zip(self.kinds, self.tables, strict=True)
            ]
            first = min(start for start, _ in edges) - (z - 1) + 1
            last = max(stop for _, stop in edges) - a
            if first - c < FAR_COLS or a + c < shape.low or z + first - 1 > shape.high:
                first = c
            if d - last < FAR_COLS or a + last - 1 < shape.low or z + d - 2 > shape.high:
                last = d
            first = min(first, d)
            last = max(last, first)
        yield from ((x, y, end) for x, y, end in ((c, first, 0), (first, last, None), (last, d, -1)) if x < y)

    def far_rows(self, met_by: str, factor: Tensor | None, a: int, z: int, end: int) -> Tensor | None:
        """What far vectors that queries meet (or, with their ``factor``, weights) add to all of a query's scores, ``[N, R]``; None for nothing."""
        total: Tensor | None = None
        for _, own, table, _ in self.terms(met_by):
            number = ((own if factor is None else factor)[:, a:z] @ table[..., end, :, None])[..., 0]
            total = number if total is None else total + number
        return total

    def far_columns(self, c: int, d: int, end: int) -> Tensor | None:
        """What is added to all scores of a far key, ``[N, 1, columns]``; None for nothing."""
        total = None if self.columns is None else self.columns[:, None, c:d]
        for _, factor, table, _ in self.terms("key"):
            number = (factor[:, c:d] @ table[..., end, :, None]).mT
            total = number if total is None else total + number
        return total

    def bias(self, a: int, z: int, c: int, d: int) -> Tensor | None:
        """What is added to the scores of a block, ``[N | 1, R | 1, columns]``: a view by strides where possible; None for nothing."""
        bias: Any = None
        owned = False
        base = None if self.table is None else self.table[:, None, a + c : z + d - 1]
        products = None
        for _, factor, table, start in self.terms("query"):
            products = _Span(table, start, a + c, z - a + d - c - 1).met(
                factor[:, a:z], base if products is None else products
            )
        if products is not None:
            bias, owned = _shifted(products, d - c), True
        elif self.table is not None:
            bias = hankel(self.table, a, z, c, d)
        if self.columns is not None:
            columns = self.columns[:, None, c:d]
            bias, owned = (columns, False) if bias is None else (bias.add_(columns) if owned else bias + columns, True)
        for _, factor, table, start in self.terms("key"):
            if not owned:
                whole = factor.new_zeros(factor.shape[0], z - a, d - c)
                bias, owned = whole if bias is None else whole.add_(bias), True
            for e in range(c, d, KEY_TILE_COLS):
                f = min(e + KEY_TILE_COLS, d)
                span = _Span(table, start, a + e, z - a + f - e - 1)
                tile = bias[..., e - c : f - c]
                if span.near:
                    tile += _shifted(span.met(factor[:, e:f], None), z - a).mT
                else:
                    # far: one number for each key
                    row = slice(0, 1) if span.left else slice(-1, None)
                    tile += (factor[:, e:f] @ table[..., row, :].mT).mT
        return bias


def _chunks(batch: int, heads: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Samples and heads, ``most`` of them together, but as many as there are threads at least, and in even shares: a product of five heads takes two threads as
    long as one of six."""
    threads = torch.get_num_threads()
    size = max(threads, most)
    if size >= heads:
        for b in range(0, batch, size // heads):
            yield slice(b, min(b + size // heads, batch)), slice(0, heads)
        return
    even = -(-heads // -(-heads // size))
    size = -(-even // threads) * threads
    for b in range(batch):
        for h in range(0, heads, size):
            yield slice(b, b + 1), slice(h, min(h + size, heads))


class TermAttention(torch.autograd.Function):
    """Attention ``[B, H, Tq, D]`` of a region with what is added by distance: ``table`` ``[H, Tq + Tk - 1]``, minus infinity where nothing is seen, ``columns``
    ``[B, H, Tk]`` by key, ``rows`` ``[B, H, Tq]`` by query, which the softmax does not see and which get their gradient, a rounding error, because it cancels others where keys and
    queries have their numbers from one sum, and for each of ``shape.kinds`` a factor and a table of vectors. Keys are reversed inside."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor | None,
        columns: Tensor | None,
        rows: Tensor | None,
        shape: Shape,
        *flat: Tensor | None,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        kinds = {met_by for met_by, _ in shape.kinds}
        if shape.dropout or "weights" in kinds:
            output, logsumexp = _weighed(query, key, value, table, columns, shape, flat)
        elif kinds or (table is not None and columns is not None):
            output, logsumexp = _fused(query, key, value, table, columns, shape, flat)
        else:
            assert table is not None
            back_key, back_value = (per_head(x.flip(2), groups) for x in (key, value))
            parts = [
                flash(
                    query[:, :, a:z],
                    back_key[:, :, c:d],
                    back_value[:, :, c:d],
                    hankel(table, a, z, c, d)[None],
                    False,
                    shape.scale,
                )
                for a, z, c, d in query_blocks(query.shape[2], key.shape[2], shape)
            ]
            output = torch.cat([part for part, _ in parts], dim=2) if len(parts) > 1 else parts[0][0]
            logsumexp = torch.cat([part for _, part in parts], dim=2) if len(parts) > 1 else parts[0][1]
        if table is not None:
            blind = blind_rows(table, key.shape[2])
            if bool(blind.any()):
                output = output.masked_fill(blind[None, ..., None], 0.0)
                logsumexp = logsumexp.masked_fill(blind[None], torch.inf)
        ctx.save_for_backward(query, key, value, table, columns, output, logsumexp, *flat)
        ctx.shape = shape
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_gradient()
        # products of numbers in float32 are not to be rounded because the caller's were
        with torch.autocast("cpu", enabled=False):
            return TermAttention._gradients(ctx, gradient)

    @staticmethod
    def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, table, columns, output, logsumexp, *flat = ctx.saved_tensors
        shape: Shape = ctx.shape
        dtype = logsumexp.dtype
        groups = query.shape[1] // key.shape[1]
        keys, rows = key.shape[2], _rows(key.shape[2])
        # heads that share keys and values add to their gradients, which is not to be rounded in between
        grad_key, grad_value = (torch.zeros_like(x, dtype=dtype if groups > 1 else None) for x in (key, value))
        grad_query = torch.empty_like(query)
        grad_table = torch.zeros_like(table) if ctx.needs_input_grad[3] else None
        grad_columns = columns.new_zeros(columns.shape) if ctx.needs_input_grad[4] else None
        grad_rows = torch.zeros_like(logsumexp) if ctx.needs_input_grad[5] else None
        grad_flat = [None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in flat]
        rooms, deep = _Rooms(dtype), _is_deep(table, columns)
        for samples, span, part, block in _work(query, key, value, table, columns, shape, flat, dtype):
            count = samples.stop - samples.start
            g, result = (x[samples, span].flatten(0, 1).to(dtype) for x in (gradient, output))
            slots = [x[None] if x.ndim == 2 else x[span] for x in grad_flat[1::2] if x is not None]
            learning = _Learning(*ctx.needs_input_grad[3:6])
            lse = logsumexp[samples, span].flatten(0, 1)
            work = _Backward(part, block, g, lse, (g * result).sum(-1), shape, slots, rooms, learning, deep)
            for number, (a, z, c, d) in enumerate(query_blocks(query.shape[2], keys, shape, rows)):
                if c < d:
                    kept = _kept(shape, samples, span, number, z - a, d - c, g) if shape.dropout else None
                    work.block(a, z, c, d, kept)
            by_query, by_key, by_value = (x.unflatten(0, (count, -1)) for x in work.grads)
            grad_query[samples, span] = by_query.mul_(shape.scale)
            for total, gathered in ((grad_key, by_key.mul_(shape.scale)), (grad_value, by_value)):
                for own, shared in _shares(span, groups):
                    total[samples, shared] += gathered[:, own].flip(2)
            for (met_by, _), piece, whole in zip(shape.kinds, work.factor_grads, grad_flat[::2], strict=True):
                if whole is not None:
                    turned = piece.flip(1) if met_by == "key" else piece
                    whole[samples, span] = turned.unflatten(0, (count, -1))
            if grad_table is not None:
                grad_table[span] += work.table_grad.unflatten(0, (count, -1)).sum(0)
            if grad_rows is not None:
                grad_rows[samples, span] = work.row_grad.unflatten(0, (count, -1))
            if grad_columns is not None:
                grad_columns[samples, span] = work.column_grad.flip(-1).unflatten(0, (count, -1))
        return (
            grad_query,
            grad_key.to(key.dtype),
            grad_value.to(value.dtype),
            grad_table,
            grad_columns,
            grad_rows,
            None,
            *grad_flat,
        )


def _shares(span: slice, groups: int) -> Iterator[tuple[slice, slice]]:
    """Heads of a chunk, counted from its first, and the heads of keys and values that serve them, one each."""
    if groups == 1:
        yield slice(None), span
        return
    for head in range(span.start, span.stop):
        yield slice(head - span.start, head - span.start + 1), slice(head // groups, head // groups + 1)


class _Learning(NamedTuple):
    """Which of the numbers by distance, by key and by query want a gradient."""

    table: bool
    columns: bool
    rows: bool


class _Backward:
    """The gradients of a chunk, gathered from one block of queries after another."""

    def __init__(
        self,
        part: _Part,
        block: tuple[Tensor, Tensor, Tensor],
        gradient: Tensor,
        logsumexp: Tensor,
        delta: Tensor,
        shape: Shape,
        slots: list[Tensor],
        rooms: _Rooms,
        learning: _Learning,
        deep: bool,
    ):
        self.deep = deep
        self.part, self.shape, self.slots, self.rooms = part, shape, slots, rooms
        self.query, self.key, self.value = block
        # of what dropout leaves, which stands for the rest
        self.gradient, self.delta = gradient / shape.share_kept, delta
        # the logsumexp and the output's share leave scores and their gradients as one more feature of the products
        ones = self.key.new_ones(*self.key.shape[:2], 1)
        self.score_query = torch.cat((self.query * shape.scale, -logsumexp[..., None]), -1)
        self.score_key = torch.cat((self.key, ones), -1)
        # dropout comes between the two
        self.change_query = self.gradient if shape.dropout else torch.cat((gradient, -delta[..., None]), -1)
        self.change_value = self.value if shape.dropout else torch.cat((self.value, ones), -1)
        self.grads = [torch.zeros_like(x) for x in block]
        self.factor_grads = [torch.zeros_like(x) for x in part.factors]
        self.learning = learning
        heads, queries, keys = self.query.shape[0], self.query.shape[1], self.key.shape[1]
        self.table_grad = self.key.new_zeros((heads, queries + keys - 1) if learning.table else 0)
        self.column_grad = self.key.new_zeros((heads, keys) if learning.columns else 0)
        self.row_grad = self.key.new_zeros((heads, queries) if learning.rows else 0)

    def block(self, a: int, z: int, first: int, stop: int, kept: Tensor | None) -> None:
        """Queries ``a .. z - 1`` and the keys ``first .. stop - 1``."""
        part = self.part
        queries_meet, weights_meet = part.terms("query"), part.terms("weights")
        for c, d, end in part.segments(a, z, first, stop, self.shape):
            # of what is near, gradients and weights by distance; of what is far, their sums for each query
            heads, rows, count = self.query.shape[0], z - a, 1 if end is not None else z - a + d - c - 1
            score_query, change_query = self.score_query[:, a:z], self.change_query[:, a:z]
            changes: Any = None
            seen: Any = None
            met: Tensor | None = None
            if end is None:
                bias = part.bias(a, z, c, d)
                if self.learning.table or queries_meet:
                    changes = self.rooms.changes.zeros(heads, rows, count)
                if weights_meet:
                    seen = self.rooms.seen.zeros(heads, rows, count)
                for _, _, table, start in weights_meet:
                    met = _Span(table, start, a + c, count).met(self.gradient[:, a:z], met)
                met = None if met is None else _shifted(met, d - c)
            else:
                bias = part.far_columns(c, d, end)
                score_query = _with_last(score_query, part.far_rows("query", None, a, z, end))
                change_query = _with_last(change_query, part.far_rows("weights", self.gradient, a, z, end))
                changes = self.query.new_zeros(heads, rows, 1) if queries_meet else None
                seen = self.query.new_zeros(heads, rows, 1) if weights_meet else None
            width = KEY_TILE_COLS if end is None and part.terms("key") else TILE_COLS
            for e in range(c, d, width):
                f = min(e + width, d)
                here = slice(e - c, f - c)
                tile = (heads, rows, f - e)
                weights = self.rooms.weights.empty(*tile)
                weights = _powers_(
                    _product(score_query, self.score_key[:, e:f], bias, here, weights, LOG2_E), self.deep
                )
                change = _product(change_query, self.change_value[:, e:f], met, here, self.rooms.change.empty(*tile))
                dropped = weights
                if kept is not None:
                    left = kept[..., e - first : f - first]
                    dropped = weights * left
                    change.mul_(left).sub_(self.delta[:, a:z, None])
                if seen is not None:
                    if end is None:
                        _shifted(seen, d - c)[..., here] = dropped
                    else:
                        seen += dropped.sum(-1, keepdim=True)
                if end is None and changes is not None:
                    change = torch.mul(weights, change, out=_shifted(changes, d - c)[..., here])
                else:
                    change.mul_(weights)
                    if changes is not None:
                        changes += change.sum(-1, keepdim=True)
                self._tile(a, z, e, f, end, dropped, change)
            if self.learning.table and changes is not None:
                self.table_grad[:, a + c : z + d - 1] += changes.sum(1)
            for index, factor, table, start in queries_meet:
                area = _Span(table, start, a + c, count) if end is None else _Span.far(table, end)
                self.factor_grads[index][:, a:z] += area.summed(changes)
                area.collect(changes, factor[:, a:z], self.slots[index])
            for index, _, table, start in weights_meet:
                area = _Span(table, start, a + c, count) if end is None else _Span.far(table, end)
                area.collect(seen, self.gradient[:, a:z], self.slots[index])

    def _tile(self, a: int, z: int, e: int, f: int, end: int | None, dropped: Tensor, change: Tensor) -> None:
        """What the weights of a tile and the gradients of its scores give queries, keys and values, and what keys meet."""
        grad_query, grad_key, grad_value = self.grads
        grad_query[:, a:z].baddbmm_(change, self.key[:, e:f])
        grad_key[:, e:f].baddbmm_(change.mT, self.query[:, a:z])
        grad_value[:, e:f].baddbmm_(dropped.mT, self.gradient[:, a:z])
        keys_meet = self.part.terms("key")
        by_key: Any = change.sum(1) if self.learning.columns or keys_meet else None
        if self.learning.columns:
            self.column_grad[:, e:f] += by_key
        if self.learning.rows:
            self.row_grad[:, a:z] += change.sum(-1)
        for index, factor, table, start in keys_meet:
            span = _Span(table, start, a + e, z - a + f - e - 1) if end is None else _Span.far(table, end)
            if span.near:
                by_distance = change.new_zeros(change.shape[0], f - e, span.count)
                _shifted(by_distance, z - a).copy_(change.mT)
            else:
                # all distances of a key share one row, and so do their gradients
                by_distance = by_key[..., None]
                span = _Span.far(table, 0 if span.left else -1)
            self.factor_grads[index][:, e:f] += span.summed(by_distance)
            span.collect(by_distance, factor[:, e:f], self.slots[index])


def _with_last(features: Tensor, more: Tensor | None) -> Tensor:
    """``features`` ``[N, R, W]`` with ``more`` ``[N, R]`` added to the last."""
    if more is None:
        return features
    features = features.clone()
    features[..., -1] += more
    return features


def _powers_(x: Tensor, deep: bool) -> Tensor:
    """``2 ** x`` in place for ``x <= 0``: PyTorch's ``exp`` takes longer on CPUs, and far longer where the result is no normal number any more. ``deep``: there
    are such, as far from a query under ALiBi; they are made 0, since products with them are slow too."""
    return (torch.threshold_(x, LEAST_EXPONENT, -math.inf) if deep else x).exp2_()


def _is_deep(*biases: Tensor | None) -> bool:
    """Whether what is added takes some scores so far down that their weights are next to nothing."""
    return any(
        float(bias.masked_fill(bias == -math.inf, 0.0).min()) < DEEP
        for bias in biases
        if bias is not None and bias.numel()
    )


def _rows(keys: int) -> int:
    """Queries of a block of the own passes."""
    return max(min(16, TILE_ROWS), min(TILE_ROWS, MOST_ELEMENTS // keys))


def _work(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None,
    columns: Tensor | None,
    shape: Shape,
    flat: Sequence[Tensor | None],
    dtype: torch.dtype,
) -> Iterator[tuple[slice, slice, _Part, tuple[Tensor, Tensor, Tensor]]]:
    """Chunks of a region: their samples and heads, what is added in them, and their queries, reversed keys and reversed values ``[N, T, D]``."""
    batch, heads = query.shape[:2]
    groups, rows, width = heads // key.shape[1], _rows(key.shape[2]), key.shape[2]
    if shape.told_apart:
        width = min(width, max(TILE_COLS, rows + max(x.shape[-2] for x in flat[1::2] if x is not None)))
    factors = [
        factor.flip(2) if factor is not None and met_by == "key" else factor
        for factor, (met_by, _) in zip(flat[::2], shape.kinds, strict=True)
    ]
    for samples, span in _chunks(batch, heads, CHUNK_ELEMENTS // (rows * (rows + width))):
        count = samples.stop - samples.start

        def pick(x: Tensor, samples: slice = samples, span: slice = span) -> Tensor:
            return x[samples, span].flatten(0, 1)

        part = _Part(
            None if table is None else table[span].repeat(count, 1),
            None if columns is None else pick(columns).flip(-1),
            shape.kinds,
            # weights are no factor
            [query.new_empty(0) if x is None else pick(x) for x in factors],
            [x if x.ndim == 2 else x[span].repeat(count, 1, 1) for x in flat[1::2] if x is not None],
        )
        serving = [h // groups for h in range(span.start, span.stop)]
        key_part, value_part = (
            (x[samples, span] if groups == 1 else x[samples, serving]).flip(2).flatten(0, 1).to(dtype)
            for x in (key, value)
        )
        yield samples, span, part, (pick(query).to(dtype), key_part, value_part)


def _product(
    x: Tensor, y: Tensor, bias: Tensor | None, here: slice, out: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """``factor * (x_i . y_j + bias[i, j])``, the bias taken at columns ``here``: ``[N, R, columns]``."""
    if bias is None:
        return torch.bmm(x if factor == 1.0 else factor * x, y.mT, out=out)
    return torch.baddbmm(bias[..., here], x, y.mT, beta=factor, alpha=factor, out=out)


def _kept(shape: Shape, samples: slice, span: slice, number: int, rows: int, columns: int, like: Tensor) -> Tensor:
    """1 for the weights ``[N, rows, columns]`` of a block that dropout leaves and 0 for the others, for each head the same whenever asked: 16 random bits for each,
    four in one draw, because a draw is what takes time."""
    kept = like.new_empty(samples.stop - samples.start, span.stop - span.start, rows, columns)
    bits = torch.empty(-(-rows * columns // 4), dtype=torch.int64)
    for sample in range(samples.start, samples.stop):
        for head in range(span.start, span.stop):
            place = (sample * 4099 + head) * 65537 + number
            bits.random_(-(2**63), None, generator=torch.Generator().manual_seed((shape.seed + place) % 2**63))
            numbers = bits.view(torch.int16)[: rows * columns].view(rows, columns)
            torch.ge(numbers, shape.steps_dropped - 32768, out=kept[sample - samples.start, head - span.start])
    return kept.flatten(0, 1)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None,
    columns: Tensor | None,
    shape: Shape,
    flat: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp from the kernel, a block of queries of a chunk at a time, the bias of each built for it."""
    output = torch.zeros_like(query)
    logsumexp = torch.full(query.shape[:3], torch.inf, dtype=torch.promote_types(query.dtype, torch.float32))
    for samples, span, part, (q, k, v) in _work(query, key, value, table, columns, shape, flat, query.dtype):
        for a, z, c, d in query_blocks(query.shape[2], key.shape[2], shape, _rows(key.shape[2])):
            if c >= d:
                continue
            pieces = []
            for first, stop, end in part.segments(a, z, c, d, shape):
                bias = part.bias(a, z, first, stop) if end is None else part.far_columns(first, stop, end)
                if bias is not None:
                    bias = bias.expand(q.shape[0], z - a, -1)[None]
                result, sums = flash(
                    q[None, :, a:z], k[None, :, first:stop], v[None, :, first:stop], bias, False, shape.scale
                )
                # a number that all scores of a query share changes its sum only
                shared = None if end is None else part.far_rows("query", None, a, z, end)
                pieces.append((result[0], sums[0] if shared is None else sums[0] + shared))
            result, sums = pieces[0]
            if len(pieces) > 1:
                sums = torch.stack([piece for _, piece in pieces]).logsumexp(0)
                shares = [piece * (own - sums).exp()[..., None].to(piece.dtype) for piece, own in pieces]
                result = torch.stack(shares).sum(0)
            count = samples.stop - samples.start
            output[samples, span, a:z] = result.unflatten(0, (count, -1))
            logsumexp[samples, span, a:z] = sums.unflatten(0, (count, -1))
    return output, logsumexp


def _weighed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor | None,
    columns: Tensor | None,
    shape: Shape,
    flat: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """The same where the weights themselves are needed: for dropout, and for vectors added to the values."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    output = torch.zeros_like(query)
    logsumexp = torch.full(query.shape[:3], torch.inf, dtype=dtype)
    deep = _is_deep(table, columns)
    for samples, span, part, (q, k, v) in _work(query, key, value, table, columns, shape, flat, dtype):
        q = q * shape.scale
        for number, (a, z, c, d) in enumerate(query_blocks(query.shape[2], key.shape[2], shape, _rows(key.shape[2]))):
            if c >= d:
                continue
            scores = _product(q[:, a:z], k[:, c:d], part.bias(a, z, c, d), slice(None), factor=LOG2_E)
            largest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
            weights = _powers_(scores.sub_(largest), deep)
            total = weights.sum(-1, keepdim=True)
            if shape.dropout:
                weights.mul_(_kept(shape, samples, span, number, z - a, d - c, q))
            result = weights @ v[:, c:d]
            for _, _, vectors, start in part.terms("weights"):
                by_distance = weights.new_zeros(*weights.shape[:2], z - a + d - c - 1)
                _shifted(by_distance, d - c).copy_(weights)
                result += _Span(vectors, start, a + c, by_distance.shape[-1]).summed(by_distance)
            # a query that sees nothing has a total of zero
            result /= total.clamp(min=torch.finfo(dtype).tiny) * shape.share_kept
            count = samples.stop - samples.start
            output[samples, span, a:z] = result.to(query.dtype).unflatten(0, (count, -1))
            logsumexp[samples, span, a:z] = ((largest + total.log2()) / LOG2_E)[..., 0].unflatten(0, (count, -1))
    return output, logsumexp
