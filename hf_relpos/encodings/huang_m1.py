"""Huang et al.'s method 1: the content score times a learned number for each distance. Huang, Liang, Xu, Xiang 2020, arXiv 2009.13658.

``score = scale * q_i . k_j * a[min(|i - j|, P - 1)]``, ``P = max_position_embeddings``; the numbers are shared by the heads of a layer. Being a factor,
it needs the dense scores. It scales the content score as other encodings of the same call have left it.
"""

from .card import Card
from .content_factors import ContentFactors
from .registry import register_encoding


@register_encoding
class HuangM1(ContentFactors):
    """Parameter ``factor`` ``[P]`` of :class:`ContentFactors`."""

    name = "huang_m1"
    signed = False
    card = Card(
        title="Improve Transformer Models with Better Relative Position Embeddings",
        authors="Huang, Zhiheng and Liang, Davis and Xu, Peng and Xiang, Bing",
        year=2020,
        arxiv="2009.13658",
        formula="score = q_i·k_j·a[|i − j|] / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="distances are clipped at P − 1, or an error (option beyond)",
    )
