"""PoPE: content is the length of each coordinate, position its angle. Gopalakrishnan, Csordas, Schmidhuber, Mozer 2025, arXiv 2509.10534.

``score = scale * sum_c softplus(q_ic) softplus(k_jc) cos((i - j) theta_c - delta_hc)``, ``theta_c = base**(-c / D)`` for all ``D`` coordinates. By the cosine
of a difference this is the product of ``2 D`` features of the query and ``2 D`` of the key, ``[x cos, x sin]``, so queries and keys leave this encoding
twice as wide. The scale stays that of ``D`` coordinates, as in x-transformers. The learned phase is clamped to ``[-2 pi, 0]`` where it is used.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
from .registry import register_encoding
from .sinusoid import angles


@dataclass(frozen=True, kw_only=True)
class PopeOptions(EncodingOptions):
    """``base`` of the wave lengths."""

    base: float = 10000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.base > 1, "base", "larger than 1")


@register_encoding
class Pope(Encoding[PopeOptions]):
    """Parameter ``phase`` delta ``[H, D]`` for each layer, zero at first."""

    name = "pope"
    Options = PopeOptions
    card = Card(
        title="Decoupling the ``What'' and ``Where'' With Polar Coordinate Positional Embeddings",
        authors="Gopalakrishnan, Anand and Csord{\\'a}s, R{\\'o}bert and Schmidhuber, J{\\\"u}rgen and Mozer, Michael C.",
        year=2025,
        arxiv="2509.10534",
        formula="score = Σ_c softplus(q_ic)·softplus(k_jc)·cos((i − j)θ_c − δ_hc) / √D",
        depends_on="rotation",
        directions="causal",
        beyond_training="rotates on; slow coordinates meet angles never trained",
    )

    def create_parameters(self) -> None:
        self.phase = nn.Parameter(torch.empty(self.host.num_heads, self.host.head_dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.phase)

    def _angles(self, slots: Tensor) -> Tensor:
        return angles(slots, 2 * self.host.head_dim, float(self.options.base))[:, None]

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        if query is not inputs.query:
            raise ValueError(
                f"the encoding {self.name!r} takes queries as the host projects them: name no other that maps queries and keys before it"
            )
        delta = self.phase.double().clamp(-2 * math.pi, 0.0)
        return polar(query, self._angles(inputs.positions.query) - delta[:, None])

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return polar(key, self._angles(inputs.positions.key))


def polar(x: Tensor, angle: Tensor) -> Tensor:
    """``softplus(x)`` at ``angle``, cosines and then sines: ``[B, H, T, 2 D]``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    size = nn.functional.softplus(x.to(dtype))
    return torch.cat((size * angle.cos().to(dtype), size * angle.sin().to(dtype)), dim=-1).to(x.dtype)
