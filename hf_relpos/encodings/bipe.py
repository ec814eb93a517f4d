"""BiPE: one position within a segment, another among segments. He et al. 2024, arXiv 2401.16421.

The place of a token within its segment (a sentence, say) picks a row of a learned table that is added to the model's input. Attention sees
the numbers of segments only, ``s_i`` and ``s_j``: rotated by RoPE (``inter="rope"``), or ``score = scale * q_i . k_j - slope_factor * m_h * |s_i - s_j|`` with ALiBi's
slopes ``m_h`` (``inter="alibi"``), which the authors multiply by 96. Tokens of one segment are at distance 0.

Segments end with the tokens of ``separator_ids`` (the authors take the full stop and the newline), each of which belongs to the segment that
it ends; without them, ``segment_ids`` tell. Of each key it remembers by how much the segment number grows after it: that is known when the
token is, where a number counted from the start would not survive a sliding cache.
"""

from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs, Tokens, missing_input
from .options import DirectedOptions, Host
from .registry import register_encoding
from .rotation import require_even, rotate
from .sinusoid import angles
from .slopes import alibi_slopes
from .terms import PairFunction


@dataclass(frozen=True, kw_only=True)
class BipeOptions(DirectedOptions):
    """``inter``: what attention does with segments; ``separator_ids``: token ids that end a segment (none: ``segment_ids`` are given); ``max_segment``: rows of
    the table, later tokens of a segment share the last; ``slope_factor`` of ALiBi, ``base`` and ``layout`` of RoPE; ``direction`` as everywhere."""

    inter: Literal["rope", "alibi"] = "rope"
    separator_ids: list = field(default_factory=list)
    max_segment: int = 1024
    slope_factor: float = 96.0
    base: float = 10000.0
    layout: Literal["half", "interleaved"] = "half"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            all(isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0 for id_ in self.separator_ids),
            "separator_ids",
            "a list of token ids",
        )
        self.require(self.max_segment >= 1, "max_segment", "at least 1")
        self.require(self.slope_factor > 0, "slope_factor", "larger than 0")
        self.require(self.base > 1, "base", "larger than 1")
        self.require(
            self.share_layers is not False, "share_layers", "null or true: the table is added to the model's input"
        )

    def resolve(self, host: Host) -> Self:
        if self.inter == "rope":
            require_even(host.head_dim)
        return super().resolve(host)


@register_encoding
class Bipe(Encoding[BipeOptions]):
    """Parameter ``intra_table`` ``[max_segment, E]``, as wide as the model's input, drawn from N(0, 0.02); attention itself has none."""

    name = "bipe"
    Options = BipeOptions
    shared = True
    reads = frozenset({"input_ids", "segment_ids"})
    card = Card(
        title="Two Stones Hit One Bird: Bilevel Positional Encoding for Better Length Extrapolation",
        authors="He, Zhenyu and Feng, Guhao and Luo, Shengjie and Yang, Kai and Wang, Liwei and Xu, Jingjing and Zhang, Zhi and "
        "Yang, Hongxia and He, Di",
        year=2024,
        arxiv="2401.16421",
        formula="x_t + a[place in segment]; score = (R_{s_i} q_i)·(R_{s_j} k_j) / √D, or ALiBi on |s_i − s_j|",
        depends_on="content",
        directions="causal",
        beyond_training="more segments, each as long as in training",
    )

    def create_parameters(self) -> None:
        width = self.host.embedding_size or self.host.hidden_size
        self.intra_table = nn.Parameter(torch.empty(self.options.max_segment, width))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.intra_table, std=0.02)

    @property
    def state_width(self) -> int:
        return 1

    def key_state(self, tokens: Tokens) -> Tensor:
        """By how much the segment number grows after each key ``[B, T, 1]``; raises ValueError where nothing tells."""
        ids, segments = tokens.input_ids, tokens.segment_ids
        if ids is not None and self.options.separator_ids:
            # one test for each of the few separators: a list of them would be copied to the device at every call
            ends = torch.stack([ids == separator for separator in self.options.separator_ids])
            return ends.any(dim=0)[..., None].float()
        if segments is None:
            raise missing_input("segment_ids (or separator_ids in its options, and a model's input_ids)", self.name)
        if bool(tokens.before):
            raise ValueError(
                f"the encoding {self.name!r} without separator_ids cannot go on from a cache: segment_ids of new tokens do not tell whether "
                "the token before them ended a segment"
            )
        return nn.functional.pad(segments.long().diff(dim=-1), (0, 1))[..., None].float()

    def segments(self, inputs: EncodingInputs) -> tuple[Tensor, Tensor]:
        """Segment numbers of queries ``[B, Tq]`` and keys ``[B, Tk]``, counted from the first key's."""
        steps = inputs.require("key_state", self.name)[..., 0].to(inputs.dtype)
        keys = steps.cumsum(-1) - steps
        return inputs.positions.of_queries(keys), keys

    def _turn(self, x: Tensor, segments: Tensor) -> Tensor:
        if self.options.inter != "rope":
            return x
        return rotate(x, angles(segments, self.host.head_dim, float(self.options.base)), self.options.layout)

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._turn(query, self.segments(inputs)[0])

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        return self._turn(key, self.segments(inputs)[1])

    def score_terms(self, inputs: EncodingInputs) -> tuple[PairFunction, ...]:
        if self.options.inter != "alibi":
            return ()
        query, key = self.segments(inputs)
        slopes = self.options.slope_factor * alibi_slopes(self.host.num_heads, inputs.dtype, key.device)
        causal = self.options.direction == "causal"

        def penalty(query: Tensor, key: Tensor) -> Tensor:
            distance = query - key
            # later keys are masked by the host; clamping keeps the penalty at most 0 there
            return -slopes * (distance.clamp(min=0) if causal else distance.abs())

        return (PairFunction(penalty, query[..., None], key[..., None]),)

    @property
    def adds_to_input(self) -> bool:
        return True

    def input_term(self, index: Tensor, width: int, tokens: Tokens, past: Tensor | None) -> Tensor:
        ends = self.key_state(tokens)
        if past is not None:
            ends = torch.cat((past.to(ends.dtype), ends), dim=1)
        place = torch.arange(ends.shape[1], device=ends.device)[None]
        # where the segment begins that stands open before each token
        begins = nn.functional.pad(torch.where(ends[..., 0] > 0, place + 1, 0), (1, 0))[:, :-1].cummax(dim=1).values
        new = slice(ends.shape[1] - index.shape[1], None)
        # a text begins a segment too, wherever in the row it stands
        within = torch.minimum(index, (place - begins)[:, new]).clamp(0, self.options.max_segment - 1)
        return self.intra_table[within]
