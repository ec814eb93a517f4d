"""CoPE: positions that count what the query cares about. Golovneva, Wang, Weston, Sukhbaatar 2024, arXiv 2405.18719.

``score = s_ij + (1 - w) z_i[floor(p_ij)] + w z_i[ceil(p_ij)]``, ``s_ij = scale * q_i . k_j``, ``p_ij = min(sum_{t = j .. i} sigmoid(s_it), npos - 1)`` over the keys that
the query sees, ``w = p - floor(p)`` and ``z_i[p] = scale * q_i . table[p]``. The table is shared by the heads. The official default divides ``z``
by ``sqrt(D)`` as well; ``nodiv=True`` (its ``cope_nodiv``, and the form of x-transformers) does not.

The paper is causal. In an encoder (``direction="symmetric"``) a key after the query counts the tokens from the query up to itself, so that
positions grow with distance on either side. Content scores are those of the other encodings' maps; biases take no part in the gates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import Contribution, EncodingInputs, RowMap
from .options import DirectedOptions
from .registry import register_encoding


@dataclass(frozen=True, kw_only=True)
class CopeOptions(DirectedOptions):
    """``npos``: rows of the table, the largest count plus 1; ``nodiv``: do not scale the position term; ``direction`` as everywhere."""

    npos: int = 64
    nodiv: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.npos >= 1, "npos", "at least 1")


@register_encoding
class Cope(Encoding[CopeOptions]):
    """Parameter ``table`` ``[npos, D]`` for each layer, shared by its heads, zero at first."""

    name = "cope"
    Options = CopeOptions
    card = Card(
        title="Contextual Position Encoding: Learning to Count What's Important",
        authors="Golovneva, Olga and Wang, Tianlu and Weston, Jason and Sukhbaatar, Sainbayar",
        year=2024,
        arxiv="2405.18719",
        formula="score = (q_i·k_j + q_i·e[p_ij]) / √D, p_ij = Σ_{t=j..i} σ(q_i·k_t / √D)",
        depends_on="content",
        directions="causal",
        beyond_training="counts are clamped at npos − 1",
    )

    def create_parameters(self) -> None:
        self.table = nn.Parameter(torch.empty(self.options.npos, self.host.head_dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def row_map(self, inputs: EncodingInputs, before: Contribution) -> RowMap:
        last = self.options.npos - 1
        by_count = (inputs.query @ self.table.T.to(inputs.query.dtype)).to(inputs.dtype)
        distance = inputs.positions.query[:, :, None] - inputs.positions.key[:, None, :]

        def add_position(content: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
            gates = content.sigmoid()
            if visible is not None:
                gates = gates.masked_fill(~visible, 0.0)
            # both sums add gates only: a difference of sums over the whole row would cancel
            count = gates.masked_fill(distance < 0, 0.0).flip(-1).cumsum(-1).flip(-1)
            if self.options.direction == "symmetric":
                later = gates.masked_fill(distance > 0, 0.0).cumsum(-1)
                count = torch.where(distance < 0, later, count)
            count = count.clamp(max=last)
            # no gradient passes through the choice of rows, only through their weights
            below = count.detach().floor()
            above = count.detach().ceil()
            weight = count - below
            low, high = (by_count.gather(-1, row.long()) for row in (below, above))
            added = (1 - weight) * low + weight * high
            return content + (added if self.options.nodiv else scale * added)

        return add_position
