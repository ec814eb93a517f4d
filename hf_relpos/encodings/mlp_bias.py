"""Dynamic position bias: a small network turns distance into a number per head. Wang et al. 2021, arXiv 2108.00154 (CrossFormer).

``score = scale * q_i . k_j + MLP(x)_h``, ``x = sign(n) log(|n| + 1)`` of ``n = i - j``, or ``x = n`` with ``log_distance=False``. CrossFormer has it for
two-dimensional windows with ReLU and normalisation; this is the one-dimensional form of x-transformers without normalisation: one input
layer, ``depth - 1`` hidden ones, each followed by SiLU, and an output layer. Raw distances are large inputs that the network does not
normalise: use them for short texts only.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .linear import init_linear, linear
from .options import EncodingOptions, Host
from .registry import register_encoding
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class MlpBiasOptions(EncodingOptions):
    """``width`` of the network, a quarter of the hidden size unless given; ``depth``: its layers before the output; ``log_distance``: its input
    grows with the logarithm of distance."""

    width: int | None = None
    depth: int = 2
    log_distance: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.width is None or self.width >= 1, "width", "at least 1")
        self.require(self.depth >= 1, "depth", "at least 1")

    def resolve(self, host: Host) -> Self:
        return self if self.width is not None else replace(self, width=max(host.hidden_size // 4, 1))


@register_encoding
class MlpBias(Encoding[MlpBiasOptions]):
    """Parameters of one network for all layers, drawn as for ``torch.nn.Linear``: ``input_weight`` ``[w, 1]``, ``input_bias`` ``[w]``, ``hidden_weight``
    ``[depth - 1, w, w]``, ``hidden_bias`` ``[depth - 1, w]`` (none at depth 1), ``output_weight`` ``[H, w]``, ``output_bias`` ``[H]``."""

    name = "mlp_bias"
    Options = MlpBiasOptions
    shared = True
    by_place = True
    card = Card(
        title="CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention",
        authors="Wang, Wenxiao and Yao, Lu and Chen, Long and Lin, Binbin and Cai, Deng and He, Xiaofei and Liu, Wei",
        year=2021,
        arxiv="2108.00154",
        formula="score = q_i·k_j / √D + MLP(sign(i − j)·log(|i − j| + 1))_h",
        depends_on="distance",
        directions="bidirectional",
        beyond_training="the network extrapolates",
    )

    def create_parameters(self) -> None:
        width, hidden, heads = self.options.width, self.options.depth - 1, self.host.num_heads
        assert width is not None
        self.input_weight = nn.Parameter(torch.empty(width, 1))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.hidden_weight = nn.Parameter(torch.empty(hidden, width, width)) if hidden else None
        self.hidden_bias = nn.Parameter(torch.empty(hidden, width)) if hidden else None
        self.output_weight = nn.Parameter(torch.empty(heads, width))
        self.output_bias = nn.Parameter(torch.empty(heads))

    def reset_parameters(self) -> None:
        init_linear(self.input_weight, self.input_bias)
        if self.hidden_weight is not None:
            init_linear(self.hidden_weight, self.hidden_bias)
        init_linear(self.output_weight, self.output_bias)

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        x = inputs.positions.distances().to(inputs.dtype)[:, None]
        if self.options.log_distance:
            x = x.sign() * torch.log1p(x.abs())
        x = nn.functional.silu(linear(x, self.input_weight, self.input_bias))
        if self.hidden_weight is not None and self.hidden_bias is not None:
            for weight, bias in zip(self.hidden_weight, self.hidden_bias, strict=True):
                x = nn.functional.silu(linear(x, weight, bias))
        return (DistanceTable(linear(x, self.output_weight, self.output_bias).T, inputs.positions),)
