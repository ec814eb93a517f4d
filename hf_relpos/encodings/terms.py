"""The few kinds of number that a position can add to attention.

A score term is added to the scaled content score ``scale * q_i . k_j`` before the softmax; every term already stands on
that logit scale. A backend needs two verbs of it and nothing else:

* ``tile(rows, cols)`` gives a block of the term, ``[B|1, H|1, rows, cols]``;
* ``at(b, h, i, j)`` gives the same number at one point (or at broadcast index tensors), as a fused kernel asks for it.

Letters: ``B`` batch, ``H`` query heads, ``Tq`` queries, ``Tk`` keys, ``N`` table entries, ``L = Tq + Tk - 1`` distances.
``i`` and ``j`` are indices into this call's queries and keys, not slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .positions import Positions

ALL = slice(None)


def skew(values: Tensor, count: int) -> Tensor:
    """``out[..., r, c] = values[..., r, c - r + R - 1]`` for ``values`` ``[..., R, R + count - 1]``, ``out`` ``[..., R, count]``.

    From a number for each offset to one for each pair. A row of the result starts one element earlier than the row above it, so
    it is a view of contiguous values, where a gather would read an index for each element and its gradient scatter.
    """
    rows, width = values.shape[-2:]
    if rows == 1:
        return values
    values = values.contiguous()
    # one view, whose gradient is written once, where slices of slices would pad theirs one after the other
    return values.as_strided(
        (*values.shape[:-1], count), (*values.stride()[:-2], width - 1, 1), values.storage_offset() + rows - 1
    )


class ScoreTerm(ABC):
    """A number added to the score of every query and key."""

    @abstractmethod
    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        """The term for the given queries and keys, ``[B|1, H|1, rows, cols]``."""

    @abstractmethod
    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The term of sample ``b``, head ``h``, query ``i``, key ``j``; indices broadcast against each other."""


@dataclass(frozen=True)
class DistanceTable(ScoreTerm):
    """A bias that depends on head and distance alone: ``table[h, n]``.

    ``table`` is ``[H|1, L]`` with one column for each of ``positions.distances()``: memory linear in length.
    """

    table: Tensor
    positions: Positions

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        p = self.positions
        i, j = range(p.num_queries)[rows], range(p.num_keys)[cols]
        if not p.has_gaps and len(i) and len(j):
            # row after row of the table, each from one distance later on: a view, copied once to turn it, where an index would be read for each element
            nearest = i.start - (j.stop - 1) + p.num_keys - 1
            # the copy keeps the order of the table's dimensions in memory, and heads that lie innermost would make all that follows slow
            near = self.table[:, nearest : nearest + len(i) + len(j) - 1].contiguous()
            return near.unfold(-1, len(j), 1).flip(-1)[None]
        return self.table[:, p.distance_index(rows, cols)][None]

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        head = h if self.table.shape[0] > 1 else torch.zeros_like(h)
        return self.table[head, self.positions.distance_index_at(i, j)]


@dataclass(frozen=True)
class QueryBuckets(ScoreTerm):
    """A vector for each bucket of distances, met by the query: ``query[b, h, i] . table[h, bucket(n)]``.

    ``query`` is ``[B, H, Tq, W]``, ``table`` ``[N, W]`` or ``[H, N, W]``; ``bucket`` is ``[L]`` int64, the row of each of ``positions.distances()``, or None when
    the table has a row for each; ``ends`` then says that it would have no more of them in a longer text, whose far distances share the last. Only the
    products of the block that is asked for are computed.
    """

    query: Tensor
    table: Tensor
    bucket: Tensor | None
    positions: Positions
    ends: bool = False

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        p = self.positions
        query, columns = self.query[:, :, rows], len(range(p.num_keys)[cols])
        near = _rows_by_distance(self.table, self.bucket, p, rows, cols, descending=True)
        if near is not None:
            return skew(query @ near.transpose(-1, -2), columns)
        values = query @ self.table.transpose(-1, -2)
        index = _bucket_or_all(self.bucket, p)[p.distance_index(rows, cols)]
        if values.shape[2] == 1:
            # numbers of all samples and heads lie together for each bucket, so that one index moves them all
            by_bucket = values.flatten(0, 2).t().contiguous().index_select(0, index[0])
            return by_bucket.t().unflatten(0, values.shape[:3])
        return values.gather(-1, index.expand(*values.shape[:2], *index.shape))

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (self.query[b, h, i] * _table_row(self.table, self.bucket, self.positions, h, i, j)).sum(-1)


