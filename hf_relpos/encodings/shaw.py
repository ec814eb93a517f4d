"""Relation-aware attention over clipped distances. Shaw, Uszkoreit, Vaswani 2018, arXiv 1803.02155.

``score = scale * q_i . (k_j + a^K[r])`` and ``output_i = sum_j p_ij (v_j + a^V[r])`` with ``r = clip(j - i, -K, K) + K``. Note the sign
``j - i``. Tables are shared by the heads of a layer, not by layers.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
from .registry import register_encoding
from .terms import QueryBuckets, ValueBuckets


@dataclass(frozen=True, kw_only=True)
class ShawOptions(EncodingOptions):
    """``max_distance`` is the paper's K; ``keys`` and ``values`` say which of the two tables exist."""

    max_distance: int = 16
    keys: bool = True
    values: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.max_distance >= 1, "max_distance", "at least 1")
        self.require(self.keys or self.values, "keys", "true when values is false")


@register_encoding
class Shaw(Encoding[ShawOptions]):
    """Parameters ``key_table`` and ``value_table``, ``[2K + 1, D]`` each, drawn from N(0, 0.02)."""

    name = "shaw"
    Options = ShawOptions
    card = Card(
        title="Self-Attention with Relative Position Representations",
        authors="Shaw, Peter and Uszkoreit, Jakob and Vaswani, Ashish",
        year=2018,
        arxiv="1803.02155",
        formula="score = q_i·(k_j + aK[clip(j − i)]) / √D; values v_j + aV[clip(j − i)]",
        depends_on="content",
        directions="both",
        beyond_training="distances are clipped at max_distance",
    )

    def create_parameters(self) -> None:
        shape = (2 * self.options.max_distance + 1, self.host.head_dim)
        self.key_table = nn.Parameter(torch.empty(shape)) if self.options.keys else None
        self.value_table = nn.Parameter(torch.empty(shape)) if self.options.values else None

    def reset_parameters(self) -> None:
        for table in self.parameters(recurse=False):
            nn.init.normal_(table, std=0.02)

    def _bucket(self, inputs: EncodingInputs) -> torch.Tensor:
        limit = self.options.max_distance
        return (-inputs.positions.distances()).clamp(-limit, limit) + limit

    def score_terms(self, inputs: EncodingInputs) -> tuple[QueryBuckets, ...]:
        if self.key_table is None:
            return ()
        table = inputs.scale * self.key_table.to(inputs.query.dtype)
        return (QueryBuckets(inputs.query, table, self._bucket(inputs), inputs.positions),)

    def value_terms(self, inputs: EncodingInputs) -> tuple[ValueBuckets, ...]:
        if self.value_table is None:
            return ()
        return (ValueBuckets(self.value_table, self._bucket(inputs), inputs.positions),)
