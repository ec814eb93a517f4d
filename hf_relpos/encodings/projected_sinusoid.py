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
from .terms import ContentBias, QueryBuckets, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class ClampOptions(EncodingOptions):
    """``clamp_len``: distances beyond it count as that distance (null: no limit)."""

    clamp_len: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.clamp_len is None or self.clamp_len >= 1, "clamp_len", "null or at least 1")


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

    def projected_terms(self, inputs: EncodingInputs, base: float, clamp: int | None = None) -> tuple[ScoreTerm, ...]:
        """The position term and the content bias, with ``R`` taken at the call's distances, none beyond ``clamp``."""
        dtype, heads, width = inputs.query.dtype, self.host.num_heads, self.host.hidden_size
        waves = inputs.once(
            ("sinusoid", clamp, width, base, self.layout, dtype),
            lambda: sinusoid(_clamped(inputs, clamp), width, base, self.layout, inputs.dtype).to(dtype),
        )
        projection = self.projection.to(dtype)
        query = inputs.scale * (inputs.query + self.position_bias.to(dtype)[:, None])
        if query.shape[0] * query.shape[2] < self.host.head_dim:
            # q . (W r) = (W^T q) . r: fewer products where there are few queries
            position = QueryBuckets(query @ projection.unflatten(0, (heads, -1)), waves, None, inputs.positions)
        else:
            rows = (waves @ projection.T).unflatten(-1, (heads, -1))
            position = QueryBuckets(query, rows.transpose(0, 1), None, inputs.positions)
        return (position, ContentBias(self.content_bias.to(dtype), inputs.key, inputs.scale, inputs.positions))


def _clamped(inputs: EncodingInputs, limit: int | None) -> Tensor:
    """The call's distances with those beyond ``limit``, on either side, at that distance."""
    distances = inputs.positions.distances()
    return distances if limit is None else distances.clamp(-limit, limit)
