"""TUPE: content and position attend apart, and the first token is untied from positions. Ke, He, Liu 2020, arXiv 2006.15595.

``score = f * (q_i . k_j + (P_{i+1} U_h) . (P_{j+1} V_h)) + r[bucket(j - i), h]``, with ``P`` the layer-normed table of absolute positions ``[N + 1, E]``, projections
with biases, and the T5 buckets ``r`` with ``relative=True`` only (TUPE-R; without them TUPE-A). ``f`` is ``1 / sqrt(2 D)`` in the paper (``scaling="paper"``);
``"host"`` keeps the host's scale. Everything of it is shared by all layers.

Position is the place of a token in its own text. With ``untie_cls`` the first one (``[CLS]``) has none: as key it meets ``B[1, 1]`` and the extra
bucket ``num_buckets``, as query ``B[0, 0]`` and bucket ``num_buckets / 2``, which T5 leaves unused. Row 0 of the table serves nothing else; the order,
the query's rule last, is what the authors' code does, whose comments contradict each other.

The table of all pairs is computed once for each call, at most ``N + 1`` square; a text longer than ``N`` raises.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .buckets import BucketOptions
from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .linear import linear
from .options import Host
from .registry import register_encoding
from .terms import PairFunction


@dataclass(frozen=True, kw_only=True)
class TupeOptions(BucketOptions):
    """``max_position_embeddings`` is N, the host's unless given; ``relative``: add T5's bias, which the buckets are for;
    ``untie_cls``: the first token has no position; ``scaling`` as in the paper or the host's."""

    max_position_embeddings: int | None = None
    relative: bool = False
    untie_cls: bool = True
    scaling: Literal["host", "paper"] = "host"

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.max_position_embeddings
        self.require(size is None or size >= 1, "max_position_embeddings", "at least 1")

    def resolve(self, host: Host) -> Self:
        return self.or_host("max_position_embeddings", host)


@register_encoding
class Tupe(Encoding[TupeOptions]):
    """Parameters for all layers: ``position_table`` ``[N + 1, E]``, ``norm_weight`` and ``norm_bias`` ``[E]``, ``query_projection`` and ``key_projection``
    ``[H * D, E]``, ``query_bias`` and ``key_bias`` ``[H * D]``, with ``relative`` also ``bias`` ``[num_buckets + 1, H]``; drawn from N(0, 0.02), the norm's
    one and zero, biases of projections zero."""

    name = "tupe"
    Options = TupeOptions
    shared = True
    reads = frozenset({"index"})
    by_place = True
    card = Card(
        title="Rethinking Positional Encoding in Language Pre-training",
        authors="Ke, Guolin and He, Di and Liu, Tie-Yan",
        year=2020,
        arxiv="2006.15595",
        formula="score = (q_i·k_j + (p_i U_h)·(p_j V_h)) / √D, optionally + r[bucket(j − i), h]",
        depends_on="position",
        directions="bidirectional",
        beyond_training="an error: positions end with the table",
        relative=False,
    )

    @property
    def size(self) -> int:
        """N, the number of positions that the table knows."""
        size = self.options.max_position_embeddings
        assert size is not None
        return size

    @property
    def max_length(self) -> int | None:
        return self.size

    def create_parameters(self) -> None:
        rows, width = self.host.num_heads * self.host.head_dim, self.host.hidden_size
        self.position_table = nn.Parameter(torch.empty(self.size + 1, width))
        self.norm_weight = nn.Parameter(torch.empty(width))
        self.norm_bias = nn.Parameter(torch.empty(width))
        self.query_projection = nn.Parameter(torch.empty(rows, width))
        self.query_bias = nn.Parameter(torch.empty(rows))
        self.key_projection = nn.Parameter(torch.empty(rows, width))
        self.key_bias = nn.Parameter(torch.empty(rows))
        if self.options.relative:
            self.bias = nn.Parameter(torch.empty(self.options.num_buckets + 1, self.host.num_heads))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.position_table, std=0.02)
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        for projection in (self.query_projection, self.key_projection):
            nn.init.normal_(projection, std=0.02)
        for bias in (self.query_bias, self.key_bias):
            nn.init.zeros_(bias)
        if self.options.relative:
            nn.init.normal_(self.bias, std=0.02)

    def content_scale(self, scale: float) -> float:
        return scale / math.sqrt(2) if self.options.scaling == "paper" else scale

    def _longest(self, inputs: EncodingInputs) -> int:
        """A bound of the call's positions, at most N; ValueError when they exceed the table."""
        positions = inputs.positions
        ends = (positions.query_start + positions.num_queries, positions.key_start + positions.num_keys)
        integers = [end for end in ends if isinstance(end, int)]
        if (
            inputs.query_index is None
            and len(integers) == len(ends)
            and not positions.has_gaps
            and max(integers) <= self.size
        ):
            return max(integers)
        indices = inputs.indices()
        # many slots may hold several short texts: only their positions tell, but not while tracing, where values do not exist
        if not torch.compiler.is_compiling() and not any(index.is_meta for index in indices):
            longest = 1 + max(int(index.max()) for index in indices)
            if longest > self.size:
                raise ValueError(
                    f"a text of {longest} tokens is longer than the position table of {self.name!r} "
                    f"(max_position_embeddings={self.size})"
                )
        return self.size

    def table(self, inputs: EncodingInputs) -> Tensor:
        """The scaled position term of every pair of rows of the table that the call may meet, ``[n + 1, n + 1, H]``."""
        dtype, heads = inputs.dtype, self.host.num_heads
        rows = self.position_table[: self._longest(inputs) + 1].to(dtype)
        weight, bias = self.norm_weight.to(dtype), self.norm_bias.to(dtype)
        rows = nn.functional.layer_norm(rows, rows.shape[-1:], weight, bias, eps=1e-5)
        query = linear(rows, self.query_projection, self.query_bias).unflatten(-1, (heads, -1))
        key = linear(rows, self.key_projection, self.key_bias).unflatten(-1, (heads, -1))
        return self.content_scale(inputs.scale) * torch.einsum("ihd,jhd->ijh", query, key)

    def score_terms(self, inputs: EncodingInputs) -> tuple[PairFunction]:
        options, positions = self.options, inputs.positions
        table = self.table(inputs)
        query_index, key_index = inputs.indices()
        first = bucket = bias = None
        if options.relative:
            distances = positions.distances()
            first = distances[0]
            bucket = options.bucket(distances, bidirectional=True)
            bias = self.bias.to(inputs.dtype)

        def function(query: Tensor, key: Tensor) -> Tensor:
            i, j = torch.broadcast_tensors(query[..., 0], key[..., 0])
            row, column = i + 1, j + 1
            if options.untie_cls:
                row, column = (torch.where(j == 0, 1, place) for place in (row, column))
                row, column = (torch.where(i == 0, 0, place) for place in (row, column))
            term = table[row, column]
            if bucket is None or bias is None:
                return term
            kind = bucket[query[..., 1] - key[..., 1] - first]
            if options.untie_cls:
                kind = torch.where(j == 0, options.num_buckets, kind)
                kind = torch.where(i == 0, options.num_buckets // 2, kind)
            return term + bias[kind]

        def places(index: Tensor, slots: Tensor) -> Tensor:
            return torch.stack((index, slots.expand_as(index)), dim=-1)

        return (PairFunction(function, places(query_index, positions.query), places(key_index, positions.key)),)
