"""XLNet's relative encoding: Transformer-XL's in both directions, and a term for pairs of segments. Yang et al. 2019, arXiv 1906.08237.

``score = scale * ((q_i + u_h) . k_j + (q_i + v_h) . (W R(i - j))_h + (q_i + w_h) . g_h[s_ij])``, where ``s_ij`` is 0 when query and key belong to the
same segment and 1 otherwise, whichever segments they are. ``R(n)`` has sines first, then cosines; ``clamp_len`` clips distances on both
sides, where Transformer-XL's code clips the past alone. Without ``segment_ids`` all tokens belong to one segment, and the segment term,
a constant of each query, changes nothing.

The original turns distances around for half of each training batch (``bi_data``), which belongs to its permutation objective and is not
part of the encoding.
"""

import torch
from torch import Tensor, nn

from .card import Card
from .inputs import EncodingInputs, Tokens
from .projected_sinusoid import ClampOptions, ProjectedSinusoid
from .registry import register_encoding
from .terms import LabelBuckets, ScoreTerm

# base of the digits that a segment number is remembered in: bfloat16 holds integers to 256
DIGIT = 128


@register_encoding
class XLNet(ProjectedSinusoid[ClampOptions]):
    """Parameters of :class:`ProjectedSinusoid`, ``segment_bias`` w ``[H, D]`` and ``segment_embedding`` g ``[2, H, D]``, all drawn from N(0, 0.02)."""

    name = "xlnet"
    Options = ClampOptions
    layout = "halves"
    reads = frozenset({"segment_ids"})
    card = Card(
        title="XLNet: Generalized Autoregressive Pretraining for Language Understanding",
        authors="Yang, Zhilin and Dai, Zihang and Yang, Yiming and Carbonell, Jaime and Salakhutdinov, Ruslan and Le, Quoc V.",
        year=2019,
        arxiv="1906.08237",
        formula="score = ((q_i + u_h)·k_j + (q_i + v_h)·(W R(i − j))_h + (q_i + w_h)·g_h[s_ij]) / √D",
        depends_on="content",
        directions="both",
        beyond_training="the sinusoid goes on, or is clamped at clamp_len",
    )

    def create_parameters(self) -> None:
        super().create_parameters()
        heads, width = self.host.num_heads, self.host.head_dim
        self.segment_bias = nn.Parameter(torch.empty(heads, width))
        self.segment_embedding = nn.Parameter(torch.empty(2, heads, width))

    @property
    def state_width(self) -> int:
        return 2

    def key_state(self, tokens: Tokens) -> Tensor | None:
        """Two digits of the segment's number, each small enough for half precision; zeros where there are no segments."""
        hidden, segments = tokens.hidden_states, tokens.segment_ids
        if segments is not None:
            return torch.stack((segments // DIGIT, segments % DIGIT), dim=-1).float()
        return None if hidden is None else torch.zeros_like(hidden[..., :1]).expand(-1, -1, 2)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        terms = self.projected_terms(inputs, 10000.0, self.options.clamp_len)
        if inputs.key_state is None:
            return terms
        dtype = inputs.query.dtype
        query = inputs.scale * (inputs.query + self.segment_bias.to(dtype)[:, None])
        values = torch.einsum("bhqd,shd->bhqs", query, self.segment_embedding.to(dtype))
        segment = inputs.key_state.to(inputs.dtype) @ inputs.key_state.new_tensor([DIGIT, 1], dtype=inputs.dtype)
        return (*terms, LabelBuckets(values, inputs.positions.of_queries(segment), segment))
