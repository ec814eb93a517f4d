"""Gates along the text: what each token lets through counts against every key that lies before it.

``score = scale * q_i . k_j + G_i - G_j``, ``G`` being the cumulative sum over the text of a log gate at most 0, a function of ``y_l = w_h . x_l + b_h``
of the layer's input ``x``. A difference of sums costs a number for each key, so fused kernels run the causal form.

What is remembered of each key is ``y``, in the precision of the layer's input, and sums are made anew in float32: so decoding token by token sees the
numbers of a full pass.
"""

import torch
from torch import Tensor, nn

from .encoding import Encoding, OptionsT
from .inputs import EncodingInputs, Tokens, missing_input
from .linear import linear
from .positions import Positions
from .terms import KeyVector, PairFunction, ScoreTerm


class GatedDistance(Encoding[OptionsT]):
    """Base of the methods of that form; they differ in the log gate and in what they do where keys lie after the query.

    Parameters ``weight`` ``[H, E]`` and ``bias`` ``[H]`` for each layer.
    """

    reads = frozenset({"hidden_states"})

    def create_parameters(self) -> None:
        self.weight = nn.Parameter(torch.empty(self.host.num_heads, self.host.hidden_size))
        self.bias = nn.Parameter(torch.empty(self.host.num_heads))

    @property
    def past_only(self) -> bool:
        """Whether no query sees a later key."""
        raise NotImplementedError

    def gates(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Weight and bias of each set of gates."""
        return ((self.weight, self.bias),)

    def log_gate(self, y: Tensor) -> Tensor:
        """The log of the gates, at most 0, elementwise from their linear map ``y``."""
        raise NotImplementedError

    def both_ways(self, at_queries: Tensor, sums: Tensor, positions: Positions) -> PairFunction:
        """The term where later keys are seen, from ``G`` of the queries ``[B, Tq, S]`` and of the keys ``[B, Tk, S]``."""
        raise NotImplementedError

    @property
    def state_width(self) -> int:
        return self.host.num_heads * len(self.gates())

    def key_state(self, tokens: Tokens) -> Tensor:
        hidden = tokens.hidden_states
        if hidden is None:
            raise missing_input("hidden_states", self.name)
        return torch.cat([linear(hidden, weight, bias) for weight, bias in self.gates()], dim=-1)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        positions = inputs.positions
        sums = self.log_gate(inputs.require("key_state", self.name).to(inputs.dtype)).cumsum(1)
        at_queries = positions.of_queries(sums)
        if self.past_only:
            return (KeyVector(-sums.transpose(1, 2), positions, rows=at_queries.transpose(1, 2)),)
        return (self.both_ways(at_queries, sums, positions),)
