"""How likely a causal model finds a text: losses of single tokens, summed by their place in the row.

A token at place ``p`` of a row is predicted from the ``p`` tokens before it. The first of a row is predicted from nothing, and not scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from collating import pad
from prediction import predict
from torch.nn.functional import cross_entropy

Row = dict[str, list[int]]


def next_token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each token but a row's first, ``[B, T - 1]``, from logits ``[B, T, V]``; 0 where the label is -100.

    Row by row in float32: over a large vocabulary, a batch of float logits is larger than the model.
    """
    rows = [
        cross_entropy(row[:-1].float(), wanted[1:], reduction="none", ignore_index=-100)
        for row, wanted in zip(logits, labels, strict=True)
    ]
    return torch.stack(rows)


@dataclass(frozen=True)
class Likelihood:
    """Sums of losses and numbers of tokens, by place: entry ``b`` is of the places ``2**b .. 2**(b + 1) - 1``."""

    losses: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many tokens were scored."""
        return sum(self.tokens)

    @property
    def loss(self) -> float:
        """The mean loss of a token, in nats."""
        return sum(self.losses) / self.total

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss."""
        return perplexity(self.loss)

    def positions(self) -> list[dict[str, float]]:
        """Perplexity by place: ``from`` and ``to`` are the least and most tokens that stand before those scored."""
        return [
            {"from": 2**b, "to": 2 ** (b + 1) - 1, "tokens": tokens, "perplexity": perplexity(loss / tokens)}
            for b, (loss, tokens) in enumerate(zip(self.losses, self.tokens, strict=True))
            if tokens
        ]


def perplexity(loss: float) -> float:
    """``exp(loss)``, the largest number there is where that is too large."""
    return math.exp(min(loss, 709.0))


def likelihood(
    model: Any, accelerator: Accelerator, rows: Sequence[Row], tokenizer: Any, batch_size: int
) -> Likelihood:
    """What ``model`` makes of the labels of ``rows`` that are not -100; ValueError when there are none."""
    longest = max(len(row["input_ids"]) for row in rows)
    stretches = max(longest - 1, 1).bit_length()

    def sums(model: Any, inputs: dict[str, torch.Tensor], batch: Sequence[Row]) -> list[Any]:
        labels = inputs.pop("labels")
        losses = next_token_losses(model(**inputs, use_cache=False).logits, labels).double()
        place = torch.arange(1, losses.shape[1] + 1)
        # padding may go beyond the longest row, without targets
        stretch = torch.log2(place.double()).long().clamp(max=stretches - 1).to(losses.device)
        empty = losses.new_zeros(len(batch), stretches)
        counted = (labels[:, 1:] != -100).to(losses)
        both = (empty.index_add(1, stretch, losses), empty.index_add(1, stretch, counted))
        return torch.stack(both, 1).cpu().unbind(0)  # type: ignore[return-value]

    collate = partial(pad, tokenizer=tokenizer, max_length=longest)
    found = torch.stack(predict(model, accelerator, rows, collate, sums, batch_size, unit="row")).sum(0)
    if not found[1].sum():
        raise ValueError("no token is to be predicted")
    return Likelihood(tuple(found[0].tolist()), tuple(int(count) for count in found[1].tolist()))


def windows(tokens: Sequence[int], length: int, shortest: int) -> list[Row]:
    """``tokens`` cut into rows of ``length``, one after the other; what is left over is dropped.

    Every ``shortest``-th token is not scored, for it begins a row of that length: so rows of all lengths that are multiples of it score the
    same tokens.
    """
    rows = []
    for start in range(0, len(tokens) - length + 1, length):
        ids = list(tokens[start : start + length])
        rows.append({"input_ids": ids, "labels": [-100 if i % shortest == 0 else ids[i] for i in range(length)]})
    return rows
