"""What an encoding adds to scores, by distance: computed by running it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .encodings.build import build_encoding
from .encodings.terms import DistanceTable
from .probe import call_of_alike_tokens, host_of_encoding, scores_of

SAMPLES = 16
LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Picture:
    """What an encoding adds to the scores of tokens that differ by position alone.

    ``causal``: in a decoder, else in an encoder. ``mean`` and ``spread`` (standard deviation) ``[H, N]`` go over random contents and over all pairs at each of
    ``distances`` ``[N]``, query slot minus key slot. ``exact``: it is a bias of distance, the same for every content. ``drawn``: freshly initialised it
    adds nothing, so its parameters were drawn at random.
    """

    causal: bool
    distances: Tensor
    mean: Tensor
    spread: Tensor
    exact: bool
    drawn: bool

    @property
    def where(self) -> str:
        """The kind of model."""
        return "decoder" if self.causal else "encoder"


def pictures(rel_pos: Any, *, num_heads: int = 4, head_dim: int = 16, length: int = 64, seed: int = 0) -> list[Picture]:
    """What ``rel_pos`` (a name, a dict, a list, or an encoding that is built) adds in texts of ``length`` tokens, in a decoder and in an encoder where it is
    defined there.

    Encodings are freshly initialised with ``seed``, for ``num_heads`` of width ``head_dim`` and a host with a table of ``length`` positions. Raises ValueError when
    ``rel_pos`` is not valid in either.
    """
    if isinstance(rel_pos, nn.Module):
        return [_picture(rel_pos, length, seed, drawn=False)]
    found, refusals = [], []
    for causal in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                encoding = build_encoding(
                    rel_pos, num_heads=num_heads, head_dim=head_dim, max_position_embeddings=length, causal=causal
                ).eval()
            except ValueError as error:
                refusals.append(error)
                continue
            picture = _picture(encoding, length, seed, drawn=False)
            if not picture.mean.any() and not picture.spread.any() and list(encoding.parameters()):
                for parameter in encoding.parameters():
                    nn.init.normal_(parameter, std=0.5)
                picture = _picture(encoding, length, seed, drawn=True)
        found.append(picture)
    if not found:
        raise refusals[0]
    return found


def _picture(encoding: nn.Module, length: int, seed: int, *, drawn: bool) -> Picture:
    causal = host_of_encoding(encoding).causal
    call = call_of_alike_tokens(encoding, length=length, batch=SAMPLES, seed=seed)
    content = call.value.square().sum(-1)[..., None] * call.value.shape[-1] ** -0.5
    added = scores_of(call) - content
    distances = torch.arange(0 if causal else 1 - length, length)
    diagonals = [added.diagonal(-n, -2, -1).transpose(0, 1).flatten(1) for n in distances.tolist()]
    mean = torch.stack([values.mean(-1) for values in diagonals], dim=-1)
    spread = torch.stack([values.std(-1, correction=0) for values in diagonals], dim=-1)
    terms_only = not call.row_maps and torch.equal(call.query, call.value) and torch.equal(call.key, call.value)
    exact = terms_only and all(isinstance(term, DistanceTable) for term in call.score_terms)
    rounding = 1e-5 * content.abs().max()
    return Picture(
        causal,
        distances,
        mean.masked_fill(mean.abs() < rounding, 0.0),
        torch.zeros_like(spread) if exact else spread.masked_fill(spread < rounding, 0.0),
        exact,
        drawn,
    )


def sparkline(values: Tensor, width: int = 40) -> str:
    """One line of block characters for ``values`` ``[N]``, lowest to highest; blanks where they are infinite."""
    finite = values[values.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 0.0)
    picked = values[torch.linspace(0, len(values) - 1, min(width, len(values))).round().long()].tolist()
    step = (high - low) / (len(LEVELS) - 1) or 1.0
    return "".join(LEVELS[round((value - low) / step)] if math.isfinite(value) else " " for value in picked)


def text_of(picture: Picture, heads: int = 4) -> list[str]:
    """Lines for a terminal: the first ``heads`` heads of a picture with their lowest and highest value."""
    first, last = picture.distances[0].item(), picture.distances[-1].item()
    lines = [f"{picture.where}, distance {first} to {last}:"]
    for head, (mean, spread) in enumerate(zip(picture.mean[:heads], picture.spread[:heads], strict=True)):
        finite = mean[mean.isfinite()]
        around = f"  ± {spread[spread.isfinite()].mean():.2g}" if not picture.exact and spread.any() else ""
        lines.append(f"  head {head}  {sparkline(mean)}  {finite.min():.3g} to {finite.max():.3g}{around}")
    return lines
