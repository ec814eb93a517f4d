"""KERPLE, power kernel. Chi, Fan, Ramadge, Rudnicky 2022, arXiv 2205.09921.

``score = scale * q_i . k_j - a_h * |i - j|**p_h`` with learned ``a > 0`` and ``0 < p <= 2`` for each head; ALiBi is the case ``p = 1``. As in
the authors' code ``a`` and ``p`` are kept at 0.01 or more and ``p`` at 2 or less, here by clamping the value used instead of the parameter in
place. The paper is causal; with ``|i - j|`` the same kernel serves encoders.
"""

from torch import Tensor

from .card import Card
from .kerple import Kerple
from .registry import register_encoding

MAXIMUM_POWER = 2.0


@register_encoding
class KerplePower(Kerple):
    """Parameters of :class:`Kerple`: ``p`` is the exponent, ``a`` the factor."""

    name = "kerple_power"
    card = Card(
        title="KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation",
        authors="Chi, Ta-Chung and Fan, Ting-Han and Ramadge, Peter J. and Rudnicky, Alexander I.",
        year=2022,
        arxiv="2205.09921",
        formula="score = q_i·k_j / √D − a_h·|i − j|^p_h",
        depends_on="distance",
        directions="causal",
        beyond_training="the penalty goes on as a power of distance",
    )

    def penalty(self, distances: Tensor, p: Tensor, a: Tensor) -> Tensor:
        # 0 ** p has no gradient that floats can hold, for p reaches it through log 0
        power = (distances.clamp(min=1) ** p.clamp(max=MAXIMUM_POWER)).masked_fill(distances == 0, 0.0)
        return a * power
