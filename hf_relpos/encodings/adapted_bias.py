"""A small network that adapts a static bias to the content scores: what both versions of DAPE have in common.

``score = A + B + f([A; B])``, where ``A = scale * q_i . k_j`` are the content scores, ``B`` the bias of another encoding, and ``f`` a network of two layers over the
``2 H`` numbers that the heads have for one pair. Without a bias ``score = A + f(A)``.

It comes before the mask, so it serves encoders as it does decoders. Keys that a bias hides (-inf) stay hidden, and enter ``f`` as 0.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from .encoding import Encoding
from .inputs import Contribution, EncodingInputs
from .linear import init_linear
from .nested import NestedEncoding
from .options import EncodingOptions
from .registry import parse_part


@dataclass(frozen=True, kw_only=True)
class AdaptedBiasOptions(EncodingOptions):
    """``bias``: the encoding that is adapted, as a ``rel_pos`` value, or null; ``width`` of the hidden layer."""

    bias: dict | str | None = field(default_factory=lambda: {"type": "kerple_log"})
    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.width >= 1, "width", "at least 1")
        if self.bias is not None:
            parse_part(self.bias)


AdaptedBiasOptionsT = TypeVar("AdaptedBiasOptionsT", bound=AdaptedBiasOptions)


class AdaptedBias(NestedEncoding[AdaptedBiasOptionsT]):
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
            init_linear(weight, bias, fan_in=weight[0].numel())

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
