"""A sinusoid of the distance, projected for the queries to meet, with a bias of its own for each term. Dai et al. 2019, arXiv 1901.02860.

``score = scale * ((q_i + u_h) . k_j + (q_i + v_h) . (W R(i - j))_h)``, ``R(n)`` the sinusoid of the distance, as wide as the hidden states.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .encoding import Encoding, OptionsT
from .inputs import EncodingInputs
from .options import EncodingOptions
from .sinusoid import sinusoid
from .terms import KeyVector, QueryBuckets, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class ClampOptions(EncodingOptions):
    """``clamp_len``: distances beyond it count as that distance (null: no limit)."""

    clamp_len: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.clamp_len is None or self.clamp_len >= 1, "clamp_len", "null or at least 1")

    def clamped(self, distances: Tensor) -> Tensor:
        """``distances`` with those beyond ``clamp_len``, on either side, at that distance."""
        return distances if self.clamp_len is None else distances.clamp(-self.clamp_len, self.clamp_len)


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
