"""ALiBi: a penalty linear in distance, with a fixed slope per head. Press, Smith, Lewis 2021, arXiv 2108.12409.

``score = scale * q_i . k_j - m_h * (i - j)``, with slopes ``m_h = 2**(-8 (h + 1) / H)`` for ``H`` a power of two; otherwise those of the
power of two below, followed by every second slope of the next power of two.

For encoders, where the paper defines nothing: ``symmetric`` uses ``|i - j|`` (as MosaicBERT, arXiv 2312.17482), which cannot tell left
from right; ``one_sided`` lets the first half of the heads see only the past and the others only the future, each group with the
causal slopes of its number of heads (a recipe of the ALiBi repository, ofirpress/attention_with_linear_biases issue 5).

The penalty is written as a distance, at most 0, never as slope times key index: in bfloat16 the latter is wrong by whole logits.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch

from .card import Card
from .encoding import Encoding, EncodingInputs, register_encoding
from .options import EncodingOptions, Host
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class AlibiOptions(EncodingOptions):
    """``direction`` auto = causal in a decoder, symmetric in an encoder."""

    direction: Literal["auto", "causal", "symmetric", "one_sided"] = "auto"

    def resolve(self, host: Host) -> Self:
        if self.direction == "auto":
            return replace(self, direction="causal" if host.causal else "symmetric")
        if self.direction == "causal" and not host.causal:
            raise ValueError(
                "rel_pos type 'alibi': direction='causal' in a bidirectional model would reward distant future tokens; "
                "valid here: auto, symmetric, one_sided"
            )
        if self.direction == "one_sided" and host.causal:
            raise ValueError(
                "rel_pos type 'alibi': direction='one_sided' in a causal model would leave half of the heads with nothing to see; "
                "valid here: auto, causal, symmetric"
            )
        if self.direction == "one_sided" and host.num_heads < 2:
            raise ValueError("rel_pos type 'alibi': direction='one_sided' needs at least 2 heads, one for each side")
        return self


def alibi_slopes(num_heads: int) -> list[float]:
    """The paper's slope of each head."""
    floor = 2 ** math.floor(math.log2(num_heads))

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]

    return geometric(floor) + geometric(2 * floor)[0::2][: num_heads - floor]


@register_encoding
class Alibi(Encoding[AlibiOptions]):
    """No parameters."""

    name = "alibi"
    Options = AlibiOptions
    shared = True
    card = Card(
        title="Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
        authors="Press, Ofir and Smith, Noah A. and Lewis, Mike",
        year=2021,
        arxiv="2108.12409",
        formula="score = q_i·k_j / √D − m_h·(i − j)",
        depends_on="distance",
        directions="both",
        beyond_training="the penalty goes on linearly",
    )

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        distances = inputs.positions.distances().to(inputs.dtype)
        heads = self.host.num_heads

        def slopes(count: int) -> torch.Tensor:
            return torch.tensor(alibi_slopes(count), dtype=inputs.dtype, device=distances.device)[:, None]

        if self.options.direction == "one_sided":
            past = (-slopes(heads // 2) * distances).masked_fill(distances < 0, -math.inf)
            future = (slopes(heads - heads // 2) * distances).masked_fill(distances > 0, -math.inf)
            table = torch.cat((past, future))
        elif self.options.direction == "symmetric":
            table = -slopes(heads) * distances.abs()
        else:
            # future keys are masked by the host; clamping keeps the table at most 0 there
            table = -slopes(heads) * distances.clamp(min=0)
        return (DistanceTable(table, inputs.positions),)
