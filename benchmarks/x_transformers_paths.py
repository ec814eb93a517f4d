"""x-transformers' attention with T5's bias, where that package is installed; this project does not install it."""

from collections.abc import Callable
from importlib import import_module

from torch import Tensor


def t5(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Its bias, built in the call, handed to its attention by PyTorch's fused kernels; ValueError where the package is missing."""
    try:
        parts, attend_module = import_module("x_transformers.x_transformers"), import_module("x_transformers.attend")
    except ModuleNotFoundError as error:
        raise ValueError(f"x-transformers cannot be imported: {error}") from None
    heads = query.shape[1]
    bias = parts.RelativePositionBias(scale=1.0, heads=heads).to(query)
    bias.requires_grad_(query.requires_grad)
    attention = attend_module.Attend(heads=heads, flash=True).to(query.device)

    def attend() -> Tensor:
        return attention(query, key, value, attn_bias=bias(query.shape[2], key.shape[2]))[0]

    return attend, [query, key, value, bias.relative_attention_bias.weight]
