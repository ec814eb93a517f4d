"""DAPE: a small network adapts a static bias to the content scores. Zheng et al. 2024, arXiv 2405.14722.

``score = A + B + f([A; B])``, where ``A = scale * q_i . k_j`` are the content scores, ``B`` the bias of another encoding (``bias``), and ``f`` a network of two
layers over the ``2 H`` numbers that the heads have for one pair: ``W2 leaky_relu(W1 [A; B] + b1, 0.01) + b2``. With ``bias=null``, the authors' form
for rotations (``[{"type": "rope"}, {"type": "dape", "bias": null}]``), ``score = A + f(A)``.

It works pair by pair, before the mask, so it serves encoders as it does decoders. Keys that a bias hides (-inf) stay hidden, and enter ``f`` as 0.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import Contribution, EncodingInputs
from .nested import NestedEncoding
from .options import EncodingOptions
from .registry import parse_part, register_encoding


@dataclass(frozen=True, kw_only=True)
class DapeOptions(EncodingOptions):
    """``bias``: the encoding that is adapted, as a ``rel_pos`` value, or null; ``width`` of the hidden layer."""

    bias: dict | str | None = field(default_factory=lambda: {"type": "kerple_log"})
    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.width >= 1, "width", "at least 1")
        if self.bias is not None:
            parse_part(self.bias)


DapeOptionsT = TypeVar("DapeOptionsT", bound=DapeOptions)


class AdaptedBias(NestedEncoding[DapeOptionsT]):
    """Scores ``A + B + f([A; B])``, for both versions of the method; they differ in ``f``.

    Parameters for each layer, drawn as ``nn.Linear`` does: ``input_weight`` ``[width, 2 H]`` (``[width, H]`` without a bias), ``input_bias`` ``[width]``,
    ``output_weight`` ``[H, width]``, ``output_bias`` ``[H]``, and the bias's own.
    """

    inner_option = "bias"

    def kernel(self) -> tuple[int, ...]:
        """Further axes of the weights."""
        return ()

    def create_parameters(self) -> None:
        super().create_parameters()
        if self.inner is not None and type(self.inner).score_terms is Encoding.score_terms:
            self._refuse_inner()
        heads, width, kernel = self.host.num_heads, self.options.width, self.kernel()
        inputs = heads if self.inner is None else 2 * heads
        self.input_weight = nn.Parameter(torch.empty(width, inputs, *kernel))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.output_weight = nn.Parameter(torch.empty(heads, width, *kernel))
        self.output_bias = nn.Parameter(torch.empty(heads))

    def reset_parameters(self) -> None:
        for weight, bias in ((self.input_weight, self.input_bias), (self.output_weight, self.output_bias)):
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def _refuse_inner(self) -> None:
        raise ValueError(
            f"rel_pos type {self.name!r}: bias={self.options.bias!r} is not valid: it adds no number to scores; name an encoding that "
            "does, such as 'alibi' or 'kerple_log', or use null and put it beside this one in a list"
        )

    def network(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """``f`` of ``scores`` ``[B, 2 H | H, Tq, Tk]``: ``[B, H, Tq, Tk]``."""
        raise NotImplementedError

    def _contribute(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        bias: Tensor | None = None
        total = before
        if self.inner is not None:
            # the bias enters the network, so it is not a term beside it; all else that the inner encoding does is left as it is
            total = self.inner(inputs, replace(before, score_terms=()))
            terms = total.score_terms
            if not terms:
                self._refuse_inner()
            bias = sum(term.tile().to(inputs.dtype) for term in terms)  # type: ignore[assignment]

        def adapt(content: Tensor, _bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
            if bias is None:
                return content + self.network(content, visible)
            known = bias.masked_fill(bias == -math.inf, 0.0).expand(content.shape)
            return content + bias + self.network(torch.cat((content, known), dim=1), visible)

        return replace(total, score_terms=before.score_terms, row_maps=(*total.row_maps, adapt))


@register_encoding
class Dape(AdaptedBias[DapeOptions]):
    """Parameters of :class:`AdaptedBias`."""

    name = "dape"
    Options = DapeOptions
    card = Card(
        title="DAPE: Data-Adaptive Positional Encoding for Length Extrapolation",
        authors="Zheng, Chuanyang and Gao, Yihang and Shi, Han and Huang, Minbin and Li, Jingyao and Xiong, Jing and Ren, Xiaozhe and "
        "Ng, Michael and Jiang, Xin and Li, Zhenguo and Li, Yu",
        year=2024,
        arxiv="2405.14722",
        formula="score = A + B + f([A; B]), A = q_i·k_j / √D, B a bias, f over heads",
        depends_on="content",
        directions="causal",
        beyond_training="as the bias that it adapts",
    )

    def network(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        dtype = scores.dtype
        hidden = torch.einsum("wc,bcqk->bwqk", self.input_weight.to(dtype), scores)
        hidden = nn.functional.leaky_relu(hidden + self.input_bias.to(dtype)[:, None, None], 0.01)
        output = torch.einsum("hw,bwqk->bhqk", self.output_weight.to(dtype), hidden)
        return output + self.output_bias.to(dtype)[:, None, None]
