"""A learned number per head and distance, without buckets: ``score = scale * q_i . k_j + bias[h, clip(j - i, -K, K) + K]``.

The plain form of the scalar embeddings that Wu, Zhang, Mao, Chen 2021 (doi 10.1609/aaai.v35i16.17654) study; T5 shares numbers between
distances. It has been called SERPE, a name without a paper. Precedents: Mega's simple relative bias (arXiv 2209.10655) and, in two
dimensions, Swin (arXiv 2103.14030). Mega raises for texts longer than its table; here distances are clipped to the table's ends
(``beyond="clip"``) unless ``beyond="error"`` asks for that. Note the sign ``j - i``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
from .reach import require_reach
from .registry import register_encoding
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class ScalarOptions(EncodingOptions):
    """``max_distance`` is K, the largest distance with a number of its own; ``beyond``: what happens to larger ones."""

    max_distance: int = 128
    beyond: Literal["clip", "error"] = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.max_distance >= 1, "max_distance", "at least 1")


@register_encoding
class Scalar(Encoding[ScalarOptions]):
    """Parameter ``bias`` ``[H, 2K + 1]`` for each layer, drawn from N(0, 0.02)."""

    name = "scalar"
    Options = ScalarOptions
    by_place = True
    card = Card(
        title="On Scalar Embedding of Relative Positions in Attention Models",
        authors="Wu, Junshuang and Zhang, Richong and Mao, Yongyi and Chen, Junfan",
        year=2021,
        arxiv=None,
        formula="score = q_i·k_j / √D + b[h, clip(j − i)]",
        depends_on="distance",
        directions="both",
        beyond_training="distances are clipped at max_distance, or an error (option beyond)",
        venue="Proceedings of the AAAI Conference on Artificial Intelligence 35(16), doi 10.1609/aaai.v35i16.17654",
    )

    @property
    def max_length(self) -> int | None:
        return self.options.max_distance + 1 if self.options.beyond == "error" else None

    def create_parameters(self) -> None:
        self.bias = nn.Parameter(torch.empty(self.host.num_heads, 2 * self.options.max_distance + 1))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias, std=0.02)

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        require_reach(inputs.positions, self.max_length, self.name)
        limit = self.options.max_distance
        column = (-inputs.positions.distances()).clamp(-limit, limit) + limit
        return (DistanceTable(self.bias.to(inputs.dtype)[:, column], inputs.positions),)
