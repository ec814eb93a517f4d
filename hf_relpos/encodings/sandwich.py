"""Sandwich: the sinusoidal embeddings' own inner product as a bias. Chi, Fan, Rudnicky, Ramadge 2022, arXiv 2212.10356.

``score = scale * q_i . k_j + (sum_k cos((i - j) / base**(2k/d)) - d/2) / (8 h / H)``, ``k = 1 .. d/2``, heads ``h = 1 .. H``: at most 0,
and ever weaker from the first head to the last. This is the form of NVIDIA NeMo, which takes the head width for ``d``; in the paper ``d`` is
a hyperparameter of its own (option ``dim``) and its listing starts ``k`` at 0. The ``- d/2`` is invisible to the softmax. The paper is causal;
cosines are even, so the same bias serves encoders, without telling left from right.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import DirectedOptions, Host
from .registry import register_encoding
from .sinusoid import angles
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class SandwichOptions(DirectedOptions):
    """``dim`` is d, the head width unless given; ``base`` of the wave lengths."""

    dim: int | None = None
    base: float = 10000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.dim is None or (self.dim >= 2 and self.dim % 2 == 0), "dim", "an even integer of at least 2")
        self.require(self.base > 1, "base", "larger than 1")

    def resolve(self, host: Host) -> Self:
        resolved = super().resolve(host)
        if resolved.dim is not None:
            return resolved
        if host.head_dim % 2:
            raise ValueError(f"the cosines need an even width, but head_dim={host.head_dim} is odd: give dim")
        return replace(resolved, dim=host.head_dim)


@register_encoding
class Sandwich(Encoding[SandwichOptions]):
    """No parameters."""

    name = "sandwich"
    Options = SandwichOptions
    shared = True
    by_place = True
    card = Card(
        title="Dissecting Transformer Length Extrapolation via the Lens of Receptive Field Analysis",
        authors="Chi, Ta-Chung and Fan, Ting-Han and Rudnicky, Alexander I. and Ramadge, Peter J.",
        year=2022,
        arxiv="2212.10356",
        formula="score = q_i·k_j / √D + (Σ_k cos((i − j) / base^(2k/d)) − d/2)·H / (8h)",
        depends_on="distance",
        directions="causal",
        beyond_training="the cosines go on",
    )

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        dim, base = self.options.dim, float(self.options.base)
        assert dim is not None
        # angles start at k = 0, the paper's waves at k = 1
        phase = angles(inputs.positions.distances(), dim, base) * base ** (-2 / dim)
        decay = (phase.cos().sum(dim=-1) - dim / 2).to(inputs.dtype)
        heads = torch.arange(1, self.host.num_heads + 1, dtype=inputs.dtype, device=decay.device)
        return (DistanceTable(decay * (self.host.num_heads / (8 * heads))[:, None], inputs.positions),)