@dataclass(frozen=True)
class KeyBuckets(ScoreTerm):
    """A vector for each bucket of distances, met by the key: ``key[b, h, j] . table[h, bucket(n)]``, ``key`` being ``[B, H, Tk, W]``; the rest as for
    :class:`QueryBuckets`."""

    key: Tensor
    table: Tensor
    bucket: Tensor | None
    positions: Positions
    ends: bool = False

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        p = self.positions
        key, lines = self.key[:, :, cols], len(range(p.num_queries)[rows])
        if lines == 1:
            # each key meets one row of the table, where a product would meet it with all
            return torch.einsum("...jw,...jw->...j", key, self.rows_of_keys(rows, cols))[:, :, None]
        near = _rows_by_distance(self.table, self.bucket, p, rows, cols)
        if near is not None:
            return skew(key @ near.transpose(-1, -2), lines).transpose(-1, -2)
        values = key @ self.table.transpose(-1, -2)
        index = _bucket_or_all(self.bucket, p)[p.distance_index(rows, cols)].transpose(0, 1)
        return values.gather(-1, index.expand(*values.shape[:2], *index.shape)).transpose(-1, -2)

    def rows_of_keys(self, rows: slice, cols: slice) -> Tensor:
        """The table's row that each key meets with one query, ``[cols, W]`` or ``[H, cols, W]``."""
        index = _bucket_or_all(self.bucket, self.positions)[self.positions.distance_index(rows, cols)[0]]
        return self.table.index_select(-2, index)

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (self.key[b, h, j] * _table_row(self.table, self.bucket, self.positions, h, i, j)).sum(-1)


def _rows_by_distance(
    table: Tensor, bucket: Tensor | None, positions: Positions, rows: slice, cols: slice, *, descending: bool = False
) -> Tensor | None:
    """The table's row for each distance of a block, in their order, when a product with these is no larger than one with the table and can be skewed."""
    if positions.has_gaps:
        return None
    i, j = range(positions.num_queries)[rows], range(positions.num_keys)[cols]
    count = len(i) + len(j) - 1
    if bucket is not None and count > table.shape[-2]:
        return None
    first = i.start - (j.stop - 1) + positions.num_keys - 1
    if bucket is None:
        near = table[..., first : first + count, :]
        return near.flip(-2) if descending else near
    index = bucket[first : first + count]
    if descending:
        index = index.flip(0)
    # on a CPU by the operator whose gradient is the faster one there, and which on a GPU would add up in any order
    return table.index_select(-2, index) if table.device.type == "cpu" else table[..., index, :]


def _bucket_or_all(bucket: Tensor | None, positions: Positions) -> Tensor:
    return torch.arange(positions.num_distances, device=positions.device) if bucket is None else bucket


