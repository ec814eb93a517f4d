"""BERT's ``relative_key``: a vector for each distance, met by the query. The form transformers 4 gave Shaw et al. 2018 (arXiv 1803.02155).

``score = scale * (q_i . k_j + q_i . E[i - j + P - 1])``, ``E`` being ``[2P - 1, D]`` with ``P = max_position_embeddings``. Note the sign ``i - j``,
opposite to the paper's, and that the term is scaled like the content. transformers 4 raised for texts longer than ``P``; here
distances are clipped to the table's ends (``beyond="clip"``) unless ``beyond="error"`` asks for the old behaviour.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from .card import Card
from .inputs import EncodingInputs
from .reach import DistanceTableEncoding, require_reach
from .registry import register_encoding
from .terms import QueryBuckets, ScoreTerm


@register_encoding
class RelativeKey(DistanceTableEncoding):
    """Parameter ``distance_embedding`` ``[2P - 1, D]`` for each layer, shared by its heads, drawn from N(0, 0.02)."""

    name = "relative_key"
    legacy_position_embedding_type = "relative_key"
    legacy_parameter_names: ClassVar[dict[str, str]] = {"distance_embedding": "distance_embedding.weight"}
    card = Card(
        title="Self-Attention with Relative Position Representations",
        authors="Shaw, Peter and Uszkoreit, Jakob and Vaswani, Ashish",
        year=2018,
        arxiv="1803.02155",
        formula="score = (q_i·k_j + q_i·E[i − j + P − 1]) / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="distances are clipped at P − 1, or an error (option beyond)",
    )

    def create_parameters(self) -> None:
        self.distance_embedding = nn.Parameter(torch.empty(2 * self.size - 1, self.host.head_dim))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.distance_embedding, std=0.02)

    def bucket(self, inputs: EncodingInputs) -> Tensor:
        """The table row of each distance of the call; raises ValueError beyond the table when ``beyond="error"``."""
        require_reach(inputs.positions, self.max_length, self.name)
        limit = self.size - 1
        return inputs.positions.distances().clamp(-limit, limit) + limit

    def table(self, inputs: EncodingInputs) -> Tensor:
        """The table in the precision of the query, scaled like the content."""
        return inputs.scale * self.distance_embedding.to(inputs.query.dtype)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        return (QueryBuckets(inputs.query, self.table(inputs), self.bucket(inputs), inputs.positions),)
