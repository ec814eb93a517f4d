"""The few kinds of number that a position can add to attention.

A score term is added to the scaled content score ``scale * q_i . k_j`` before the softmax; every term already stands on
that logit scale. A backend needs two verbs of it and nothing else:

* ``tile(rows, cols)`` gives a block of the term, ``[B|1, H|1, rows, cols]``;
* ``at(b, h, i, j)`` gives the same number at one point (or at broadcast index tensors), as a fused kernel asks for it.

Letters: ``B`` batch, ``H`` query heads, ``Tq`` queries, ``Tk`` keys, ``N`` table entries, ``L = Tq + Tk - 1`` distances.
``i`` and ``j`` are indices into this call's queries and keys, not slots.
"""

from abc import ABC, abstractmethod
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
    flat = values.flatten(-2)[..., rows - 1 : rows - 1 + rows * (width - 1)]
    return flat.unflatten(-1, (rows, width - 1))[..., :count]


def _skewed_tile(values: Tensor, own: slice, other: slice, others: int) -> Tensor:
    """The block ``own x other`` of ``skew(values, others)``, ``own`` and ``other`` being of step 1."""
    total = values.shape[-2]
    first, last, _ = own.indices(total)
    block = values[..., first:last, total - last : total - first + others - 1]
    return skew(block, others)[..., other]


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
        return self.table[:, self.positions.distance_index(rows, cols)][None]

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        head = h if self.table.shape[0] > 1 else torch.zeros_like(h)
        return self.table[head, i - j + (self.positions.num_keys - 1)]


@dataclass(frozen=True)
class QueryBuckets(ScoreTerm):
    """A number that each query keeps for each bucket of distances: ``values[b, h, i, bucket(n)]``.

    ``values`` is ``[B, H, Tq, N]``; ``bucket`` is ``[L]`` int64, the column of each of ``positions.distances()``. ``bucket=None`` means a column
    for each distance, the largest first: ``values[b, h, i, j - i + Tq - 1]``, ``N = L``.
    """

    values: Tensor
    bucket: Tensor | None
    positions: Positions

    @classmethod
    def of(cls, query: Tensor, table: Tensor, bucket: Tensor, positions: Positions) -> "QueryBuckets":
        """``query_i . table[bucket(n)]`` for ``query`` ``[B, H, Tq, D]``, ``table`` ``[N, D]`` and ``bucket`` ``[L]``."""
        if bucket.shape[0] > table.shape[0]:
            return cls(query @ table.T, bucket, positions)
        return cls(query @ table[bucket.flip(0)].T, None, positions)

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        if self.bucket is None:
            return _skewed_tile(self.values, rows, cols, self.positions.num_keys)
        values = self.values[:, :, rows]
        index = self.bucket[self.positions.distance_index(rows, cols)]
        return values.gather(-1, index.expand(*values.shape[:2], *index.shape))

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.bucket is None:
            return self.values[b, h, i, j - i + (self.positions.num_queries - 1)]
        return self.values[b, h, i, self.bucket[i - j + (self.positions.num_keys - 1)]]


@dataclass(frozen=True)
class KeyBuckets(ScoreTerm):
    """A number that each key keeps for each bucket of distances: ``values[b, h, j, bucket(n)]``.

    ``values`` is ``[B, H, Tk, N]``; ``bucket`` as for :class:`QueryBuckets`, but ``bucket=None`` means a column for each distance, the smallest
    first: ``values[b, h, j, i - j + Tk - 1]``.
    """

    values: Tensor
    bucket: Tensor | None
    positions: Positions

    @classmethod
    def of(cls, key: Tensor, table: Tensor, bucket: Tensor, positions: Positions) -> "KeyBuckets":
        """``key_j . table[bucket(n)]`` for ``key`` ``[B, H, Tk, D]``, ``table`` ``[N, D]`` and ``bucket`` ``[L]``."""
        if bucket.shape[0] > table.shape[0]:
            return cls(key @ table.T, bucket, positions)
        return cls(key @ table[bucket].T, None, positions)

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        if self.bucket is None:
            return _skewed_tile(self.values, cols, rows, self.positions.num_queries).transpose(-1, -2)
        values = self.values[:, :, cols]
        index = self.bucket[self.positions.distance_index(rows, cols)].transpose(0, 1)
        return values.gather(-1, index.expand(*values.shape[:2], *index.shape)).transpose(-1, -2)

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if self.bucket is None:
            return self.values[b, h, j, i - j + (self.positions.num_keys - 1)]
        return self.values[b, h, j, self.bucket[i - j + (self.positions.num_keys - 1)]]


@dataclass(frozen=True)
class KeyVector(ScoreTerm):
    """A number for each key, the same for every query: ``values[b, h, j]``, ``values`` being ``[B|1, H, Tk]``."""

    values: Tensor
    positions: Positions

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        values = self.values[:, :, None, cols]
        return values.expand(-1, -1, len(range(self.positions.num_queries)[rows]), -1)

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        sample = b if self.values.shape[0] > 1 else torch.zeros_like(b)
        return self.values[sample, h, j]


@dataclass(frozen=True)
class ValueBuckets:
    """Vectors added to the values by distance: the output gains ``sum_j p_ij table[bucket(n)]``.

    ``table`` is ``[N, Dv]``, shared by the heads; ``bucket`` is ``[L]`` int64, the row of each of ``positions.distances()``.
    """

    table: Tensor
    bucket: Tensor
    positions: Positions

    def apply(self, weights: Tensor, rows: slice = ALL, cols: slice = ALL) -> Tensor:
        """The gain of the output ``[B, H, rows, Dv]`` from attention weights ``[B, H, rows, cols]``.

        Weights are first summed by bucket, so no ``[rows, cols, Dv]`` tensor appears.
        """
        index = self.bucket[self.positions.distance_index(rows, cols)].expand_as(weights)
        by_bucket = weights.new_zeros(*weights.shape[:-1], self.table.shape[0]).scatter_add(-1, index, weights)
        return by_bucket @ self.table.to(weights.dtype)
