"""How a quantity grows with length: the exponent of a power law through what was measured."""

from collections.abc import Mapping

import numpy as np


def exponent(values: Mapping[int, float]) -> float | None:
    """``b`` of the least-squares fit ``log value = a + b log length``; None with fewer than two lengths, or without a positive value at one of them."""
    if len(values) < 2 or min(values.values()) <= 0:
        return None
    slope, _ = np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)
    return float(slope)
