"""Sinusoids of a position, and the angles that rotations share with them.

``angles[p, k] = p / base**(2k / width)``, ``k = 0 .. width/2 - 1`` (Vaswani et al. 2017, arXiv 1706.03762). Angles are
float64, since float32 loses three digits at slot 10,000; their sines and cosines are rounded to the dtype that is asked for, float32 by default.
"""

from typing import Literal

import torch
from torch import Tensor


def angles(positions: Tensor, width: int, base: float) -> Tensor:
    """``positions[..., None] / base**(2k / width)`` for ``width // 2`` frequencies, float64."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    return positions.to(torch.float64)[..., None] * base**-exponents


def sinusoid(
    positions: Tensor,
    width: int,
    base: float,
    layout: Literal["interleaved", "halves"],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sines and cosines of every position, ``[..., width]``: ``[sin_0, cos_0, sin_1, ...]`` or ``[sin_0, sin_1, ..., cos_0, ...]``."""
    phase = angles(positions, width, base)
    if layout == "interleaved":
        waves = torch.stack((phase.sin(), phase.cos()), dim=-1).flatten(-2)
    else:
        waves = torch.cat((phase.sin(), phase.cos()), dim=-1)
    return waves.to(dtype)
