"""The forgetting transformer: a gate for each token says how much of what lies before it is forgotten. Lin et al. 2025, arXiv 2503.02130.

``score = scale * q_i . k_j + sum_{l = j+1 .. i} log f_l``, ``f_l = sigmoid(w_h . x_l + b_h)`` from the layer's input ``x``. The sum is a difference of
cumulative sums ``F_i - F_j``, so it costs a number for each key and fused kernels run it. ``direction="bidirectional"``, as in
x-transformers, has gates of their own for keys after the query: ``sum_{l = i+1 .. j} log g_l``.

What is remembered of each key is what enters the sigmoid, in the precision of the layer's input, and sums are made anew in float32: so
decoding token by token sees the numbers of a full pass. The authors initialise ``b`` to 0, x-transformers to 5.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs, Tokens, missing_input
from .linear import linear
from .options import EncodingOptions, Host
from .registry import register_encoding
from .terms import KeyVector, PairFunction, ScoreTerm


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
class Fox(Encoding[FoxOptions]):
    """Parameters ``weight`` ``[H, E]`` from N(0, 0.02) and ``bias`` ``[H]`` zero for each layer; bidirectional also ``weight_future`` and ``bias_future``."""

    name = "fox"
    Options = FoxOptions
    reads = frozenset({"hidden_states"})
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
    def bidirectional(self) -> bool:
        """Whether there are gates for the future."""
        return self.options.direction == "bidirectional"

    def create_parameters(self) -> None:
        heads, width = self.host.num_heads, self.host.hidden_size
        self.weight = nn.Parameter(torch.empty(heads, width))
        self.bias = nn.Parameter(torch.empty(heads))
        if self.bidirectional:
            self.weight_future = nn.Parameter(torch.empty(heads, width))
            self.bias_future = nn.Parameter(torch.empty(heads))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        if self.bidirectional:
            nn.init.normal_(self.weight_future, std=0.02)
            nn.init.zeros_(self.bias_future)

    @property
    def state_width(self) -> int:
        return self.host.num_heads * (2 if self.bidirectional else 1)

    def key_state(self, tokens: Tokens) -> Tensor:
        hidden = tokens.hidden_states
        if hidden is None:
            raise missing_input("hidden_states", self.name)
        gates = [(self.weight, self.bias)]
        if self.bidirectional:
            gates.append((self.weight_future, self.bias_future))
        return torch.cat([linear(hidden, weight, bias) for weight, bias in gates], dim=-1)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        positions = inputs.positions
        sums = nn.functional.logsigmoid(inputs.require("key_state", self.name).to(inputs.dtype)).cumsum(1)
        at_queries = positions.of_queries(sums)
        if not self.bidirectional:
            return (KeyVector(-sums.transpose(1, 2), positions, rows=at_queries.transpose(1, 2)),)
        heads = self.host.num_heads

        def function(query: Tensor, key: Tensor) -> Tensor:
            gone = query[..., 1:] - key[..., 1:]
            return torch.where(query[..., :1] >= key[..., :1], gone[..., :heads], -gone[..., heads:])

        def with_slots(slots: Tensor, values: Tensor) -> Tensor:
            return torch.cat((slots.to(values.dtype)[..., None].expand(len(values), -1, -1), values), dim=-1)

        return (PairFunction(function, with_slots(positions.query, at_queries), with_slots(positions.key, sums)),)
