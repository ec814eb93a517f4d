"""Huang et al.'s method 2: the content score times a learned number for each signed distance. Huang, Liang, Xu, Xiang 2020, arXiv 2009.13658.

``score = scale * q_i . k_j * a[clip(i - j, -(P - 1), P - 1) + P - 1]``: method 1 (``huang_m1``) that tells left from right. Note the sign ``i - j``, the
one of ``relative_key``; the paper writes ``j - i``.
"""

from .card import Card
from .content_factors import ContentFactors
from .registry import register_encoding


@register_encoding
class HuangM2(ContentFactors):
    """Parameter ``factor`` ``[2P - 1]`` of :class:`ContentFactors`."""

    name = "huang_m2"
    card = Card(
        title="Improve Transformer Models with Better Relative Position Embeddings",
        authors="Huang, Zhiheng and Liang, Davis and Xu, Peng and Xiang, Bing",
        year=2020,
        arxiv="2009.13658",
        formula="score = q_i·k_j·a[i − j + P − 1] / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="distances are clipped at P − 1, or an error (option beyond)",
    )
