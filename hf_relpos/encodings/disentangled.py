"""Disentangled attention: content meets position both ways, through projections of one table of distances.

``score = f * (q_i . k_j + q_i . Kr_h[d] + k_j . Qr_h[d])``, ``d`` the table's row for the distance of ``i`` and ``j``, ``Kr`` and ``Qr`` the table's rows made
keys and queries. ``f`` is ``1 / sqrt(D * (1 + number of position terms))`` in the papers (``scaling="paper"``); ``"host"`` keeps the host's scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
from .positions import Positions
from .terms import KeyBuckets, QueryBuckets, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class DisentangledOptions(EncodingOptions):
    """``c2p`` and ``p2c``: which terms there are; ``scaling`` as in the papers or the host's."""

    c2p: bool = True
    p2c: bool = True
    scaling: Literal["host", "paper"] = "host"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.c2p or self.p2c, "p2c", "true when c2p is false: without either there is no position")


DisentangledOptionsT = TypeVar("DisentangledOptionsT", bound=DisentangledOptions)


def by_head(rows: Tensor, width: int) -> Tensor:
    """``[N, H * D]`` -> ``[H, N, D]``."""
    return rows.unflatten(-1, (-1, width)).transpose(0, 1)


class Disentangled(Encoding[DisentangledOptionsT]):
    """Base of both versions of DeBERTa, whose ``Shared`` part is the table; they differ in its rows and in the projections."""

    def bucket(self, distances: Tensor) -> Tensor:
        """The table row of each of ``distances`` ``i - j``."""
        raise NotImplementedError

    def p2c_bucket(self, distances: Tensor) -> Tensor:
        """The same for the position-to-content term."""
        return self.bucket(distances)

    def keys(self, table: Tensor, inputs: EncodingInputs) -> Tensor:
        """``Kr``, the rows of ``table`` as keys, ``[H, N, D]``."""
        raise NotImplementedError

    def queries(self, table: Tensor, inputs: EncodingInputs) -> Tensor:
        """``Qr``, the rows of ``table`` as queries, ``[H, N, D]``."""
        raise NotImplementedError

    def content_scale(self, scale: float) -> float:
        options = self.options
        return scale / math.sqrt(1 + options.c2p + options.p2c) if options.scaling == "paper" else scale

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        positions, scale = inputs.positions, self.content_scale(inputs.scale)
        table = inputs.shared[self.name].to(inputs.query.dtype)
        terms: list[ScoreTerm] = []
        met: dict[tuple[int, int], Tensor] = {}

        def rows_and_bucket(bucket_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
            first, last, bucket = _met(len(table), bucket_of, positions)
            # once for both terms, for the gradient of a part is as large as the table
            rows = met.setdefault((first, last), table[min(first, last) : max(first, last) + 1])
            return (rows if first <= last else rows.flip(0)), bucket

        if self.options.c2p:
            rows, bucket = rows_and_bucket(self.bucket)
            terms.append(QueryBuckets(scale * inputs.query, self.keys(rows, inputs), bucket, positions, True))
        if self.options.p2c:
            rows, bucket = rows_and_bucket(self.p2c_bucket)
            terms.append(
                KeyBuckets(scale * inputs.keys_per_head(), self.queries(rows, inputs), bucket, positions, True)
            )
        return tuple(terms)


def _met(count: int, bucket_of: Callable[[Tensor], Tensor], positions: Positions) -> tuple[int, int, Tensor | None]:
    """The rows between those of the nearest and the farthest distance, of a table of ``count``, first and last, and the bucket of each distance counted from the first of them; None
    where each distance has a row of its own, which then lie in the order from first to last, up or down. A short text meets few rows, and the others need not be projected."""
    bucket = bucket_of(positions.distances())
    if positions.identity is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return 0, count - 1, bucket
    # asked of the CPU, which need not wait for a device; buckets do not decrease, or do not increase, with distance
    near = positions.query_start - positions.key_start - (positions.num_keys - 1)
    start, end = bucket_of(torch.tensor((near, near + positions.num_distances - 1))).tolist()
    # neighbours are at most one row apart
    if abs(end - start) == positions.num_distances - 1 and not positions.has_gaps:
        return start, end, None
    # one row more at both ends, should another device round otherwise where buckets meet
    first, last = max(min(start, end) - 1, 0), min(max(start, end) + 1, count - 1)
    return first, last, bucket - first
