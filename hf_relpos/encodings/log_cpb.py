"""Log-spaced continuous position bias of Swin Transformer V2, in one dimension. Liu et al. 2021, arXiv 2111.09883.

``score = scale * q_i . k_j + 16 sigmoid(MLP(t)_h)`` with ``t = sign(n) log2(|8 r| + 1) / log2 8``, ``r = n / (W - 1)``, ``n = i - j``, and a network of
one hidden layer with ReLU and no bias at its output. Swin has it for two-dimensional windows of width W; here W is the length that the bias is
trained for, so that ``|t|`` stays near 1, and grows slowly beyond.

With ``cosine=True``, as in Swin V2, the content score is ``cos(q_i, k_j) exp(min(tau_h, ln 100))`` with learned ``tau``, without ``scale``. Pretrained
projections of other models expect their own score, so the default keeps it.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .linear import init_linear, linear
from .options import EncodingOptions, Host
from .registry import register_encoding
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class LogCpbOptions(EncodingOptions):
    """``width`` of the network; ``window`` is W, the host's ``max_position_embeddings`` unless given; ``cosine``: Swin's content score."""

    width: int = 512
    window: int | None = None
    cosine: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.width >= 1, "width", "at least 1")
        self.require(self.window is None or self.window >= 2, "window", "at least 2")

    def resolve(self, host: Host) -> Self:
        return self.or_host("window", host, least=2)


@register_encoding
class LogCpb(Encoding[LogCpbOptions]):
    """Parameters for each layer ``input_weight`` ``[w, 1]``, ``input_bias`` ``[w]``, ``output_weight`` ``[H, w]``, drawn as for ``torch.nn.Linear``; with
    ``cosine`` also ``logit_scale`` ``[H]``, ln 10."""

    name = "log_cpb"
    Options = LogCpbOptions
    by_place = True
    card = Card(
        title="Swin Transformer V2: Scaling Up Capacity and Resolution",
        authors="Liu, Ze and Hu, Han and Lin, Yutong and Yao, Zhuliang and Xie, Zhenda and Wei, Yixuan and Ning, Jia and Cao, Yue "
        "and Zhang, Zheng and Dong, Li and Wei, Furu and Guo, Baining",
        year=2021,
        arxiv="2111.09883",
        formula="score = q_i·k_j / √D + 16·σ(MLP(sign(i − j)·log₂(8·|i − j| / (W − 1) + 1) / 3)_h)",
        depends_on="distance",
        directions="bidirectional",
        beyond_training="the network extrapolates over a logarithm of distance; its bias stays between 0 and 16",
    )

    def create_parameters(self) -> None:
        width, heads = self.options.width, self.host.num_heads
        self.input_weight = nn.Parameter(torch.empty(width, 1))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.output_weight = nn.Parameter(torch.empty(heads, width))
        self.logit_scale = nn.Parameter(torch.empty(heads)) if self.options.cosine else None

    def reset_parameters(self) -> None:
        init_linear(self.input_weight, self.input_bias)
        init_linear(self.output_weight)
        if self.logit_scale is not None:
            nn.init.constant_(self.logit_scale, math.log(10))

    def content_scale(self, scale: float) -> float:
        return 1.0 if self.options.cosine else scale

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        if self.logit_scale is None:
            return query
        factor = self.logit_scale.to(inputs.dtype).clamp(max=math.log(100)).exp()[:, None, None]
        return (factor * _normalised(query, inputs.dtype)).to(query.dtype)

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return _normalised(key, inputs.dtype).to(key.dtype) if self.options.cosine else key

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        assert self.options.window is not None
        x = inputs.positions.distances().to(inputs.dtype)[:, None] * (8 / (self.options.window - 1))
        x = x.sign() * torch.log2(x.abs() + 1) / math.log2(8)
        x = linear(linear(x, self.input_weight, self.input_bias).relu(), self.output_weight)
        return (DistanceTable(16 * x.sigmoid().T, inputs.positions),)


def _normalised(x: Tensor, dtype: torch.dtype) -> Tensor:
    # in float32 at least: half precision cannot hold the small number that guards against zero length
    return nn.functional.normalize(x.to(dtype), dim=-1)
