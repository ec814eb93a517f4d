"""Disentangled attention: content meets position both ways, through projections of one table of distances.

``score = f * (q_i . k_j + q_i . Kr_h[d] + k_j . Qr_h[d])``, ``d`` the table's row for the distance of ``i`` and ``j``, ``Kr`` and ``Qr`` the table's rows made
keys and queries. ``f`` is ``1 / sqrt(D * (1 + number of position terms))`` in the papers (``scaling="paper"``); ``"host"`` keeps the host's scale.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
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
        table, distances = inputs.shared[self.name].to(inputs.query.dtype), positions.distances()
        terms: list[ScoreTerm] = []
        if self.options.c2p:
            keys = self.keys(table, inputs)
            terms.append(QueryBuckets(scale * inputs.query, keys, self.bucket(distances), positions))
        if self.options.p2c:
            queries = self.queries(table, inputs)
            terms.append(KeyBuckets(scale * inputs.keys_per_head(), queries, self.p2c_bucket(distances), positions))
        return tuple(terms)
