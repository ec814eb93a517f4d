"""TISA, translation-invariant self-attention: a sum of learned bumps over distance. Wennberg, Henter 2021, arXiv 2106.01950.

``score = scale * q_i . k_j + sum_s a_sh exp(-|b_sh| (n - c_sh)**2)`` with ``n = i - j``; parameters are amplitude ``a``, sharpness ``b`` and
offset ``c``. Paper and code differ: the paper writes ``j - i``, the authors' repository has ``i - j - 1``, for its matrix of offsets starts one
early. Offsets are learned, so this matters for an exchange of weights only: ``c`` here is the repository's ``c + 1``.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
from .registry import register_encoding
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class TisaOptions(EncodingOptions):
    """``kernels`` is the paper's S, the number of bumps for each head."""

    kernels: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.kernels >= 1, "kernels", "at least 1")


@register_encoding
class Tisa(Encoding[TisaOptions]):
    """Parameters ``amplitude`` and ``sharpness`` from N(0.1, 0.01) and ``offset`` from N(0, 5), ``[S, H]`` each, one set for all layers."""

    name = "tisa"
    Options = TisaOptions
    shared = True
    by_place = True
    card = Card(
        title="The Case for Translation-Invariant Self-Attention in Transformer-Based Language Models",
        authors="Wennberg, Ulme and Henter, Gustav Eje",
        year=2021,
        arxiv="2106.01950",
        formula="score = q_i·k_j / √D + Σ_s a_sh·exp(−|b_sh|·(i − j − c_sh)²)",
        depends_on="distance",
        directions="bidirectional",
        beyond_training="the bumps have faded to 0",
    )

    def create_parameters(self) -> None:
        shape = (self.options.kernels, self.host.num_heads)
        self.amplitude = nn.Parameter(torch.empty(shape))
        self.sharpness = nn.Parameter(torch.empty(shape))
        self.offset = nn.Parameter(torch.empty(shape))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.amplitude, mean=0.1, std=0.01)
        nn.init.normal_(self.sharpness, mean=0.1, std=0.01)
        nn.init.normal_(self.offset, std=5.0)

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        distances = inputs.positions.distances().to(inputs.dtype)
        amplitude, sharpness, offset = (
            parameter.to(inputs.dtype)[..., None] for parameter in (self.amplitude, self.sharpness, self.offset)
        )
        bumps = amplitude * torch.exp(-sharpness.abs() * (distances - offset) ** 2)
        return (DistanceTable(bumps.sum(dim=0), inputs.positions),)
