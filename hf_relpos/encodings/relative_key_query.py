"""BERT's ``relative_key_query``: distance vectors met by query and key. Huang, Liang, Xu, Xiang 2020, arXiv 2009.13658, method 4.

``score = scale * (q_i . k_j + q_i . E[d] + k_j . E[d])``, ``d = i - j + P - 1``: the same table and the same index in both terms.
"""

from .card import Card
from .inputs import EncodingInputs
from .registry import register_encoding
from .relative_key import RelativeKey
from .terms import KeyBuckets, ScoreTerm


@register_encoding
class RelativeKeyQuery(RelativeKey):
    """Parameter ``distance_embedding`` ``[2P - 1, D]`` for each layer, shared by its heads, drawn from N(0, 0.02)."""

    name = "relative_key_query"
    legacy_position_embedding_type = "relative_key_query"
    card = Card(
        title="Improve Transformer Models with Better Relative Position Embeddings",
        authors="Huang, Zhiheng and Liang, Davis and Xu, Peng and Xiang, Bing",
        year=2020,
        arxiv="2009.13658",
        formula="score = (q_i·k_j + q_i·E[i − j + P − 1] + k_j·E[i − j + P − 1]) / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="distances are clipped at P − 1, or an error (option beyond)",
    )

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        key_term = KeyBuckets(inputs.keys_per_head(), self.table(inputs), self.bucket(inputs), inputs.positions)
        return (*super().score_terms(inputs), key_term)
