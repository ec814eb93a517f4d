"""DAPE: a small network adapts a static bias to the content scores. Zheng et al. 2024, arXiv 2405.14722.

``score = A + B + f([A; B])``, where ``A = scale * q_i . k_j`` are the content scores, ``B`` the bias of another encoding (``bias``), and ``f`` a network of two
layers over the ``2 H`` numbers that the heads have for one pair: ``W2 leaky_relu(W1 [A; B] + b1, 0.01) + b2``. With ``bias=null``, the authors' form
for rotations (``[{"type": "rope"}, {"type": "dape", "bias": null}]``), ``score = A + f(A)``.

It works pair by pair, before the mask, so it serves encoders as it does decoders. Keys that a bias hides (-inf) stay hidden, and enter ``f`` as 0.
"""

import torch
from torch import Tensor, nn

from .adapted_bias import AdaptedBias, AdaptedBiasOptions
from .card import Card
from .registry import register_encoding


@register_encoding
class Dape(AdaptedBias[AdaptedBiasOptions]):
    """Parameters of :class:`AdaptedBias`."""

    name = "dape"
    Options = AdaptedBiasOptions
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
