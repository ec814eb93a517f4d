"""Transformer-XL's relative encoding. Dai et al. 2019, arXiv 1901.02860.

``score = scale * ((q_i + u_h) . k_j + (q_i + v_h) . (W R(i - j))_h)``. ``R(n)`` is the sinusoid of the distance, its first half sines and its
second half cosines (not interleaved), as wide as the hidden states. The paper is causal; the formula serves encoders as it is.
"""

from .card import Card
from .inputs import EncodingInputs
from .projected_sinusoid import ClampOptions, ProjectedSinusoid
from .registry import register_encoding
from .terms import ScoreTerm


@register_encoding
class TransformerXL(ProjectedSinusoid[ClampOptions]):
    """Parameters of :class:`ProjectedSinusoid`, drawn from N(0, 0.02)."""

    name = "transformer_xl"
    Options = ClampOptions
    layout = "halves"
    card = Card(
        title="Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        authors="Dai, Zihang and Yang, Zhilin and Yang, Yiming and Carbonell, Jaime and Le, Quoc V. and Salakhutdinov, Ruslan",
        year=2019,
        arxiv="1901.02860",
        formula="score = ((q_i + u_h)·k_j + (q_i + v_h)·(W R(i − j))_h) / √D",
        depends_on="content",
        directions="causal",
        beyond_training="the sinusoid goes on, or is clamped at clamp_len",
    )

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        return self.projected_terms(inputs, 10000.0, self.options.clamp_len)
