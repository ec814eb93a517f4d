"""T5's buckets of distances, which other methods use too. Raffel et al. 2019, arXiv 1910.10683.

Half of the buckets hold one distance each, the others grow by powers up to ``max_distance``; all larger distances share the last. In both directions past
and future have half of the buckets each, and bucket ``num_buckets / 2`` stays unused, as in the original.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .options import EncodingOptions


def t5_bucket(relative_position: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of ``relative_position = j - i`` (any shape, int64)."""
    offset = torch.zeros_like(relative_position)
    if bidirectional:
        num_buckets //= 2
        offset = (relative_position > 0).long() * num_buckets
        distance = relative_position.abs()
    else:
        distance = (-relative_position).clamp(min=0)
    exact = num_buckets // 2
    # float32, since checkpoints were trained with its rounding at the bucket edges
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = exact + (ratio * (num_buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, logarithmic.clamp(max=num_buckets - 1))


@dataclass(frozen=True, kw_only=True)
class BucketOptions(EncodingOptions):
    """``num_buckets``: how many buckets there are for distances; ``max_distance``: where they end, larger distances share the last."""

    num_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.num_buckets >= 4 and self.num_buckets % 2 == 0, "num_buckets", "an even integer of at least 4"
        )
        self.require(
            self.max_distance > self.num_buckets, "max_distance", f"larger than num_buckets={self.num_buckets}"
        )

    def bucket(self, distances: Tensor, bidirectional: bool) -> Tensor:
        """The bucket of each of ``distances`` ``i - j`` (any shape, int64)."""
        return t5_bucket(-distances, self.num_buckets, self.max_distance, bidirectional)
