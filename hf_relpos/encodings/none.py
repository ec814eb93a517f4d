"""No position at all (NoPE): the score is ``scale * q_i . k_j``.

Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466. Sensible in causal models, which can count through
the mask; a bidirectional model becomes equivariant to permutations of its input.
"""

from .card import Card
from .encoding import Encoding
from .options import EncodingOptions
from .registry import register_encoding


@register_encoding
class NoEncoding(Encoding[EncodingOptions]):
    """Adds nothing."""

    name = "none"
    shared = True
    card = Card(
        title="The Impact of Positional Encoding on Length Generalization in Transformers",
        authors="Kazemnejad, Amirhossein and Padhi, Inkit and Ramamurthy, Karthikeyan Natesan and Das, Payel and Reddy, Siva",
        year=2023,
        arxiv="2305.19466",
        formula="score = q_i·k_j / √D",
        depends_on="nothing",
        directions="both",
        beyond_training="defined; order is seen through the causal mask only",
    )
