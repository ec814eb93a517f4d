"""ALiBi's slopes, for each method that penalises a distance by head. Press, Smith, Lewis 2021, arXiv 2108.12409."""

import torch
from torch import Tensor


def alibi_slopes(num_heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The paper's slope of each head, ``[H]``: ``2**(-8 (h + 1) / H)`` for ``H`` a power of two, otherwise those of the power of two below, followed by every
    second slope of the next one.

    Computed on ``device``: a list of numbers would be copied there at every call.
    """
    floor = 1 << (num_heads.bit_length() - 1)
    head = torch.arange(num_heads, device=device)
    # in steps of half a slope of the power of two below: even ones are its own, odd ones lie between them
    steps = torch.where(head < floor, 2 * (head + 1), 2 * (head - floor) + 1)
    # rounded to float32 from float64, where the device has it
    precise = torch.float32 if device.type == "mps" else torch.float64
    return torch.exp2(steps.to(precise) * (-4.0 / floor)).to(dtype)
