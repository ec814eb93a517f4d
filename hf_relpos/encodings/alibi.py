"""ALiBi: a penalty linear in distance, with a fixed slope per head. Press, Smith, Lewis 2021, arXiv 2108.12409.

``score = scale * q_i . k_j - m_h * (i - j)``, with slopes ``m_h = 2**(-8 (h + 1) / H)`` for ``H`` a power of two; otherwise those of the
power of two below, followed by every second slope of the next power of two.

For encoders, where the paper defines nothing: ``symmetric`` uses ``|i - j|`` (as MosaicBERT, arXiv 2312.17482), which cannot tell left
from right; ``one_sided`` lets the first half of the heads see only the past and the others only the future, each group with the
causal slopes of its number of heads (a recipe of the ALiBi repository, ofirpress/attention_with_linear_biases issue 5).

``learned=True`` multiplies each head's slope by ``exp(s_h)`` with learned ``s``, 0 at first, so that slopes stay positive. The paper tried learned
slopes and found them to extrapolate no better.

The penalty is written as a distance, at most 0, never as slope times key index: in bfloat16 the latter is wrong by whole logits.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions, Host
from .registry import register_encoding
from .slopes import alibi_slopes
from .terms import DistanceTable


@dataclass(frozen=True, kw_only=True)
class AlibiOptions(EncodingOptions):
    """``direction`` auto = causal in a decoder, symmetric in an encoder; ``learned``: slopes are learned, from the paper's on."""

    direction: Literal["auto", "causal", "symmetric", "one_sided"] = "auto"
    learned: bool = False

    def resolve(self, host: Host) -> Self:
        if self.direction == "auto":
            return replace(self, direction="causal" if host.causal else "symmetric")
        if self.direction == "causal" and not host.causal:
            raise ValueError(
                "direction='causal' in a bidirectional model would reward distant future tokens; "
                "valid here: auto, symmetric, one_sided"
            )
        if self.direction == "one_sided" and host.causal:
            raise ValueError(
                "direction='one_sided' in a causal model would leave half of the heads with nothing to see; "
                "valid here: auto, causal, symmetric"
            )
        if self.direction == "one_sided" and host.num_heads < 2:
            raise ValueError("direction='one_sided' needs at least 2 heads, one for each side")
        return self


@register_encoding
class Alibi(Encoding[AlibiOptions]):
    """No parameters; with ``learned`` ``log_scale`` ``[H]``, zeros, one set for all layers."""

    name = "alibi"
    Options = AlibiOptions
    shared = True
    by_place = True
    fitting_options: ClassVar[dict[str, Any]] = {"learned": True}
    card = Card(
        title="Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
        authors="Press, Ofir and Smith, Noah A. and Lewis, Mike",
        year=2021,
        arxiv="2108.12409",
        formula="score = q_i·k_j / √D − m_h·(i − j)",
        depends_on="distance",
        directions="causal",
        beyond_training="the penalty goes on linearly",
    )

    def create_parameters(self) -> None:
        self.log_scale = nn.Parameter(torch.empty(self.host.num_heads)) if self.options.learned else None

    def reset_parameters(self) -> None:
        if self.log_scale is not None:
            nn.init.zeros_(self.log_scale)

    def _slopes(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The slope of each head, ``[H, 1]``; one_sided counts the heads of each side by themselves."""
        heads = self.host.num_heads
        sides = (heads // 2, heads - heads // 2) if self.options.direction == "one_sided" else (heads,)
        slopes = torch.cat([alibi_slopes(side, dtype, device) for side in sides])
        return (slopes if self.log_scale is None else slopes * self.log_scale.to(dtype).exp())[:, None]

    def score_terms(self, inputs: EncodingInputs) -> tuple[DistanceTable]:
        distances = inputs.positions.distances().to(inputs.dtype)
        slopes = self._slopes(inputs.dtype, distances.device)
        if self.options.direction == "one_sided":
            past = self.host.num_heads // 2
            table = torch.cat(
                (
                    (-slopes[:past] * distances).masked_fill(distances < 0, -math.inf),
                    (slopes[past:] * distances).masked_fill(distances > 0, -math.inf),
                )
            )
        elif self.options.direction == "symmetric":
            table = -slopes * distances.abs()
        else:
            # future keys are masked by the host; clamping keeps the table at most 0 there
            table = -slopes * distances.clamp(min=0)
        return (DistanceTable(table, inputs.positions),)
