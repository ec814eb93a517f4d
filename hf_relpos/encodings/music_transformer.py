"""Music Transformer's relative attention: vectors by head and distance, met by the query. Huang et al. 2018, arXiv 1809.04281.

``score = scale * (q_i . k_j + q_i . E_h[j - i + M - 1])`` where the table has that row; beyond it the term is 0, as the authors' Tensor2Tensor pads,
not clipped as in Shaw et al. ``direction="causal"`` has rows for ``0 <= i - j < M``, ``"bidirectional"`` (Tensor2Tensor's unmasked
variant) for ``|i - j| < M``. ``per_head=False`` shares the table among heads.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions, Host
from .registry import register_encoding
from .terms import QueryBuckets


@dataclass(frozen=True, kw_only=True)
class MusicTransformerOptions(EncodingOptions):
    """``max_distance`` is M, the host's ``max_position_embeddings`` unless given; ``per_head``: a table for each head; ``direction`` auto = causal in
    a decoder, bidirectional in an encoder."""

    max_distance: int | None = None
    per_head: bool = True
    direction: Literal["auto", "causal", "bidirectional"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.max_distance is None or self.max_distance >= 1, "max_distance", "at least 1")

    def resolve(self, host: Host) -> Self:
        resolved = self.or_host("max_distance", host)
        if resolved.direction == "auto":
            resolved = replace(resolved, direction="causal" if host.causal else "bidirectional")
        return resolved


@register_encoding
class MusicTransformer(Encoding[MusicTransformerOptions]):
    """Parameter ``table`` ``[H, N, D]``, or ``[N, D]`` for all heads, for each layer, drawn from N(0, 1/sqrt(D)); ``N`` is M, or 2M - 1 for both directions."""

    name = "music_transformer"
    Options = MusicTransformerOptions
    card = Card(
        title="Music Transformer",
        authors="Huang, Cheng-Zhi Anna and Vaswani, Ashish and Uszkoreit, Jakob and Shazeer, Noam and Simon, Ian and Hawthorne, "
        "Curtis and Dai, Andrew M. and Hoffman, Matthew D. and Dinculescu, Monica and Eck, Douglas",
        year=2018,
        arxiv="1809.04281",
        formula="score = (q_i·k_j + q_i·E_h[j − i + M − 1]) / √D",
        depends_on="content",
        directions="both",
        beyond_training="the term is 0 at distances of M and more",
    )

    @property
    def num_rows(self) -> int:
        """N, the number of distances that have a vector."""
        reach = self.options.max_distance
        assert reach is not None
        return reach if self.options.direction == "causal" else 2 * reach - 1

    def create_parameters(self) -> None:
        shape = (self.num_rows, self.host.head_dim)
        self.table = nn.Parameter(torch.empty((self.host.num_heads, *shape) if self.options.per_head else shape))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.host.head_dim**-0.5)

    def score_terms(self, inputs: EncodingInputs) -> tuple[QueryBuckets]:
        reach = self.options.max_distance
        assert reach is not None
        row = reach - 1 - inputs.positions.distances()
        # one row of zeros more, for the distances that have none
        row = row.masked_fill((row < 0) | (row >= self.num_rows), self.num_rows)
        table = nn.functional.pad(inputs.scale * self.table.to(inputs.query.dtype), (0, 0, 0, 1))
        return (QueryBuckets(inputs.query, table, row, inputs.positions),)
