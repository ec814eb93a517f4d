"""CABLE: biases that depend on what stands between query and key. Veisi et al. 2025, arXiv 2503.08067.

``score = scale * q_i . k_j + b_i - b_j``, ``b`` being the cumulative sum of ``-softplus(w_h . x_l + c_h)`` over the layer's input ``x``: every token in between costs its
own penalty. Since ``-softplus(y) = log sigmoid(-y)``, it is the forgetting transformer with the sign of the gate turned around. An encoder
(``direction="symmetric"``) counts what lies between on either side with the same sum, ``-|b_i - b_j|``.

The published code does not scale ``q . k`` (``scaling="paper"``: factor 1); ``"host"`` keeps the host's scale.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .card import Card
from .gated_distance import GatedDistance
from .linear import init_linear
from .options import DirectedOptions
from .positions import Positions
from .registry import register_encoding
from .terms import PairFunction


@dataclass(frozen=True, kw_only=True)
class CableOptions(DirectedOptions):
    """``direction`` as everywhere, ``scaling`` as in the paper or the host's."""

    scaling: Literal["host", "paper"] = "host"


@register_encoding
class Cable(GatedDistance[CableOptions]):
    """Parameters of :class:`GatedDistance`, drawn as ``nn.Linear`` does."""

    name = "cable"
    Options = CableOptions
    card = Card(
        title="Context-aware Biases for Length Extrapolation",
        authors="Veisi, Ali and Amirzadeh, Hamidreza and Mansourian, Amir",
        year=2025,
        arxiv="2503.08067",
        formula="score = q_i·k_j / √D − Σ_{l=j+1..i} softplus(w_h·x_l + c_h)",
        depends_on="content",
        directions="causal",
        beyond_training="penalties go on adding up",
    )

    def reset_parameters(self) -> None:
        init_linear(self.weight, self.bias)

    def content_scale(self, scale: float) -> float:
        return 1.0 if self.options.scaling == "paper" else scale

    @property
    def past_only(self) -> bool:
        return self.options.direction == "causal"

    def log_gate(self, y: Tensor) -> Tensor:
        return -nn.functional.softplus(y)

    def both_ways(self, at_queries: Tensor, sums: Tensor, positions: Positions) -> PairFunction:
        return PairFunction(lambda query, key: -(query - key).abs(), at_queries, sums)
