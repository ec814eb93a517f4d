"""KERPLE: a penalty that grows with distance along a learned kernel. Chi, Fan, Ramadge, Rudnicky 2022, arXiv 2205.09921.

``score = scale * q_i . k_j - kernel(|i - j|; p_h, a_h)`` with learned ``p, a > 0`` for each head. As in the authors' code both are kept at 0.01 or more, here
by clamping the value used instead of the parameter in place.
"""

import torch
from torch import Tensor, nn

from .encoding import Encoding
from .inputs import EncodingInputs
from .options import DirectedOptions
from .terms import DistanceTable

MINIMUM = 0.01


class Kerple(Encoding[DirectedOptions]):
    """A penalty that grows with distance along a learned kernel, for both kernels of the paper.

    Parameters ``p`` ``[H]`` from U(0, 2) and ``a`` ``[H]`` from U(0, 1), one set for all layers.
    """

    Options = DirectedOptions
    shared = True
    by_place = True

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
