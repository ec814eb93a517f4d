"""DAPE v2: the network that adapts the bias sees neighbouring keys. Zheng et al. 2024, arXiv 2410.04798.

``score = A + B + f([A; B])`` as in DAPE, but both layers of ``f`` are convolutions over the keys of a query, ``kernel`` wide and zero-padded.

Keys that the query does not see are set to zero, in the input and again in the hidden layer; so padding, later tokens and the end of the
cache are all the same nothing, and decoding token by token gives the numbers of a full pass. The published code masks the input only
(``tril``): its hidden layer is ``leaky_relu(b1)``, or what it sees of the neighbours, at later keys, and reaches back by half a kernel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapted_bias import AdaptedBias, AdaptedBiasOptions
from .card import Card
from .registry import register_encoding


@dataclass(frozen=True, kw_only=True)
class DapeV2Options(AdaptedBiasOptions):
    """As for DAPE; ``kernel``: how many neighbouring keys each layer sees, odd."""

    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.kernel >= 1 and self.kernel % 2 == 1, "kernel", "a positive odd integer")


@register_encoding
class DapeV2(AdaptedBias[DapeV2Options]):
    """Parameters of :class:`AdaptedBias`, both weights with a last axis of ``kernel`` keys."""

    name = "dape_v2"
    Options = DapeV2Options
    card = Card(
        title="DAPE V2: Process Attention Score as Feature Map for Length Extrapolation",
        authors="Zheng, Chuanyang and Gao, Yihang and Shi, Han and Xiong, Jing and Sun, Jiankai and Li, Jingyao and Huang, Minbin and "
        "Ren, Xiaozhe and Ng, Michael and Jiang, Xin and Li, Zhenguo and Li, Yu",
        year=2024,
        arxiv="2410.04798",
        formula="score = A + B + f([A; B]), A = q_i·k_j / √D, B a bias, f a convolution over keys",
        depends_on="content",
        directions="causal",
        beyond_training="as the bias that it adapts",
    )

    def kernel(self) -> tuple[int, ...]:
        return (self.options.kernel,)

    def network(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            padding = (0, self.options.kernel // 2)
            return nn.functional.conv2d(x, weight.to(x.dtype)[:, :, None], bias.to(x.dtype), padding=padding)

        seen_by_any = None
        if visible is not None:
            seen_by_any = visible.any(dim=1, keepdim=True)
            own = visible if visible.shape[1] == 1 else torch.cat([visible] * (scores.shape[1] // visible.shape[1]), 1)
            scores = scores.masked_fill(~own, 0.0)
        hidden = nn.functional.leaky_relu(convolve(scores, self.input_weight, self.input_bias), 0.01)
        if seen_by_any is not None:
            # hidden units belong to no head: where masks differ by head they see what any head sees
            hidden = hidden.masked_fill(~seen_by_any, 0.0)
        return convolve(hidden, self.output_weight, self.output_bias)
