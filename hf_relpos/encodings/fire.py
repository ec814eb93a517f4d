"""FIRE, functional interpolation for relative positions. Li et al. 2023, arXiv 2310.04418.

``score = scale * q_i . k_j + MLP(x)_h`` with ``x = log(|c n| + 1) / (log(|c max(i, |m L0|)| + 1) + eps)``, ``n = i - j``: distance relative to the
place ``i`` of the query in its text, but never to less than ``|m L0|``. ``c`` and the multiplier ``m`` are learned, ``L0`` is ``init_length``; the
network has one hidden layer with ReLU. Not a function of distance alone: it is one only while ``i <= |m L0|``.

The paper is causal. For encoders ``|n|`` stands for ``n`` with the same normaliser, so ``x`` may exceed 1 for keys after the query.
Distances come from slots as everywhere, ``i`` from the text's own start, so that padding and packing change nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .linear import init_linear, linear
from .options import DirectedOptions
from .registry import register_encoding
from .terms import PairFunction


@dataclass(frozen=True, kw_only=True)
class FireOptions(DirectedOptions):
    """``width`` of the network; ``init_length`` is L0; ``eps`` keeps the normaliser from 0."""

    width: int = 32
    init_length: float = 512
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.width >= 1, "width", "at least 1")
        self.require(self.init_length > 0, "init_length", "larger than 0")
        self.require(self.eps > 0, "eps", "larger than 0")


@register_encoding
class Fire(Encoding[FireOptions]):
    """Parameters ``c`` ``[1]``, 0.1, ``length_multiplier`` ``[1]``, 1, and those of a network, drawn as for ``torch.nn.Linear``: ``input_weight`` ``[w, 1]``,
    ``input_bias`` ``[w]``, ``output_weight`` ``[H, w]``, ``output_bias`` ``[H]``; one set for all layers."""

    name = "fire"
    Options = FireOptions
    shared = True
    reads = frozenset({"index"})
    by_place = True
    card = Card(
        title="Functional Interpolation for Relative Positions Improves Long Context Transformers",
        authors="Li, Shanda and You, Chong and Guruganesh, Guru and Ainslie, Joshua and Ontanon, Santiago and Zaheer, Manzil and "
        "Sanghai, Sumit and Yang, Yiming and Kumar, Sanjiv and Bhojanapalli, Srinadh",
        year=2023,
        arxiv="2310.04418",
        formula="score = q_i·k_j / √D + MLP(log(c·|i − j| + 1) / log(c·max(i, L) + 1))_h",
        depends_on="position",
        directions="causal",
        beyond_training="distances are interpolated into the range of training",
        relative=False,
    )

    def create_parameters(self) -> None:
        width, heads = self.options.width, self.host.num_heads
        self.c = nn.Parameter(torch.empty(1))
        self.length_multiplier = nn.Parameter(torch.empty(1))
        self.input_weight = nn.Parameter(torch.empty(width, 1))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.output_weight = nn.Parameter(torch.empty(heads, width))
        self.output_bias = nn.Parameter(torch.empty(heads))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.c, 0.1)
        nn.init.ones_(self.length_multiplier)
        init_linear(self.input_weight, self.input_bias)
        init_linear(self.output_weight, self.output_bias)

    def _bias(self, query: Tensor, key: Tensor) -> Tensor:
        """The bias ``[..., H]`` of queries of given index and slot ``[..., 2]`` and keys of given slot ``[..., 1]``."""
        index, distance = query[..., :1], query[..., 1:] - key
        c = self.c.to(query.dtype)
        threshold = (self.length_multiplier.to(query.dtype) * float(self.options.init_length)).abs()
        normaliser = torch.log1p((c * torch.maximum(index, threshold)).abs()) + float(self.options.eps)
        x = torch.log1p((c * distance).abs()) / normaliser
        return linear(linear(x, self.input_weight, self.input_bias).relu(), self.output_weight, self.output_bias)

    def score_terms(self, inputs: EncodingInputs) -> tuple[PairFunction]:
        index, _ = inputs.indices()
        query = torch.stack((index, inputs.positions.query.expand_as(index)), dim=-1).to(inputs.dtype)
        return (PairFunction(self._bias, query, inputs.positions.key[..., None].to(inputs.dtype)),)
