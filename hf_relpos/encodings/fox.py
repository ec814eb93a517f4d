"""The forgetting transformer: a gate for each token says how much of what lies before it is forgotten. Lin et al. 2025, arXiv 2503.02130.

``score = scale * q_i . k_j + sum_{l = j+1 .. i} log f_l``, ``f_l = sigmoid(w_h . x_l + b_h)`` from the layer's input ``x``. The sum is a difference of
cumulative sums ``F_i - F_j``, so it costs a number for each key and fused kernels run it. ``direction="bidirectional"``, as in
x-transformers, has gates of their own for keys after the query: ``sum_{l = i+1 .. j} log g_l``.

The authors initialise ``b`` to 0, x-transformers to 5.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .card import Card
from .gated_distance import GatedDistance
from .options import EncodingOptions, Host
from .positions import Positions
from .registry import register_encoding
from .terms import PairFunction


@dataclass(frozen=True, kw_only=True)
class FoxOptions(EncodingOptions):
    """``direction`` auto = causal in a decoder, bidirectional in an encoder."""

    direction: Literal["auto", "causal", "bidirectional"] = "auto"

    def resolve(self, host: Host) -> Self:
        if self.direction == "auto":
            return replace(self, direction="causal" if host.causal else "bidirectional")
        if self.direction == "causal" and not host.causal:
            raise ValueError(
                "direction='causal' in a bidirectional model would reward distant future tokens; valid here: auto, bidirectional"
            )
        if self.direction == "bidirectional" and host.causal:
            raise ValueError(
                "direction='bidirectional' in a causal model would have gates for keys that no query sees; valid here: auto, causal"
            )
        return self


@register_encoding
class Fox(GatedDistance[FoxOptions]):
    """Parameters of :class:`GatedDistance`, weights from N(0, 0.02) and biases zero; bidirectional also ``weight_future`` ``[H, E]`` and ``bias_future`` ``[H]``."""

    name = "fox"
    Options = FoxOptions
    card = Card(
        title="Forgetting Transformer: Softmax Attention with a Forget Gate",
        authors="Lin, Zhixuan and Nikishin, Evgenii and He, Xu Owen and Courville, Aaron",
        year=2025,
        arxiv="2503.02130",
        formula="score = q_i·k_j / √D + Σ_{l=j+1..i} log σ(w_h·x_l + b_h)",
        depends_on="content",
        directions="causal",
        beyond_training="gates go on adding up",
    )

    @property
    def past_only(self) -> bool:
        return self.options.direction == "causal"

    def create_parameters(self) -> None:
        super().create_parameters()
        if not self.past_only:
            self.weight_future = nn.Parameter(torch.empty_like(self.weight))
            self.bias_future = nn.Parameter(torch.empty_like(self.bias))

    def reset_parameters(self) -> None:
        for weight, bias in self.gates():
            nn.init.normal_(weight, std=0.02)
            nn.init.zeros_(bias)

    def gates(self) -> tuple[tuple[Tensor, Tensor], ...]:
        past = super().gates()
        return past if self.past_only else (*past, (self.weight_future, self.bias_future))

    def log_gate(self, y: Tensor) -> Tensor:
        return nn.functional.logsigmoid(y)

    def both_ways(self, at_queries: Tensor, sums: Tensor, positions: Positions) -> PairFunction:
        heads = self.host.num_heads

        def function(query: Tensor, key: Tensor) -> Tensor:
            gone = query[..., 1:] - key[..., 1:]
            return torch.where(query[..., :1] >= key[..., :1], gone[..., :heads], -gone[..., heads:])

        def with_slots(slots: Tensor, values: Tensor) -> Tensor:
            return torch.cat((slots.to(values.dtype)[..., None].expand(len(values), -1, -1), values), dim=-1)

        return PairFunction(function, with_slots(positions.query, at_queries), with_slots(positions.key, sums))
