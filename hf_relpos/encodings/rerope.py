"""ReRoPE and Leaky ReRoPE: RoPE with distances rectified at a window. Su 2023, https://kexue.fm/archives/9708, github.com/bojone/rerope.

``score = scale * q_i . R(d(n)) k_j``, ``n = i - j``, ``d(n) = n`` below ``window``, beyond it ``window`` (ReRoPE) or ``window + (n - window) / factor`` (Leaky ReRoPE), with
the sign of ``n``. Made for trained RoPE models at inference, which are causal; ``direction="symmetric"`` mirrors it.

The author's patches also multiply queries by ``max(1, log(p + 1) / log(train_length))``, ``p`` being the place of the query in its text; here that is
an option, and the only thing that does not depend on distances alone.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from .card import Card
from .inputs import EncodingInputs
from .registry import register_encoding
from .windowed_rotation import WindowedOptions, WindowedRotation


@dataclass(frozen=True, kw_only=True)
class ReropeOptions(WindowedOptions):
    """As for :class:`WindowedOptions`; ``factor``: how much slower distances grow beyond the window (null: not at all); ``train_length``: tokens of
    the texts of pretraining, for the factor of later queries (null: none)."""

    window: int = 512
    factor: float | None = None
    train_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.factor is None or self.factor > 0, "factor", "null or larger than 0")
        self.require(self.train_length is None or self.train_length >= 2, "train_length", "null or at least 2")


@register_encoding
class Rerope(WindowedRotation[ReropeOptions]):
    """No parameters."""

    name = "rerope"
    Options = ReropeOptions
    card = Card(
        title="Rectified Rotary Position Embeddings",
        authors="Su, Jianlin",
        year=2023,
        arxiv=None,
        venue="https://kexue.fm/archives/9708",
        formula="score = q_i·R(min(i − j, w)) k_j / √D",
        depends_on="rotation",
        directions="causal",
        beyond_training="distances stay at the window, or grow more slowly (option factor)",
    )

    @property
    def needs(self) -> frozenset[str]:
        return self.reads if self.options.train_length is None else self.reads | {"index"}

    @property
    def relative(self) -> bool:
        return self.options.train_length is None

    @property
    def _slowness(self) -> float:
        return 0.0 if self.options.factor is None else 1 / self.options.factor

    def coarse(self, inputs: EncodingInputs) -> tuple[Tensor, Tensor]:
        return inputs.positions.query.double() * self._slowness, inputs.positions.key.double() * self._slowness

    @property
    def offset(self) -> float:
        return self.options.window * (1 - self._slowness)

    def gain(self, inputs: EncodingInputs) -> float | Tensor:
        if self.options.train_length is None:
            return 1.0
        index, _ = inputs.indices()
        return (index.double()[..., None].log1p() / math.log(self.options.train_length)).clamp(min=1.0)
