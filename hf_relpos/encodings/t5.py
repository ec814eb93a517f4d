"""T5's bias: a learned number per head and bucket of distances. Raffel et al. 2019, arXiv 1910.10683.

``score = scale * q_i . k_j + bias[bucket(j - i), h]``. Half of the buckets hold one distance each, the others grow by powers up to
``max_distance``; all larger distances share the last. ``direction="bidirectional"`` gives past and future half of the buckets each
(bucket ``num_buckets / 2`` stays unused, as in the original); ``"causal"`` gives all to the past and maps the future to bucket 0.

T5 itself does not scale ``q . k`` (``scaling="paper"``: factor 1). Pretrained projections of other models expect their own scale,
so ``scaling="host"`` keeps it: the form of MPNet (arXiv 2004.09297).
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import nn

from .buckets import BucketOptions
from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import Host
from .registry import register_encoding
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class T5Options(BucketOptions):
    """``direction`` auto = causal in a decoder, bidirectional in an encoder; ``scaling`` as in the paper or the host's."""

    direction: Literal["auto", "causal", "bidirectional"] = "auto"
    scaling: Literal["host", "paper"] = "host"

    def resolve(self, host: Host) -> Self:
        if self.direction != "auto":
            return self
        return replace(self, direction="causal" if host.causal else "bidirectional")


@register_encoding
class T5Bias(Encoding[T5Options]):
    """Parameter ``bias`` ``[num_buckets, H]``, one for all layers, drawn from N(0, 1/hidden_size)."""

    name = "t5"
    Options = T5Options
    shared = True
    by_place = True
    card = Card(
        title="Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
        authors="Raffel, Colin and Shazeer, Noam and Roberts, Adam and Lee, Katherine and Narang, Sharan and Matena, Michael and "
        "Zhou, Yanqi and Li, Wei and Liu, Peter J.",
        year=2019,
        arxiv="1910.10683",
        formula="score = q_i·k_j / √D + b[bucket(j − i), h]",
        depends_on="distance",
        directions="both",
        beyond_training="the last bucket serves every larger distance",
    )

    def create_parameters(self) -> None:
        self.bias = nn.Parameter(torch.empty(self.options.num_buckets, self.host.num_heads))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.bias, std=self.host.hidden_size**-0.5)

    def content_scale(self, scale: float) -> float:
        return 1.0 if self.options.scaling == "paper" else scale

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        options = self.options
        bucket = options.bucket(inputs.positions.distances(), options.direction == "bidirectional")
        return (DistanceTable(self.bias.to(inputs.dtype)[bucket].T, inputs.positions),)
