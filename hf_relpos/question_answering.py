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

    ``start_logits`` and ``end_logits`` are ``[T]``; ``offsets`` gives each token's characters in the context, None where no span begins or
    ends. Spans have at most ``max_answer_length`` tokens. Raises ValueError when a logit is NaN.
    """
    inside = torch.tensor([offset is not None for offset in offsets])
    length = len(offsets)
    start, end = (
        logits[:length].float().masked_fill(~inside, -torch.inf) for logits in (start_logits.cpu(), end_logits.cpu())
    )
    if (start + end).isnan().any():
        raise ValueError("the model gives logits that are not numbers (NaN)")
    width = min(max_answer_length, length)
    # scores[i, w] belongs to the tokens from i to i + w
    ends = torch.cat((end, end.new_full((width - 1,), -torch.inf))).unfold(0, width, 1)
    scores = (start[:, None] + ends).flatten()
    values, flat = scores.topk(min(n_best, scores.numel()))
    spans = []
    for value, index in zip(values.tolist(), flat.tolist(), strict=True):
        if value == float("-inf"):
            break
        first, wider = divmod(index, width)
        begin, finish = offsets[first], offsets[first + wider]
        assert begin is not None
        assert finish is not None
        spans.append((value, begin[0], finish[1]))
    return spans


def context_offsets(encoding: Any, window: int, context: str | None = None) -> list[tuple[int, int] | None]:
    """Characters in the context of each token of one window of a fast tokenizer's output; None for tokens outside it.

    With the ``context`` itself, without the blanks around a token, which byte-level tokenizers count in; None for blanks alone.
    """
    offsets: list[tuple[int, int] | None] = []
    for (start, end), part in zip(encoding["offset_mapping"][window], encoding.sequence_ids(window), strict=True):
        if part == 1 and context is not None:
            while start < end and context[start].isspace():
                start += 1
            while start < end and context[end - 1].isspace():
                end -= 1
        offsets.append((start, end) if part == 1 and (context is None or start < end) else None)
    return offsets


def window_length(model: Any) -> int | None:
    """How many tokens ``model`` reads at once; None when neither a table of absolute positions nor an encoding limits it."""
    limits = [length for module in model.modules() if (length := getattr(module, "max_length", None)) is not None]
    config = model.config
    table = None if getattr(config, "absolute", None) == "drop" else getattr(config, "max_position_embeddings", None)
    if table is not None:
        # RoBERTa-like tables keep their first rows for padding
        reserved = [
            module.padding_idx + 1
            for module in model.modules()
            if hasattr(module, "position_embeddings") and getattr(module, "padding_idx", None) is not None
        ]
        limits.append(table - max(reserved, default=0))
    return min(limits, default=None)


@torch.no_grad()
def answer(
    model: Any, tokenizer: Any, question: str, context: str, *, n_best: int = 1, max_answer_length: int = 30
) -> list[Answer]:
    """The ``n_best`` answers to ``question`` that stand in ``context``, best first; spans have at most ``max_answer_length`` tokens.

    A model without absolute positions reads the whole context at once. Others read overlapping windows of their table's length, and the
    windows' spans compete by score.

    Raises ValueError for an empty question or context, ``n_best`` or ``max_answer_length`` that is no integer of at least 1, a tokenizer
    without offsets, a model without span logits or whose logits are NaN, or a question that leaves a window no room for context.
    """
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}={text!r} is not valid: it must be a text that is not empty")
    for name, number in (("n_best", n_best), ("max_answer_length", max_answer_length)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}={number!r} is not valid: it must be an integer of at least 1")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, which alone knows the characters of each token"
        )
    question = question.strip()
    limit = window_length(model)
    cut: dict[str, Any] = {}
    if limit is not None:
        asked = len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        room = limit - asked - tokenizer.num_special_tokens_to_add(pair=True)
        if room < 8:
            raise ValueError(f"the question leaves {max(room, 0)} of {limit} tokens to the context; shorten it")
        cut = {
            "truncation": "only_second",
            "max_length": limit,
            "stride": min(STRIDE, room // 2),
            "return_overflowing_tokens": True,
        }
    encoding = tokenizer([question], [context], return_offsets_mapping=True, verbose=False, **cut)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]

    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    found: dict[tuple[int, int], float] = {}
    try:
        model.eval()
        for window in range(len(encoding["input_ids"])):
            output = model(**{name: torch.tensor([encoding[name][window]], device=device) for name in names})
            if getattr(output, "start_logits", None) is None:
                raise ValueError(
                    f"{type(model).__name__} gives no start and end logits; use a ...ForQuestionAnswering class"
                )
            spans = best_spans(
                output.start_logits[0],
                output.end_logits[0],
                context_offsets(encoding, window, context),
                n_best=n_best,
                max_answer_length=max_answer_length,
            )
            for score, start, end in spans:
                found[start, end] = max(score, found.get((start, end), score))
    finally:
        for module, mode in modes:
            module.training = mode
    best = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    return [Answer(context[start:end], score, start, end) for (start, end), score in best]
