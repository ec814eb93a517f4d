"""The plain sinusoidal relative encoding read as a scalar bias: ``score = scale * q_i . k_j + w_h . RPE(i - j)``.

``RPE(n)[2k] = sin(n / base**(2k/d))``, ``RPE(n)[2k+1] = cos(...)``. A function of distance alone, of rank at most ``d``. Precedent: the rotary
relative bias of Mega (Ma et al. 2022, arXiv 2209.10655), whose coefficients are products of two learned vectors.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs, Tokens
from .options import EncodingOptions, Host
from .registry import register_encoding
from .sinusoid import sinusoid
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class SinusoidalBiasOptions(EncodingOptions):
    """``dim`` is d, the head width unless given; ``base`` and ``add_absolute`` as for ``sinusoidal``."""

    dim: int | None = None
    base: float = 10000.0
    add_absolute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.dim is None or (self.dim >= 2 and self.dim % 2 == 0), "dim", "an even integer of at least 2")
        self.require(self.base > 1, "base", "larger than 1")

    def resolve(self, host: Host) -> Self:
        if self.dim is not None:
            return self
        if host.head_dim % 2:
            raise ValueError(f"the sinusoid needs an even width, but head_dim={host.head_dim} is odd: give dim")
        return replace(self, dim=host.head_dim)


@register_encoding
class SinusoidalBias(Encoding[SinusoidalBiasOptions]):
    """Parameter ``weight`` ``[H, d]`` for each layer, drawn from N(0, 0.02)."""

    name = "sinusoidal_bias"
    Options = SinusoidalBiasOptions
    by_place = True
    card = Card(
        title="Mega: Moving Average Equipped Gated Attention",
        authors="Ma, Xuezhe and Zhou, Chunting and Kong, Xiang and He, Junxian and Gui, Liangke and Neubig, Graham and May, Jonathan "
        "and Zettlemoyer, Luke",
        year=2022,
        arxiv="2209.10655",
        formula="score = q_i·k_j / √D + w_h·RPE(i − j)",
        depends_on="distance",
        directions="both",
        beyond_training="the sinusoid goes on; its slow waves meet phases never trained",
    )

    def create_parameters(self) -> None:
        assert self.options.dim is not None
        self.weight = nn.Parameter(torch.empty(self.host.num_heads, self.options.dim))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        waves = sinusoid(
            inputs.positions.distances(), self.weight.shape[1], float(self.options.base), "interleaved", inputs.dtype
        )
        return (DistanceTable(self.weight.to(inputs.dtype) @ waves.T, inputs.positions),)

    @property
    def adds_to_input(self) -> bool:
        return self.options.add_absolute

    def input_term(self, index: Tensor, width: int, tokens: Tokens, past: Tensor | None) -> Tensor:
        return sinusoid(index, width, float(self.options.base), "interleaved")
