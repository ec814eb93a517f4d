"""Rotary position embedding. Su et al. 2021, arXiv 2104.09864.

Queries and keys are rotated by their slot: pair ``k`` of coordinates by the angle ``p * base**(-2k / rd)``, where ``rd`` is the even number
of leading coordinates that rotate (``fraction`` of the head width). The score then depends on ``i - j``. ``layout="half"`` pairs ``(x_k,
x_{k + rd/2})`` as Llama and GPT-NeoX do, ``"interleaved"`` pairs ``(x_2k, x_2k+1)`` as RoFormer and GPT-J do.

``rope_scaling`` changes the frequencies for texts longer than those of pretraining, in the names of transformers' ``rope_parameters``.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions, Host
from .positions import Positions
from .registry import register_encoding
from .rope_scaling import BY_LENGTH, check_scaling, resolve_scaling, scaled_frequencies
from .rotation import rotate
from .sinusoid import angles


@dataclass(frozen=True, kw_only=True)
class RopeOptions(EncodingOptions):
    """``base`` of the wave lengths, ``layout`` of the pairs, ``fraction`` of the head width that rotates, ``rope_scaling`` (null, or a dict with a
    ``rope_type`` and its keys)."""

    base: float = 10000.0
    layout: Literal["half", "interleaved"] = "half"
    fraction: float = 1.0
    rope_scaling: dict | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.base > 1, "base", "larger than 1")
        self.require(0 < self.fraction <= 1, "fraction", "larger than 0 and at most 1")
        if self.rope_scaling is not None:
            check_scaling(self.rope_scaling)

    def resolve(self, host: Host) -> Self:
        rotated = int(host.head_dim * self.fraction)
        if rotated < 2 or rotated % 2:
            raise ValueError(
                f"an even number of coordinates rotates, but head_dim={host.head_dim} times fraction={self.fraction} gives {rotated}"
            )
        if self.rope_scaling is None:
            return self
        return replace(self, rope_scaling=resolve_scaling(self.rope_scaling, rotated, host))


def text_length(positions: Positions, causal: bool) -> int | Tensor:
    """One more than the largest slot that counts in a call: in a causal one the last query's, since behind it a static cache holds nothing yet."""
    if positions.key_slots is not None and positions.query_slots is not None:
        return (positions.query_slots if causal else positions.key_slots)[-1] + 1
    last_query, last_key = positions.query_start + positions.num_queries, positions.key_start + positions.num_keys
    if causal:
        return last_query
    if isinstance(last_query, int) and isinstance(last_key, int):
        return max(last_query, last_key)
    return torch.maximum(*(torch.as_tensor(last, device=positions.device) for last in (last_query, last_key)))


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
        beyond_training="rotates on; slow pairs meet angles never trained, unless rope_scaling slows them down",
    )

    @property
    def changes_with_length(self) -> bool:
        return self.options.rope_scaling is not None and self.options.rope_scaling["rope_type"] in BY_LENGTH

    @property
    def maps_keys_alone(self) -> bool:
        return self.options.heads is None and not self.changes_with_length

    def _rotate(self, x: Tensor, slots: Tensor, positions: Positions) -> Tensor:
        options = self.options
        rotated, base = int(self.host.head_dim * options.fraction), float(options.base)
        if options.rope_scaling is None:
            return rotate(x, angles(slots, rotated, base), options.layout)
        length = text_length(positions, self.host.causal)
        frequencies, factor = scaled_frequencies(options.rope_scaling, base, rotated, length, slots.device)
        return rotate(x, slots[..., None] * frequencies.double(), options.layout, factor)

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._rotate(query, inputs.positions.query, inputs.positions)

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._rotate(key, inputs.positions.key, inputs.positions)
