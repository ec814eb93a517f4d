"""KERPLE, logarithmic kernel. Chi, Fan, Ramadge, Rudnicky 2022, arXiv 2205.09921.

``score = scale * q_i . k_j - p_h * log(1 + a_h * |i - j|)`` with learned ``p, a > 0`` for each head. As in the authors' code both are kept
at 0.01 or more, here by clamping the value used instead of the parameter in place. The paper is causal; with ``|i - j|`` the same
kernel serves encoders.
"""

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import DirectedOptions
from .registry import register_encoding
from .terms import DistanceTable

MINIMUM = 0.01


class Kerple(Encoding[DirectedOptions]):
    """A penalty that grows with distance along a learned kernel, for both kernels of the paper.

    Parameters ``p`` ``[H]`` from U(0, 2) and ``a`` ``[H]`` from U(0, 1), one set for all layers.
    """

    Options = DirectedOptions
    shared = True

    def create_parameters(self) -> None:
        self.p = nn.Parameter(torch.empty(self.host.num_heads))
        self.a = nn.Parameter(torch.empty(self.host.num_heads))

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.p, 0.0, 2.0)
        nn.init.uniform_(self.a, 0.0, 1.0)

    def penalty(self, distances: Tensor, p: Tensor, a: Tensor) -> Tensor:
        """The penalty ``[H, L]`` of ``distances`` ``[L]``, none negative, for ``p`` and ``a`` ``[H, 1]``, at least MINIMUM."""
        raise NotImplementedError

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        # the same in both directions: a causal host masks the keys at negative distances
        distances = inputs.positions.distances().abs().to(inputs.dtype)
        p = self.p.to(inputs.dtype).clamp(min=MINIMUM)[:, None]
        a = self.a.to(inputs.dtype).clamp(min=MINIMUM)[:, None]
        return (DistanceTable(-self.penalty(distances, p, a), inputs.positions),)


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
