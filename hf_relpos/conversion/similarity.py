"""How near a converted model is to its original on texts that it was not fitted on, and what becomes of it beyond the original's length."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .texts import FittingTexts

FACTORS = (2, 4, 8)


@dataclass
class Similarity:
    """Means over texts, by length in tokens. ``pooled`` and ``token``: cosine of the last hidden states to the original's, averaged over a text and token by token. ``beyond``, by
    length: the same as ``pooled`` for each stretch of a longer text, which the original reads by itself. ``perplexity`` of models with a causal
    language head, and ``original_perplexity``."""

    pooled: dict[int, float] = field(default_factory=dict)
    token: dict[int, float] = field(default_factory=dict)
    beyond: dict[int, float] = field(default_factory=dict)
    perplexity: dict[int, float] = field(default_factory=dict)
    original_perplexity: dict[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def hidden_states(model: Any, ids: Tensor) -> Tensor:
    """The last hidden states of the base model, ``[B, T, E]``."""
    base = model.base_model
    return base(input_ids=ids, **({"use_cache": False} if model.can_generate() else {}))[0]


@torch.no_grad()
def compare(original: Any, converted: Any, texts: FittingTexts, *, beyond: bool = True) -> Similarity:
    """Compare two models on the unseen part of ``texts``; longer texts only as far as there is text, and where ``beyond`` asks for them."""
    original.eval(), converted.eval()
    found = Similarity()
    sums: dict[int, list[tuple[int, float, float]]] = {}
    for ids in texts.unseen:
        theirs, mine = hidden_states(original, ids), hidden_states(converted, ids)
        pooled = torch.cosine_similarity(theirs.mean(1), mine.mean(1), dim=-1).mean()
        token = torch.cosine_similarity(theirs, mine, dim=-1).mean()
        sums.setdefault(ids.shape[1], []).append((len(ids), float(pooled), float(token)))
    for length, rows in sorted(sums.items()):
        count = sum(size for size, *_ in rows)
        found.pooled[length] = sum(size * pooled for size, pooled, _ in rows) / count
        found.token[length] = sum(size * token for size, _, token in rows) / count
    if original.can_generate():
        found.perplexity = _perplexities(converted, texts)
        found.original_perplexity = _perplexities(original, texts)
    for factor in FACTORS if beyond else ():
        value = _beyond(original, converted, texts, factor)
        if value is not None:
            found.beyond[factor * texts.length] = value
    return found


def _perplexities(model: Any, texts: FittingTexts) -> dict[int, float]:
    sums: dict[int, list[tuple[int, float]]] = {}
    for ids in texts.unseen:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        sums.setdefault(ids.shape[1], []).append((ids[:, 1:].numel(), float(loss)))
    return {
        length: float(torch.tensor(sum(n * loss for n, loss in rows) / sum(n for n, _ in rows)).exp())
        for length, rows in sorted(sums.items())
    }


def _beyond(original: Any, converted: Any, texts: FittingTexts, factor: int) -> float | None:
    stream, length = texts.long, texts.length
    width = stream.width(length)
    if len(stream.ids) < factor * width:
        return None
    ids = stream.ids[: factor * width]
    long = torch.tensor([[*stream.before, *ids, *stream.after]])
    first = len(stream.before)
    mine = hidden_states(converted, long)[0, first : first + len(ids)].unflatten(0, (factor, width))
    theirs = torch.cat([hidden_states(original, window[None]) for window in stream.windows(length, factor, 0)])
    theirs = theirs[:, first : first + width]
    return float(torch.cosine_similarity(theirs.mean(1), mine.mean(1), dim=-1).mean())