def _table_row(table: Tensor, bucket: Tensor | None, positions: Positions, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    place = positions.distance_index_at(i, j)
    row = place if bucket is None else bucket[place]
    return table[row] if table.ndim == 2 else table[h, row]


@dataclass(frozen=True)
class KeyVector(ScoreTerm):
    """A number for each key, the same for every query: ``values[b, h, j]``, ``values`` being ``[B|1, H, Tk]``.

    ``rows`` ``[B|1, H, Tq]``, when given, is added for each query. The softmax does not see it, but it keeps numbers small where ``values``
    are sums that grow with length and scores are rounded: ``rows_i + values_j`` is then a difference.
    """

    values: Tensor
    positions: Positions
    rows: Tensor | None = None

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        values = self.values[:, :, None, cols]
        if self.rows is not None:
            return self.rows[:, :, rows, None] + values
        return values.expand(-1, -1, len(range(self.positions.num_queries)[rows]), -1)

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        sample = b if self.values.shape[0] > 1 else torch.zeros_like(b)
        number = self.values[sample, h, j]
        return number if self.rows is None else self.rows[sample, h, i] + number


@dataclass(frozen=True)
class ContentBias(ScoreTerm):
    """What the keys would get if queries had a vector of their head added: ``scale * vector[h] . key[b, h, j]``, ``vector`` ``[H, D]``, ``key`` ``[B, G, Tk, D]``.

    Attention adds it to the queries where it may (:func:`hf_relpos.attention.call.with_content_biases`); elsewhere it is :meth:`numbers`.
    """

    vector: Tensor
    key: Tensor
    scale: float
    positions: Positions

    def numbers(self) -> KeyVector:
        """The same as a number for each key."""
        # of grouped keys, each meets the vectors of its own group
        vectors = self.vector.unflatten(0, (self.key.shape[1], -1))
        return KeyVector(self.scale * (vectors @ self.key.transpose(-1, -2)).flatten(1, 2), self.positions)

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.numbers().tile(rows, cols)

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.numbers().at(b, h, i, j)


@dataclass(frozen=True)
class PairBuckets(ScoreTerm):
    """A number that each query keeps for each kind of pair, where the kind is not a matter of distance: ``values[b, h, i, kind[b, i, j]]``.

    ``values`` is ``[B|1, H, Tq|1, N]``, ``kind`` ``[B, Tq, Tk]`` int64.
    """

    values: Tensor
    kind: Tensor

    def kinds(self, rows: slice, cols: slice) -> Tensor:
        """The kinds of a block, ``[B, rows, cols]``."""
        return self.kind[:, rows, cols]

    def kind_at(self, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """The kind of one pair."""
        return self.kind[b, i, j]

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        kind = self.kinds(rows, cols)[:, None]
        values = self.values if self.values.shape[2] == 1 else self.values[:, :, rows]
        shape = (kind.shape[0], values.shape[1], *kind.shape[2:])
        return values.expand(*shape[:3], -1).gather(-1, kind.expand(shape))

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        sample = b if self.values.shape[0] > 1 else torch.zeros_like(b)
        query = i if self.values.shape[2] > 1 else torch.zeros_like(i)
        return self.values[sample, h, query, self.kind_at(b, i, j)]


@dataclass(frozen=True)
class LabelBuckets(PairBuckets):
    """The same where a pair's kind is 0 when query and key have the same label and 1 when not: ``kind`` ``[B, Tq]`` are the queries' labels, ``key_labels``
    ``[B, Tk]`` the keys'."""

    key_labels: Tensor

    def kinds(self, rows: slice, cols: slice) -> Tensor:
        return (self.kind[:, rows, None] != self.key_labels[:, None, cols]).long()

    def kind_at(self, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (self.kind[b, i] != self.key_labels[b, j]).long()


@dataclass(frozen=True)
class PairFunction(ScoreTerm):
    """What is none of the others: a function of something that the query has and something that the key has.

    ``function`` takes ``query`` ``[B|1, Tq, F]`` and ``key`` ``[B|1, Tk, F]``, broadcast against each other along their middle axes, to ``[..., H]``. Only the
    block that is asked for is computed.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    query: Tensor
    key: Tensor

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.function(self.query[:, rows, None], self.key[:, None, cols]).permute(0, 3, 1, 2)

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        def pick(values: Tensor, place: Tensor) -> Tensor:
            return values[b if values.shape[0] > 1 else torch.zeros_like(b), place]

        by_head = self.function(pick(self.query, i), pick(self.key, j))
        shape = torch.broadcast_shapes(b.shape, h.shape, i.shape, j.shape)
        return by_head.expand(*shape, by_head.shape[-1]).gather(-1, h.expand(shape)[..., None])[..., 0]


@dataclass(frozen=True)
class OnHeads(ScoreTerm):
    """A term that acts on the query heads ``first .. last - 1`` of ``total`` only; zero for the others."""

    term: ScoreTerm
    first: int
    last: int
    total: int

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        block = self.term.tile(rows, cols).expand(-1, self.last - self.first, -1, -1)
        return torch.nn.functional.pad(block, (0, 0, 0, 0, self.first, self.total - self.last))

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        number = self.term.at(b, (h - self.first).clamp(0, self.last - self.first - 1), i, j)
        return torch.where((h >= self.first) & (h < self.last), number, 0.0)


class ValueTerm(ABC):
    """Vectors added to the values, a different one for each pair: the output gains ``sum_j p_ij table[index(i, j)]``."""

    table: Tensor

    @abstractmethod
    def index(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        """The table's row for each pair, ``[rows, cols]`` or ``[B, 1, rows, cols]`` int64."""

    def apply(self, weights: Tensor, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        """The gain of the output ``[B, H, rows, Dv]`` from attention weights ``[B, H, rows, cols]``.

        Weights are first summed by row of the table, so no ``[rows, cols, Dv]`` tensor appears.
        """
        index = self.index(rows, cols).expand_as(weights)
        by_row = weights.new_zeros(*weights.shape[:-1], self.table.shape[0]).scatter_add(-1, index, weights)
        return by_row @ self.table.to(weights.dtype)


@dataclass(frozen=True)
class ValueBuckets(ValueTerm):
    """Vectors by distance: ``table`` is ``[N, Dv]``, shared by the heads; ``bucket`` is ``[L]`` int64, the row of each of ``positions.distances()``."""

    table: Tensor
    bucket: Tensor
    positions: Positions

    def index(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.bucket[self.positions.distance_index(rows, cols)]


@dataclass(frozen=True)
class ValuePairs(ValueTerm):
    """Vectors by kind of pair: ``table`` is ``[N, Dv]``, ``pairs`` ``[B, Tq, Tk]`` int64."""

    table: Tensor
    pairs: Tensor

    def index(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.pairs[:, None, rows, cols]


@dataclass(frozen=True)
class ValuesOnHeads(ValueTerm):
    """A value term that acts on the query heads ``first .. last - 1`` only."""

    term: ValueTerm
    first: int
    last: int

    def index(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        return self.term.index(rows, cols)

    def apply(self, weights: Tensor, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        gain = self.term.apply(weights[:, self.first : self.last], rows, cols)
        return torch.nn.functional.pad(gain, (0, 0, 0, 0, self.first, weights.shape[1] - self.last))
