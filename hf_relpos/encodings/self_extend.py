"""Self-Extend: RoPE whose far tokens share positions in groups. Jin et al. 2024, arXiv 2401.01325.

``score = scale * q_i . R(d) k_j``; ``d = i - j`` when that is below ``window``, else ``floor(i / G) - floor(j / G) + window - window / G``, ``G = group_size``, ``i`` and ``j`` in the
last being the places of the tokens in their own text: so it depends on where groups begin, not on the distance alone. Made for
trained RoPE models at inference, which are causal; ``direction="symmetric"`` mirrors it for keys after the query.

The paper floors ``window / G`` (``shift="paper"``), the authors' code divides (``"code"``). Their code leaves out the shift in texts shorter than the
window, where no far key exists.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .card import Card
from .inputs import EncodingInputs
from .registry import register_encoding
from .windowed_rotation import WindowedOptions, WindowedRotation


@dataclass(frozen=True, kw_only=True)
class SelfExtendOptions(WindowedOptions):
    """As for :class:`WindowedOptions`; ``group_size``: tokens that share a position beyond the window; ``shift`` between the two, as in code or paper."""

    window: int = 1024
    group_size: int = 8
    shift: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.group_size >= 1, "group_size", "at least 1")


@register_encoding
class SelfExtend(WindowedRotation[SelfExtendOptions]):
    """No parameters."""

    name = "self_extend"
    Options = SelfExtendOptions
    reads = frozenset({"index"})
    card = Card(
        title="LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning",
        authors="Jin, Hongye and Han, Xiaotian and Yang, Jingfeng and Jiang, Zhimeng and Liu, Zirui and Chang, Chia-Yuan and "
        "Chen, Huiyuan and Hu, Xia",
        year=2024,
        arxiv="2401.01325",
        formula="score = q_i·R(⌊i/G⌋ − ⌊j/G⌋ + w − w/G) k_j / √D beyond the window w, RoPE within",
        depends_on="rotation",
        directions="causal",
        beyond_training="positions grow G times more slowly",
        relative=False,
    )

    def coarse(self, inputs: EncodingInputs) -> tuple[Tensor, Tensor]:
        query, key = (torch.div(index, self.options.group_size, rounding_mode="floor") for index in inputs.indices())
        return query, key

    @property
    def offset(self) -> float:
        window, group = self.options.window, self.options.group_size
        return window - (window // group if self.options.shift == "paper" else window / group)
