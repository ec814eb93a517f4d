"""The disentangled attention of DeBERTa v2 and v3, with buckets of distances. He, Gao, Chen 2021, arXiv 2111.09543.

``score = f * (q_i . k_j + q_i . Kr_h[d] + k_j . Qr_h[d])``, ``d = clamp(bucket(i - j) + span, 0, 2 * span - 1)``, with the table ``T`` ``[2 * span, E]`` of all
layers, layer-normed where ``norm`` asks for it. Distances up to half of ``position_buckets`` have a bucket each, larger ones share buckets
that grow by powers up to ``max_relative_positions``. ``span`` is ``position_buckets``, or ``max_relative_positions`` without buckets.

``share_att_key=True`` (v3) takes ``Kr`` and ``Qr`` from the host's own maps to keys and queries, biases included, and owns the table alone;
that needs a model to lend them. ``f`` as in v1: ``1 / sqrt(D * (1 + number of position terms))`` with ``scaling="paper"``.

Microsoft's code clamps distances before it buckets them, transformers does not: they differ in one row, for keys ``max_relative_positions``
and more after the query. This is transformers' form, whose float32 decides at the edges of buckets.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .card import Card
from .disentangled import Disentangled, DisentangledOptions, by_head
from .encoding import SharedPart
from .inputs import EncodingInputs, missing_input
from .linear import linear
from .options import Host
from .registry import register_encoding


@dataclass(frozen=True, kw_only=True)
class DebertaV2Options(DisentangledOptions):
    """``position_buckets`` (null: a row for each distance) and ``max_relative_positions`` as in its configs; ``share_att_key``: use the host's
    projections; ``norm``: LayerNorm of the table."""

    position_buckets: int | None = 256
    max_relative_positions: int = 512
    share_att_key: bool = False
    norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets = self.position_buckets
        self.require(self.max_relative_positions >= 1, "max_relative_positions", "at least 1")
        self.require(buckets is None or buckets >= 2, "position_buckets", "null or at least 2")
        self.require(
            buckets is None or self.max_relative_positions > buckets // 2 + 1,
            "max_relative_positions",
            f"larger than half of position_buckets={buckets} plus 1",
        )

    def resolve(self, host: Host) -> Self:
        if self.share_att_key and not host.projections:
            raise ValueError(
                "share_att_key=True is not valid here: it uses the projections of a model's attention, and there is none that lends "
                "them; valid here: false"
            )
        return self

    @property
    def span(self) -> int:
        """Rows of the table for each side."""
        return self.max_relative_positions if self.position_buckets is None else self.position_buckets


def deberta_bucket(distances: Tensor, buckets: int, longest: int) -> Tensor:
    """The bucket of each of ``distances`` ``i - j`` (any shape, int64), negative for the future."""
    mid = buckets // 2
    size = distances.abs()
    # float32, as transformers rounds at the bucket edges
    ratio = torch.log(size.clamp(min=mid).float() / mid) / torch.log(
        torch.tensor((longest - 1) / mid, dtype=torch.float32, device=distances.device)
    )
    logarithmic = (torch.ceil(ratio * (mid - 1)).long() + mid) * distances.sign()
    return torch.where(size <= mid, distances, logarithmic)


class DebertaV2Table(SharedPart):
    """Parameter ``table`` ``[2 * span, E]``, drawn from N(0, 0.02); with ``norm`` also ``norm_weight`` one and ``norm_bias`` zero ``[E]``."""

    def create_parameters(self) -> None:
        width = self.host.hidden_size
        self.table = nn.Parameter(torch.empty(2 * self.options.span, width))
        if self.options.norm:
            self.norm_weight = nn.Parameter(torch.empty(width))
            self.norm_bias = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)
        if self.options.norm:
            nn.init.ones_(self.norm_weight)
            nn.init.zeros_(self.norm_bias)

    def tensor(self, inputs: EncodingInputs) -> Tensor:
        if not self.options.norm:
            return self.table
        return nn.functional.layer_norm(self.table, self.table.shape[-1:], self.norm_weight, self.norm_bias, eps=1e-7)


@register_encoding
class DebertaV2(Disentangled[DebertaV2Options]):
    """Parameters ``key_projection`` ``[H * D, E]`` and ``key_bias`` ``[H * D]`` (with c2p), ``query_projection`` and ``query_bias`` (with p2c) for each layer,
    none of them with ``share_att_key``, and those of :class:`DebertaV2Table` for all; drawn from N(0, 0.02), biases zero."""

    name = "deberta_v2"
    Options = DebertaV2Options
    Shared = DebertaV2Table
    card = Card(
        title="DeBERTaV3: Improving DeBERTa using ELECTRA-Style Pre-Training with Gradient-Disentangled Embedding Sharing",
        authors="He, Pengcheng and Gao, Jianfeng and Chen, Weizhu",
        year=2021,
        arxiv="2111.09543",
        formula="score = (q_i·k_j + q_i·Kr[bucket(i − j)] + k_j·Qr[bucket(i − j)]) / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="the last bucket of each side serves every larger distance",
    )

    @property
    def needs(self) -> frozenset[str]:
        return self.reads | {"projections"} if self.options.share_att_key else self.reads

    def create_parameters(self) -> None:
        rows, width = self.host.num_heads * self.host.head_dim, self.host.hidden_size
        own = not self.options.share_att_key
        if own and self.options.c2p:
            self.key_projection = nn.Parameter(torch.empty(rows, width))
            self.key_bias = nn.Parameter(torch.empty(rows))
        if own and self.options.p2c:
            self.query_projection = nn.Parameter(torch.empty(rows, width))
            self.query_bias = nn.Parameter(torch.empty(rows))

    def reset_parameters(self) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def bucket(self, distances: Tensor) -> Tensor:
        options = self.options
        if options.position_buckets is not None:
            distances = deberta_bucket(distances, options.position_buckets, options.max_relative_positions)
        return (distances + options.span).clamp(0, 2 * options.span - 1)

    def keys(self, table: Tensor, inputs: EncodingInputs) -> Tensor:
        if not self.options.share_att_key:
            return by_head(linear(table, self.key_projection, self.key_bias), self.host.head_dim)
        if inputs.projections is None:
            raise missing_input("projections", self.name)
        keys = inputs.projections[1](table)
        return keys.repeat_interleave(self.host.num_heads // keys.shape[0], dim=0)

    def queries(self, table: Tensor, inputs: EncodingInputs) -> Tensor:
        if not self.options.share_att_key:
            return by_head(linear(table, self.query_projection, self.query_bias), self.host.head_dim)
        if inputs.projections is None:
            raise missing_input("projections", self.name)
        return inputs.projections[0](table)
