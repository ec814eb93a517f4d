"""Transformer-XL's relative encoding. Dai et al. 2019, arXiv 1901.02860.

``score = scale * ((q_i + u_h) . k_j + (q_i + v_h) . (W R(i - j))_h)``. ``R(n)`` is the sinusoid of the distance, its first half sines and its
second half cosines (not interleaved), as wide as the hidden states. The paper is causal; the formula serves encoders as it is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding, OptionsT
from .inputs import EncodingInputs
from .options import EncodingOptions
from .registry import register_encoding
from .sinusoid import sinusoid
from .terms import KeyVector, QueryBuckets, ScoreTerm


class ProjectedSinusoid(Encoding[OptionsT]):
    """Terms of ``(q + u) . k + (q + v) . (W R(n))``, for every method of that form.

    Parameters for each layer: ``content_bias`` u and ``position_bias`` v ``[H, D]``, ``projection`` W ``[H * D, E]``.
    """

    layout: Literal["interleaved", "halves"]

    def create_parameters(self) -> None:
        heads, width = self.host.num_heads, self.host.head_dim
        self.content_bias = nn.Parameter(torch.empty(heads, width))
        self.position_bias = nn.Parameter(torch.empty(heads, width))
        self.projection = nn.Parameter(torch.empty(heads * width, self.host.hidden_size))

    def reset_parameters(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)

    def projected_terms(self, inputs: EncodingInputs, distances: Tensor, base: float) -> tuple[ScoreTerm, ...]:
        """The position term and the content bias, with ``R`` taken at ``distances`` ``[L]``."""
        dtype = inputs.query.dtype
        waves = sinusoid(distances, self.host.hidden_size, base, self.layout, inputs.dtype).to(dtype)
        rows = (waves @ self.projection.T.to(dtype)).unflatten(-1, (self.host.num_heads, self.host.head_dim))
        query = inputs.scale * (inputs.query + self.position_bias.to(dtype)[:, None])
        content = inputs.scale * torch.einsum("hd,bhkd->bhk", self.content_bias.to(dtype), inputs.keys_per_head())
        position = QueryBuckets(query, rows.transpose(0, 1), None, inputs.positions)
        return (position, KeyVector(content, inputs.positions))


@dataclass(frozen=True, kw_only=True)
class TransformerXLOptions(EncodingOptions):
    """``clamp_len``: distances beyond it count as that distance (null: no limit)."""

    clamp_len: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.clamp_len is None or self.clamp_len >= 1, "clamp_len", "null or at least 1")


@register_encoding
class TransformerXL(ProjectedSinusoid[TransformerXLOptions]):
    """Parameters of :class:`ProjectedSinusoid`, drawn from N(0, 0.02)."""

    name = "transformer_xl"
    Options = TransformerXLOptions
    layout = "halves"
    card = Card(
        title="Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        authors="Dai, Zihang and Yang, Zhilin and Yang, Yiming and Carbonell, Jaime and Le, Quoc V. and Salakhutdinov, Ruslan",
        year=2019,
        arxiv="1901.02860",
        formula="score = ((q_i + u_h)·k_j + (q_i + v_h)·(W R(i − j))_h) / √D",
        depends_on="content",
        directions="causal",
        beyond_training="the sinusoid goes on, or is clamped at clamp_len",
    )

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        distances = inputs.positions.distances()
        if self.options.clamp_len is not None:
            distances = distances.clamp(-self.options.clamp_len, self.options.clamp_len)
        return self.projected_terms(inputs, distances, base=10000.0)
