"""CABLE: biases that depend on what stands between query and key. Veisi et al. 2025, arXiv 2503.08067.

``score = scale * q_i . k_j + b_i - b_j``, ``b`` being the cumulative sum of ``-softplus(w_h . x_l + c_h)`` over the layer's input ``x``: every token in between costs its
own penalty. Since ``-softplus(y) = log sigmoid(-y)``, it is the forgetting transformer with the sign of the gate turned around. An encoder
(``direction="symmetric"``) counts what lies between on either side with the same sum, ``-|b_i - b_j|``.

The published code does not scale ``q . k`` (``scaling="paper"``: factor 1); ``"host"`` keeps the host's scale. What is remembered of each key is what enters the
softplus, and sums are made anew in float32, so that decoding token by token sees the numbers of a full pass.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs, Tokens, missing_input
from .linear import init_linear, linear
from .options import DirectedOptions
from .registry import register_encoding
from .terms import KeyVector, PairFunction, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class CableOptions(DirectedOptions):
    """``direction`` as everywhere, ``scaling`` as in the paper or the host's."""

    scaling: Literal["host", "paper"] = "host"


@register_encoding
class Cable(Encoding[CableOptions]):
    """Parameters ``weight`` ``[H, E]`` and ``bias`` ``[H]`` for each layer, drawn as ``nn.Linear`` does."""

    name = "cable"
    Options = CableOptions
    reads = frozenset({"hidden_states"})
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

    def create_parameters(self) -> None:
        self.weight = nn.Parameter(torch.empty(self.host.num_heads, self.host.hidden_size))
        self.bias = nn.Parameter(torch.empty(self.host.num_heads))

    def reset_parameters(self) -> None:
        init_linear(self.weight, self.bias)

    def content_scale(self, scale: float) -> float:
        return 1.0 if self.options.scaling == "paper" else scale

    @property
    def state_width(self) -> int:
        return self.host.num_heads

    def key_state(self, tokens: Tokens) -> Tensor:
        hidden = tokens.hidden_states
        if hidden is None:
            raise missing_input("hidden_states", self.name)
        return linear(hidden, self.weight, self.bias)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        positions = inputs.positions
        sums = -nn.functional.softplus(inputs.require("key_state", self.name).to(inputs.dtype)).cumsum(1)
        at_queries = positions.of_queries(sums)
        if self.options.direction == "causal":
            return (KeyVector(-sums.transpose(1, 2), positions, rows=at_queries.transpose(1, 2)),)
        return (PairFunction(lambda query, key: -(query - key).abs(), at_queries, sums),)
