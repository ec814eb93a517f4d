"""Extractive question answering with a model: from logits to spans of text, for contexts of any length.

transformers 5 has no question-answering pipeline any more. A span's score is the sum of its start and end logits (Devlin et al. 2018, arXiv
1810.04805, section 4.2); spans of several windows compete by that score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STRIDE = 128


@dataclass(frozen=True)
class Answer:
    """A span of the context: its text, score (sum of the two logits), and character offsets ``context[start:end]``."""

    text: str
    score: float
    start: int
    end: int


def best_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    offsets: Sequence[tuple[int, int] | None],
    *,
    n_best: int,
    max_answer_length: int,
) -> list[tuple[float, int, int]]:
    """The ``n_best`` spans ``(score, first character, character after the last)`` of one window, best first.

    ``start_logits`` and ``end_logits`` are ``[T]``; ``offsets`` gives each token's characters in the context, None outside it. Spans have at
    most ``max_answer_length`` tokens.
    """
    inside = torch.tensor([offset is not None for offset in offsets])
    length = len(offsets)
    start = start_logits[:length].float().masked_fill(~inside, -torch.inf)
    end = end_logits[:length].float().masked_fill(~inside, -torch.inf)
    # the best pairs need not join the best single tokens, so more candidates than answers
    candidates = min(max(4 * n_best, 20), length)
    start_score, first = start.topk(candidates)
    end_score, last = end.topk(candidates)
    scores = start_score[:, None] + end_score[None, :]
    width = last[None, :] - first[:, None]
    scores = scores.masked_fill((width < 0) | (width >= max_answer_length), -torch.inf)
    values, flat = scores.flatten().topk(min(n_best, scores.numel()))
    spans = []
    for value, index in zip(values.tolist(), flat.tolist(), strict=True):
        if value == float("-inf"):
            break
        begin, finish = offsets[int(first[index // candidates])], offsets[int(last[index % candidates])]
        assert begin is not None
        assert finish is not None
        spans.append((value, begin[0], finish[1]))
    return spans


def context_offsets(encoding: Any, window: int) -> list[tuple[int, int] | None]:
    """Characters in the context of each token of one window of a fast tokenizer's output; None for tokens outside it."""
    return [
        tuple(offset) if part == 1 else None
        for offset, part in zip(encoding["offset_mapping"][window], encoding.sequence_ids(window), strict=True)
    ]


def window_length(model: Any) -> int | None:
    """How many tokens ``model`` reads at once; None when nothing limits it."""
    config = model.config
    if getattr(config, "absolute", None) == "drop":
        return None
    limit = getattr(config, "max_position_embeddings", None)
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    # RoBERTa-like tables keep their first rows for padding
    return limit if limit is None or padding is None else limit - padding - 1


@torch.no_grad()
def answer(
    model: Any, tokenizer: Any, question: str, context: str, *, n_best: int = 1, max_answer_length: int = 30
) -> list[Answer]:
    """The ``n_best`` answers to ``question`` that stand in ``context``, best first; spans have at most ``max_answer_length`` tokens.

    A model without absolute positions reads the whole context at once. Others read overlapping windows of their table's length, and the
    windows' spans compete by score.

    Raises ValueError for an empty question or context, ``n_best`` or ``max_answer_length`` below 1, a tokenizer without offsets, a model
    without span logits, or a question that leaves a window no room for context.
    """
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}={text!r} is not valid: it must be a text that is not empty")
    for name, number in (("n_best", n_best), ("max_answer_length", max_answer_length)):
        if number < 1:
            raise ValueError(f"{name}={number!r} is not valid: it must be at least 1")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, which alone knows the characters of each token"
        )
    limit = window_length(model)
    arguments: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
    if limit is not None:
        room = (
            limit
            - len(tokenizer(question, verbose=False)["input_ids"])
            - tokenizer.num_special_tokens_to_add(pair=True)
        )
        if room < 8:
            raise ValueError(f"the question leaves {max(room, 0)} of {limit} tokens to the context; shorten it")
        arguments |= {
            "truncation": "only_second",
            "max_length": limit,
            "stride": min(STRIDE, room // 2),
            "return_overflowing_tokens": True,
        }
        encoding = tokenizer(question, context, **arguments)
    else:
        encoding = tokenizer([question], [context], **arguments)
    if not isinstance(encoding["input_ids"][0], list):
        raise ValueError(f"{type(tokenizer).__name__} gave no windows")

    device = next(model.parameters()).device
    training = model.training
    found: dict[tuple[int, int], float] = {}
    try:
        model.eval()
        for window in range(len(encoding["input_ids"])):
            names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]
            output = model(**{name: torch.tensor([encoding[name][window]], device=device) for name in names})
            if getattr(output, "start_logits", None) is None:
                raise ValueError(
                    f"{type(model).__name__} gives no start and end logits; use a ...ForQuestionAnswering class"
                )
            spans = best_spans(
                output.start_logits[0].cpu(),
                output.end_logits[0].cpu(),
                context_offsets(encoding, window),
                n_best=n_best,
                max_answer_length=max_answer_length,
            )
            for score, start, end in spans:
                found[start, end] = max(score, found.get((start, end), score))
    finally:
        model.train(training)
    best = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    return [Answer(context[start:end], score, start, end) for (start, end), score in best]
