"""DeBERTa's disentangled attention: content meets position both ways. He, Liu, Gao, Chen 2020, arXiv 2006.03654.

``score = f * (q_i . k_j + q_i . Kr_h[d] + k_j . Qr_h[d])``, ``d = clamp(i - j, -P, P - 1) + P``, where ``Kr = W_k T`` and ``Qr = W_q T + b_q`` project the
same table ``T`` ``[2P, E]``. The table is shared by all layers, the projections belong to each.

The paper's position-to-content term uses the distance ``j - i`` (``p2c_distance="paper"``); Microsoft's and transformers' code both use ``i - j``
as in the other term (``"code"``), and so do the published checkpoints. ``f`` is ``1 / sqrt(D * (1 + number of position terms))`` in the paper
(``scaling="paper"``); ``"host"`` keeps the host's scale. A text longer than ``P`` meets the ends of the table; for a shorter one transformers
cuts the table to as many rows, which gives the same numbers.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .card import Card
from .disentangled import Disentangled, DisentangledOptions, by_head
from .encoding import SharedPart
from .inputs import EncodingInputs
from .linear import linear
from .options import Host
from .registry import register_encoding


@dataclass(frozen=True, kw_only=True)
class DebertaOptions(DisentangledOptions):
    """``max_relative_positions`` is P, the host's ``max_position_embeddings`` unless given; ``p2c_distance`` chooses between
    the paper and what is used."""

    max_relative_positions: int | None = None
    p2c_distance: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.max_relative_positions is None or self.max_relative_positions >= 1,
            "max_relative_positions",
            "null or at least 1",
        )

    def resolve(self, host: Host) -> Self:
        return self.or_host("max_relative_positions", host)


class DebertaTable(SharedPart):
    """Parameter ``table`` ``[2P, E]``, drawn from N(0, 0.02)."""

    def create_parameters(self) -> None:
        self.table = nn.Parameter(torch.empty(2 * self.options.max_relative_positions, self.host.hidden_size))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def tensor(self, inputs: EncodingInputs) -> Tensor:
        return self.table


@register_encoding
class Deberta(Disentangled[DebertaOptions]):
    """Parameters ``key_projection`` ``[H * D, E]`` (with c2p), ``query_projection`` ``[H * D, E]`` and ``query_bias`` ``[H * D]`` (with p2c) for each layer,
    and the table of :class:`DebertaTable` for all; drawn from N(0, 0.02), the bias zero."""

    name = "deberta"
    Options = DebertaOptions
    Shared = DebertaTable
    card = Card(
        title="DeBERTa: Decoding-enhanced BERT with Disentangled Attention",
        authors="He, Pengcheng and Liu, Xiaodong and Gao, Jianfeng and Chen, Weizhu",
        year=2020,
        arxiv="2006.03654",
        formula="score = (q_i·k_j + q_i·Kr[d(i − j)] + k_j·Qr[d(i − j)]) / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="distances are clamped to the ends of the table",
    )

    def create_parameters(self) -> None:
        rows, width = self.host.num_heads * self.host.head_dim, self.host.hidden_size
        if self.options.c2p:
            self.key_projection = nn.Parameter(torch.empty(rows, width))
        if self.options.p2c:
            self.query_projection = nn.Parameter(torch.empty(rows, width))
            self.query_bias = nn.Parameter(torch.empty(rows))

    def reset_parameters(self) -> None:
        if self.options.c2p:
            nn.init.normal_(self.key_projection, std=0.02)
        if self.options.p2c:
            nn.init.normal_(self.query_projection, std=0.02)
            nn.init.zeros_(self.query_bias)

    def bucket(self, distances: Tensor) -> Tensor:
        size = self.options.max_relative_positions
        assert size is not None
        return distances.clamp(-size, size - 1) + size

    def p2c_bucket(self, distances: Tensor) -> Tensor:
        return self.bucket(distances if self.options.p2c_distance == "code" else -distances)

    def keys(self, table: Tensor, inputs: EncodingInputs) -> Tensor:
        return by_head(linear(table, self.key_projection), self.host.head_dim)

    def queries(self, table: Tensor, inputs: EncodingInputs) -> Tensor:
        return by_head(linear(table, self.query_projection, self.query_bias), self.host.head_dim)
