"""RoPE that is exact for near keys and coarse for far ones: the common part of ReRoPE and Self-Extend.

Keys at a distance below ``window`` are scored as RoPE scores them. Beyond it the distance is ``c(i) - c(j) + offset`` (``- offset`` for keys after the
query), where ``c`` is a coarser position. Both kinds of score are products of rotated queries and keys, so there are two matrices, three in
encoders, and each pair takes its score from one of them.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor

from .encoding import Encoding
from .inputs import Contribution, EncodingInputs, RowMap, per_head
from .options import DirectedOptions, Host
from .positions import Positions
from .rotation import content_scores, require_even, rotate
from .sinusoid import angles


@dataclass(frozen=True, kw_only=True)
class WindowedOptions(DirectedOptions):
    """``window``: distances below it are exact; ``base`` of the wave lengths, ``layout`` of the pairs, ``direction`` as everywhere."""

    window: int
    base: float = 10000.0
    layout: Literal["half", "interleaved"] = "half"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.window >= 1, "window", "at least 1")
        self.require(self.base > 1, "base", "larger than 1")

    def resolve(self, host: Host) -> Self:
        require_even(host.head_dim)
        return super().resolve(host)


WindowedT = TypeVar("WindowedT", bound=WindowedOptions)


def within(positions: Positions, window: int) -> bool:
    """Whether all distances of a call are known to be below ``window``; False while tracing, where a length stands for others."""
    first_query, first_key = positions.query_start, positions.key_start
    if torch.compiler.is_compiling() or positions.has_gaps:
        return False
    if not isinstance(first_query, int) or not isinstance(first_key, int):
        return False
    past = first_query + positions.num_queries - 1 - first_key
    future = first_key + positions.num_keys - 1 - first_query
    return max(past, future) < window


class WindowedRotation(Encoding[WindowedT]):
    """No parameters."""

    shared = True

    @abstractmethod
    def coarse(self, inputs: EncodingInputs) -> tuple[Tensor, Tensor]:
        """``c`` of queries ``[B|1, Tq]`` and of keys ``[B|1, Tk]``."""

    @property
    @abstractmethod
    def offset(self) -> float:
        """What is added to the distance of far keys in the past."""

    def gain(self, inputs: EncodingInputs) -> float | Tensor:
        """A factor of all queries, a number or ``[B|1, Tq, 1]``."""
        return 1.0

    def _turn(self, x: Tensor, places: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        phase = angles(places, self.host.head_dim, float(self.options.base))
        return rotate(x, phase, self.options.layout, gain)

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._turn(query, inputs.positions.query, self.gain(inputs))

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._turn(key, inputs.positions.key)

    @property
    def rescores(self) -> bool:
        return True

    def row_map(self, inputs: EncodingInputs, before: Contribution) -> RowMap | None:
        if within(inputs.positions, self.options.window):
            return None
        distance = inputs.positions.query[:, None, :, None] - inputs.positions.key[:, None, None, :]

        def merge(content: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
            at_query, at_key = self.coarse(inputs)
            gain = self.gain(inputs)
            key = self._turn(per_head(before.query, before.key), at_key)

            def scores(offset: float) -> Tensor:
                return content_scores(self._turn(before.query, at_query.double() + offset, gain), key, scale)

            far = scores(self.offset)
            if self.options.direction == "symmetric":
                far = torch.where(distance > 0, far, scores(-self.offset))
            return torch.where(distance.abs() < self.options.window, content, far)

        return merge
