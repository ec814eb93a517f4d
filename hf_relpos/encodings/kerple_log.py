"""KERPLE, logarithmic kernel. Chi, Fan, Ramadge, Rudnicky 2022, arXiv 2205.09921.

``score = scale * q_i . k_j - p_h * log(1 + a_h * |i - j|)`` with learned ``p, a > 0`` for each head. As in the authors' code both are kept
at 0.01 or more, here by clamping the value used instead of the parameter in place. The paper is causal; with ``|i - j|`` the same
kernel serves encoders.
"""

import torch
from torch import Tensor

from .card import Card
from .kerple import Kerple
from .registry import register_encoding


@register_encoding
class KerpleLog(Kerple):
    """Parameters of :class:`Kerple`."""

    name = "kerple_log"
    card = Card(
        title="KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation",
        authors="Chi, Ta-Chung and Fan, Ting-Han and Ramadge, Peter J. and Rudnicky, Alexander I.",
        year=2022,
        arxiv="2205.09921",
        formula="score = q_i·k_j / √D − p_h·log(1 + a_h·|i − j|)",
        depends_on="distance",
        directions="causal",
        beyond_training="the penalty goes on logarithmically",
    )

    def penalty(self, distances: Tensor, p: Tensor, a: Tensor) -> Tensor:
        return p * torch.log1p(a * distances)
