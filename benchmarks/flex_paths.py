"""FlexAttention with relative positions: PyTorch's own compiled rival.

Each function takes ``query``, ``key`` and ``value`` ``[B, H, L, D]`` and returns what attends, giving ``[B, H, L, D]``, and the tensors that learn; ValueError where
FlexAttention does not run.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def flex_table(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A table of distances that learns, bidirectional."""
    return _flex(query, key, value, causal=False)


def flex_table_causal(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A table of distances that learns, causal."""
    return _flex(query, key, value, causal=True)


def _flex(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Callable[[], Tensor], list[Tensor]]:
    if query.requires_grad and query.device.type == "cpu":
        raise ValueError("FlexAttention has no backward pass on a CPU")
    heads, length = query.shape[1:3]
    table = torch.randn(heads, 2 * length - 1).mul_(0.02).to(query).requires_grad_(query.requires_grad)

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + table[h, i - j + length - 1]

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j if causal else i >= 0

    # without one, even of a mask that hides nothing, it is several times slower on a CPU
    blocks = create_block_mask(visible, None, None, length, length, device=query.device.type)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend() -> Tensor:
        output = compiled(query, key, value, score_mod=biased, block_mask=blocks)
        assert isinstance(output, Tensor)
        return output

    try:
        with torch.set_grad_enabled(query.requires_grad):
            attend()
    except Exception as error:  # whatever the compiler raises says that it cannot
        raise ValueError(f"FlexAttention does not run here: {str(error).splitlines()[0]}") from error
    return attend, [query, key, value, table]
