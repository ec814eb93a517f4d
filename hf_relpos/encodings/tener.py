"""TENER's attention with direction and distance. Yan et al. 2019, arXiv 1911.04474.

``score = s * ((q_i + u_h) . k_j + (q_i + v_h) . R(j - i))``, ``R(n)`` a sinusoid as wide as a head, its first half sines, with wave lengths
``2 pi 10000**(2k / (D - 2))``, shared by the heads: Transformer-XL's form without its projection. The sign of the distance is that of the authors'
code; the paper writes ``R(i - j)``, and without a projection the two differ in what is learned, not in what can be.

The paper does not scale scores (``scaling="paper"``: ``s = 1``), which makes attention sharp; pretrained projections expect the scale of their host
(``"host"``). Its keys are the hidden states themselves; here they are the host's.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions, Host
from .registry import register_encoding
from .terms import ContentBias, QueryBuckets, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class TenerOptions(EncodingOptions):
    """``scaling`` as in the paper or the host's."""

    scaling: Literal["host", "paper"] = "host"

    def resolve(self, host: Host) -> Self:
        if host.head_dim % 2 or host.head_dim < 4:
            raise ValueError(
                f"the sinusoid needs an even number of coordinates, at least 4, but head_dim={host.head_dim}"
            )
        return self


@register_encoding
class Tener(Encoding[TenerOptions]):
    """Parameters ``content_bias`` u and ``position_bias`` v ``[H, D]``, Xavier normal."""

    name = "tener"
    Options = TenerOptions
    card = Card(
        title="TENER: Adapting Transformer Encoder for Named Entity Recognition",
        authors="Yan, Hang and Deng, Bocao and Li, Xiaonan and Qiu, Xipeng",
        year=2019,
        arxiv="1911.04474",
        formula="score = ((q_i + u_h)·k_j + (q_i + v_h)·R(j − i)) / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="the sinusoid goes on; its slow waves meet phases never trained",
    )

    def create_parameters(self) -> None:
        self.content_bias = nn.Parameter(torch.empty(self.host.num_heads, self.host.head_dim))
        self.position_bias = nn.Parameter(torch.empty(self.host.num_heads, self.host.head_dim))

    def reset_parameters(self) -> None:
        nn.init.xavier_normal_(self.content_bias)
        nn.init.xavier_normal_(self.position_bias)

    def content_scale(self, scale: float) -> float:
        return 1.0 if self.options.scaling == "paper" else scale

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        scale, dtype = self.content_scale(inputs.scale), inputs.query.dtype
        distances, half = inputs.positions.distances(), self.host.head_dim // 2
        steps = torch.arange(half, device=distances.device, dtype=torch.float64) / (half - 1)
        phase = -distances.to(torch.float64)[:, None] * 10000.0**-steps
        waves = torch.cat((phase.sin(), phase.cos()), dim=-1).to(dtype)
        query = scale * (inputs.query + self.position_bias.to(dtype)[:, None])
        content = ContentBias(self.content_bias.to(dtype), inputs.key, scale, inputs.positions)
        return (QueryBuckets(query, waves, None, inputs.positions), content)
