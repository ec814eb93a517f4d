"""Curves over distance that each token mixes for itself: the query-conditioned bias of x-transformers, without a paper.

``score = scale * q_i . k_j + sum_r w_ihr bank[r, i - j]`` for ``0 <= i - j < max_distance``, else without the sum, where ``w_i = W x_i`` is read off the
layer's input. Source: ``RelativeProjPositionalBias`` of x-transformers, after the model Inkling of Thinking Machines. The former's projection has a
bias, a curve that all tokens share; here, as in Inkling, it has none. Both are causal; ``symmetric`` takes ``|i - j|`` for encoders.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .linear import init_linear, linear
from .options import DirectedOptions
from .registry import register_encoding
from .terms import QueryBuckets


@dataclass(frozen=True, kw_only=True)
class QueryBankOptions(DirectedOptions):
    """``num_bases`` is R, the number of curves; ``max_distance``: where they end."""

    num_bases: int = 16
    max_distance: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_bases >= 1, "num_bases", "at least 1")
        self.require(self.max_distance >= 1, "max_distance", "at least 1")


@register_encoding
class QueryBank(Encoding[QueryBankOptions]):
    """Parameters for each layer: ``projection`` W ``[H * R, E]``, drawn as for ``torch.nn.Linear``, and ``bank`` ``[R, max_distance]`` from N(0, 0.02)."""

    name = "query_bank"
    Options = QueryBankOptions
    reads = frozenset({"hidden_states"})
    card = Card(
        title="x-transformers: relative position bias via learned distance basis projection",
        authors="Wang, Phil",
        year=2026,
        arxiv=None,
        formula="score = q_i·k_j / √D + Σ_r (W x_i)_hr·g_r(i − j)",
        depends_on="content",
        directions="causal",
        beyond_training="the bias is 0 at distances of max_distance and more",
        venue="x-transformers, https://github.com/lucidrains/x-transformers",
    )

    def create_parameters(self) -> None:
        bases = self.options.num_bases
        self.projection = nn.Parameter(torch.empty(self.host.num_heads * bases, self.host.hidden_size))
        self.bank = nn.Parameter(torch.empty(bases, self.options.max_distance))

    def reset_parameters(self) -> None:
        init_linear(self.projection)
        nn.init.normal_(self.bank, std=0.02)

    def score_terms(self, inputs: EncodingInputs) -> tuple[QueryBuckets]:
        hidden = inputs.require("hidden_states", self.name).to(inputs.query.dtype)
        weights = linear(hidden, self.projection).unflatten(-1, (self.host.num_heads, self.options.num_bases))
        distances = inputs.positions.distances()
        if self.options.direction == "symmetric":
            distances = distances.abs()
        # one row of zeros more, for the distances that have none
        end = self.options.max_distance
        row = distances.masked_fill((distances < 0) | (distances >= end), end)
        table = nn.functional.pad(self.bank.T.to(hidden.dtype), (0, 0, 0, 1))
        return (QueryBuckets(weights.transpose(1, 2), table, row, inputs.positions),)
