"""xPos: RoPE whose pairs fade with distance. Sun et al. 2022, arXiv 2212.10554.

``score = scale * sum_k zeta_k**(n / scale_base) * (pair k of q_i) . R(n theta_k) (pair k of k_j)``, ``n = i - j``, ``zeta_k = (2 k + 0.4 D) / (1.4 D)``. Queries carry
``zeta**(p / scale_base)`` and keys its inverse, which makes keys after the query louder with distance: the paper is causal. For encoders
``direction="symmetric"`` uses ``|n|``: the scores of later keys are computed a second time, with the powers turned around.

Powers are taken around the middle slot of the keys, which cancels (torchscale and x-transformers choose other centres) and keeps them as
small as they can be; in float16 they overflow for texts of about 9000 tokens.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from .card import Card
from .encoding import Encoding
from .inputs import Contribution, EncodingInputs, RowMap, per_head
from .options import DirectedOptions, Host
from .registry import register_encoding
from .rotation import content_scores, require_even, rotate
from .sinusoid import angles


@dataclass(frozen=True, kw_only=True)
class XposOptions(DirectedOptions):
    """``base`` of the wave lengths, ``scale_base``: the distance that multiplies pair k by zeta_k, ``layout`` of the pairs, ``direction`` as everywhere."""

    base: float = 10000.0
    scale_base: float = 512.0
    layout: Literal["half", "interleaved"] = "interleaved"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.base > 1, "base", "larger than 1")
        self.require(self.scale_base > 0, "scale_base", "larger than 0")

    def resolve(self, host: Host) -> Self:
        require_even(host.head_dim)
        return super().resolve(host)


@register_encoding
class Xpos(Encoding[XposOptions]):
    """No parameters."""

    name = "xpos"
    Options = XposOptions
    shared = True
    card = Card(
        title="A Length-Extrapolatable Transformer",
        authors="Sun, Yutao and Dong, Li and Patra, Barun and Ma, Shuming and Huang, Shaohan and Benhaim, Alon and "
        "Chaudhary, Vishrav and Song, Xia and Wei, Furu",
        year=2022,
        arxiv="2212.10554",
        formula="score = (ζ^{(i − j)/512} R_i q_i)·(R_j k_j) / √D",
        depends_on="rotation",
        directions="causal",
        beyond_training="pairs fade with distance, fast ones first",
    )

    def _turn(self, x: Tensor, slots: Tensor, inputs: EncodingInputs, sign: int) -> Tensor:
        width = self.host.head_dim
        pair = torch.arange(0, width, 2, device=slots.device, dtype=torch.float64)
        zeta = (pair + 0.4 * width) / (1.4 * width)
        keys = inputs.positions.key
        centred = (slots - keys[:, keys.shape[1] // 2, None]).double() / self.options.scale_base
        phase = angles(slots, width, float(self.options.base))
        return rotate(x, phase, self.options.layout, gain=zeta ** (sign * centred[..., None]))

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._turn(query, inputs.positions.query, inputs, +1)

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._turn(key, inputs.positions.key, inputs, -1)

    @property
    def rescores(self) -> bool:
        return self.options.direction == "symmetric"

    def row_map(self, inputs: EncodingInputs, before: Contribution) -> RowMap | None:
        if self.options.direction == "causal":
            return None
        query_slots, key_slots = inputs.positions.query, inputs.positions.key

        def turn_later_keys(content: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
            query = self._turn(before.query, query_slots, inputs, -1)
            key = self._turn(per_head(before.query, before.key), key_slots, inputs, +1)
            later = query_slots[:, None, :, None] < key_slots[:, None, None, :]
            return torch.where(later, content_scores(query, key, scale), content)

        return turn_later_keys
