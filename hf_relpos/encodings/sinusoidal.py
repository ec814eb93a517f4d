"""The plain sinusoidal relative encoding of introductory texts, read as a key for each pair.

Those texts define ``RPE(n)[2k] = sin(n / base**(2k/d))``, ``RPE(n)[2k+1] = cos(...)`` and "combine it with PE(pos) by element-wise
addition". Taken literally that is ill-typed: PE(pos) is one vector for each token, RPE(n) one for each pair. The well-defined reading here
adds PE(pos) to the input (option ``add_absolute``) and meets RPE inside attention:

``score = scale * ((q_i + u_h) . k_j + (q_i + v_h) . (W RPE(i - j))_h)``

which is the form of Transformer-XL (arXiv 1901.02860) with interleaved waves, both directions, as in Conformer (arXiv 2005.08100). With
``learned=False`` there is nothing to learn, ``u = v = 0`` and ``W = 1``: ``score = scale * (q_i . k_j + q_i . RPE(i - j))``, Shaw's key
term with a sinusoidal table.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .card import Card
from .inputs import EncodingInputs, Tokens
from .options import EncodingOptions, Host
from .projected_sinusoid import ProjectedSinusoid
from .registry import register_encoding
from .sinusoid import sinusoid
from .terms import QueryBuckets, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class SinusoidalOptions(EncodingOptions):
    """``learned``: with W, u and v; ``base`` of the wave lengths; ``add_absolute``: also add PE(pos) to the input embeddings."""

    learned: bool = True
    base: float = 10000.0
    add_absolute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.base > 1, "base", "larger than 1")

    def resolve(self, host: Host) -> "SinusoidalOptions":
        width = host.hidden_size if self.learned else host.head_dim
        if width % 2:
            raise ValueError(
                f"the sinusoid needs an even width, but {'hidden_size' if self.learned else 'head_dim'}={width} is odd"
            )
        return self


@register_encoding
class Sinusoidal(ProjectedSinusoid[SinusoidalOptions]):
    """Parameters of :class:`ProjectedSinusoid` (none with ``learned=False``): W drawn from N(0, 0.02), u and v zero."""

    name = "sinusoidal"
    Options = SinusoidalOptions
    layout = "interleaved"
    card = Card(
        title="Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context",
        authors="Dai, Zihang and Yang, Zhilin and Yang, Yiming and Carbonell, Jaime and Le, Quoc V. and Salakhutdinov, Ruslan",
        year=2019,
        arxiv="1901.02860",
        formula="score = ((q_i + u_h)·k_j + (q_i + v_h)·(W RPE(i − j))_h) / √D, RPE interleaved",
        depends_on="content",
        directions="both",
        beyond_training="the sinusoid goes on; its slow waves meet phases never trained",
    )

    def create_parameters(self) -> None:
        if self.options.learned:
            super().create_parameters()

    def reset_parameters(self) -> None:
        if self.options.learned:
            nn.init.normal_(self.projection, std=0.02)
            nn.init.zeros_(self.content_bias)
            nn.init.zeros_(self.position_bias)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        base, width, dtype = float(self.options.base), self.host.head_dim, inputs.query.dtype
        if self.options.learned:
            return self.projected_terms(inputs, base)
        waves = inputs.once(
            ("sinusoid", None, width, base, self.layout, dtype),
            lambda: sinusoid(inputs.positions.distances(), width, base, self.layout, inputs.dtype).to(dtype),
        )
        return (QueryBuckets(inputs.scale * inputs.query, waves, None, inputs.positions),)

    @property
    def adds_to_input(self) -> bool:
        return self.options.add_absolute

    def input_term(self, index: Tensor, width: int, tokens: Tokens, past: Tensor | None) -> Tensor:
        return sinusoid(index, width, float(self.options.base), "interleaved")
