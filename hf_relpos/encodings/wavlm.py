"""WavLM's gated bias: T5's number per head and bucket, times a gate that each token sets for itself. Chen et al. 2021, arXiv 2110.13900.

``score = scale * q_i . k_j + g_ih bias[bucket(j - i), h]``, ``g = a (b c_h - 1) + 2``: ``a`` and ``b`` are sigmoids of a linear map of the head's slice of
the layer's input ``x_i``, to eight numbers that are summed in two groups of four. That map is shared by the heads, ``c`` is a number for each. Buckets are
T5's. The table is shared by all layers, the gates belong to each. The paper is for encoders; ``direction="causal"`` uses T5's causal buckets.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .buckets import BucketOptions
from .card import Card
from .encoding import Encoding, SharedPart
from .inputs import EncodingInputs
from .linear import init_linear, linear
from .options import Host
from .registry import register_encoding
from .terms import QueryBuckets


@dataclass(frozen=True, kw_only=True)
class WavLMOptions(BucketOptions):
    """``direction`` auto = causal in a decoder, bidirectional in an encoder."""

    num_buckets: int = 320
    max_distance: int = 800
    direction: Literal["auto", "causal", "bidirectional"] = "auto"

    def resolve(self, host: Host) -> Self:
        self.require(self.heads is None, "heads", "null: each head's gate reads its own slice of the hidden states")
        if host.hidden_size % host.num_heads:
            raise ValueError(
                f"each head's gate reads a slice of the hidden states, but hidden_size={host.hidden_size} is not a multiple of "
                f"num_heads={host.num_heads}"
            )
        if self.direction != "auto":
            return self
        return replace(self, direction="causal" if host.causal else "bidirectional")


class WavLMTable(SharedPart):
    """Parameter ``bias`` ``[num_buckets, H]``, drawn from N(0, 0.02)."""

    def create_parameters(self) -> None:
        self.bias = nn.Parameter(torch.empty(self.options.num_buckets, self.host.num_heads))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias, std=0.02)

    def tensor(self, inputs: EncodingInputs) -> Tensor:
        return self.bias


@register_encoding
class WavLMBias(Encoding[WavLMOptions]):
    """Parameters for each layer: ``gate_weight`` ``[8, E/H]`` and ``gate_bias`` ``[8]``, drawn as for ``torch.nn.Linear``, and ``gate_constant`` c ``[H]``, ones;
    for all layers those of :class:`WavLMTable`."""

    name = "wavlm"
    Options = WavLMOptions
    Shared = WavLMTable
    reads = frozenset({"hidden_states"})
    card = Card(
        title="WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing",
        authors="Chen, Sanyuan and Wang, Chengyi and Chen, Zhengyang and Wu, Yu and Liu, Shujie and Chen, Zhuo and Li, Jinyu and "
        "Kanda, Naoyuki and Yoshioka, Takuya and Xiao, Xiong and Wu, Jian and Zhou, Long and Ren, Shuo and Qian, Yanmin and "
        "Qian, Yao and Wu, Jian and Zeng, Michael and Yu, Xiangzhan and Wei, Furu",
        year=2021,
        arxiv="2110.13900",
        formula="score = q_i·k_j / √D + g_h(x_i)·b[bucket(j − i), h]",
        depends_on="content",
        directions="bidirectional",
        beyond_training="the last bucket serves every larger distance",
    )

    def create_parameters(self) -> None:
        self.gate_weight = nn.Parameter(torch.empty(8, self.host.hidden_size // self.host.num_heads))
        self.gate_bias = nn.Parameter(torch.empty(8))
        self.gate_constant = nn.Parameter(torch.empty(self.host.num_heads))

    def reset_parameters(self) -> None:
        init_linear(self.gate_weight, self.gate_bias)
        nn.init.ones_(self.gate_constant)

    def _gate(self, inputs: EncodingInputs) -> Tensor:
        """The gate of each token and head, ``[B, H, Tq]``."""
        hidden = inputs.require("hidden_states", self.name).to(inputs.dtype)
        slices = hidden.unflatten(-1, (self.host.num_heads, -1)).transpose(1, 2)
        groups = linear(slices, self.gate_weight, self.gate_bias).unflatten(-1, (2, 4)).sum(dim=-1)
        a, b = groups.sigmoid().unbind(dim=-1)
        return a * (b * self.gate_constant.to(inputs.dtype)[:, None] - 1) + 2

    def score_terms(self, inputs: EncodingInputs) -> tuple[QueryBuckets]:
        options = self.options
        bucket = options.bucket(inputs.positions.distances(), options.direction == "bidirectional")
        table = inputs.shared[self.name].to(inputs.dtype).T[..., None]
        return (QueryBuckets(self._gate(inputs)[..., None], table, bucket, inputs.positions),)
