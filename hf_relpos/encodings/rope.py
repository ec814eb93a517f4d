"""Rotary position embedding. Su et al. 2021, arXiv 2104.09864.

Queries and keys are rotated by their slot: pair ``k`` of coordinates by the angle ``p * base**(-2k / rd)``, where ``rd`` is the even number
of leading coordinates that rotate (``fraction`` of the head width). The score then depends on ``i - j``. ``layout="half"`` pairs ``(x_k,
x_{k + rd/2})`` as Llama and GPT-NeoX do, ``"interleaved"`` pairs ``(x_2k, x_2k+1)`` as RoFormer and GPT-J do.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from .card import Card
from .encoding import Encoding, EncodingInputs, register_encoding
from .options import EncodingOptions, Host
from .sinusoid import angles


@dataclass(frozen=True, kw_only=True)
class RopeOptions(EncodingOptions):
    """``base`` of the wave lengths, ``layout`` of the pairs, ``fraction`` of the head width that rotates."""

    base: float = 10000.0
    layout: Literal["half", "interleaved"] = "half"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.base > 1, "base", "larger than 1")
        self.require(0 < self.fraction <= 1, "fraction", "larger than 0 and at most 1")

    def resolve(self, host: Host) -> Self:
        rotated = int(host.head_dim * self.fraction)
        if rotated < 2 or rotated % 2:
            raise ValueError(
                f"rel_pos type 'rope' rotates an even number of coordinates, but head_dim={host.head_dim} times "
                f"fraction={self.fraction} gives {rotated}"
            )
        return self


@register_encoding
class Rope(Encoding[RopeOptions]):
    """No parameters."""

    name = "rope"
    Options = RopeOptions
    shared = True
    card = Card(
        title="RoFormer: Enhanced Transformer with Rotary Position Embedding",
        authors="Su, Jianlin and Lu, Yu and Pan, Shengfeng and Murtadha, Ahmed and Wen, Bo and Liu, Yunfeng",
        year=2021,
        arxiv="2104.09864",
        formula="score = (R_i q_i)·(R_j k_j) / √D",
        depends_on="rotation",
        directions="both",
        beyond_training="rotates on; slow pairs meet angles never trained",
    )

    def _rotate(self, x: Tensor, slots: Tensor) -> Tensor:
        rotated = int(self.host.head_dim * self.options.fraction)
        phase = angles(slots, rotated, float(self.options.base))[:, None]
        dtype = torch.promote_types(x.dtype, torch.float32)
        cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)
        part, rest = x[..., :rotated].to(dtype), x[..., rotated:]
        first, second = part.chunk(2, dim=-1) if self.options.layout == "half" else (part[..., 0::2], part[..., 1::2])
        turned = (first * cos - second * sin, second * cos + first * sin)
        part = torch.cat(turned, dim=-1) if self.options.layout == "half" else torch.stack(turned, dim=-1).flatten(-2)
        return torch.cat((part.to(x.dtype), rest), dim=-1)

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._rotate(query, inputs.positions.query)

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._rotate(key, inputs.positions.key)
