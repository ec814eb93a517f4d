"""KERPLE, logarithmic kernel. Chi, Fan, Ramadge, Rudnicky 2022, arXiv 2205.09921.

``score = scale * q_i . k_j - p_h * log(1 + a_h * |i - j|)`` with learned ``p, a > 0`` for each head. As in the authors' code both are kept
at 0.01 or more, here by clamping the value used instead of the parameter in place. The paper is causal; with ``|i - j|`` the same
kernel serves encoders.
"""

import torch
from torch import nn

from .card import Card
from .encoding import Encoding, EncodingInputs, register_encoding
from .options import EncodingOptions
from .terms import DistanceTable

MINIMUM = 0.01


@register_encoding
class KerpleLog(Encoding[EncodingOptions]):
    """Parameters ``p`` ``[H]`` from U(0, 2) and ``a`` ``[H]`` from U(0, 1), one set for all layers."""

    name = "kerple_log"
    shared = True
    card = Card(
        title="KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation",
        authors="Chi, Ta-Chung and Fan, Ting-Han and Ramadge, Peter J. and Rudnicky, Alexander I.",
        year=2022,
        arxiv="2205.09921",
        formula="score = q_i·k_j / √D − p_h·log(1 + a_h·|i − j|)",
        depends_on="distance",
        directions="both",
        beyond_training="the penalty goes on logarithmically",
    )

    def create_parameters(self) -> None:
        self.p = nn.Parameter(torch.empty(self.host.num_heads))
        self.a = nn.Parameter(torch.empty(self.host.num_heads))

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.p, 0.0, 2.0)
        nn.init.uniform_(self.a, 0.0, 1.0)

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        distances = inputs.positions.distances().abs().to(inputs.dtype)
        p = self.p.to(inputs.dtype).clamp(min=MINIMUM)[:, None]
        a = self.a.to(inputs.dtype).clamp(min=MINIMUM)[:, None]
        return (DistanceTable(-p * torch.log1p(a * distances), inputs.positions),)
