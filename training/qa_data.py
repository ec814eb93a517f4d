"""Question-answering data: reading SQuAD in its shapes, cutting contexts into windows, and turning logits back into answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from collating import pad
from sources import DataError, check_characters, read_rows

from hf_relpos import best_spans, context_offsets


@dataclass(frozen=True)
class Example:
    """A question, its context, and its reference answers with their character offsets (none: unanswerable)."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]


def read_examples(source: str, *, split: str, limit: int | None = None, config: str | None = None) -> list[Example]:
    """All of :func:`iterate_examples`; an empty set is a :class:`DataError`."""
    examples = list(iterate_examples(source, split=split, limit=limit, config=config))
    if not examples:
        raise DataError(f"{source} holds no examples")
    return examples


def iterate_examples(
    source: str, *, split: str, limit: int | None = None, config: str | None = None, streaming: bool = False
) -> Iterator[Example]:
    """Examples of ``source``, a local file or the Hub id of a data set, of which ``split`` is read; at most ``limit``.

    A row has ``id``, ``question``, ``context`` and ``answers: {"text": [...], "answer_start": [...]}``, or is an article of SQuAD's official nested form.
    Raises :class:`DataError` that names the file and row of whatever is malformed.
    """
    seen: set[str] = set()
    for where, record in read_rows(source, split=split, config=config, streaming=streaming):
        for place, row in _questions(where, record):
            example = _example(place, row)
            if example.id in seen:
                raise DataError(f"{place}: the id {example.id!r} occurs twice")
            seen.add(example.id)
            yield example
            if limit is not None and len(seen) >= limit:
                return


def _questions(where: str, record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The rows of a record: itself, or the questions of an article."""
    if "paragraphs" not in record:
        yield where, record
        return
    article = where.replace(", record ", ", article ")
    for p, paragraph in enumerate(_list_of(record, "paragraphs", article), 1):
        place = f"{article}, paragraph {p}"
        for q, question in enumerate(_list_of(paragraph, "qas", place), 1):
            yield _flat(question, paragraph, f"{place}, question {q}")


def _list_of(holder: Any, name: str, where: str) -> list[Any]:
    """The list ``holder[name]`` of SQuAD's nested form, or :class:`DataError`."""
    if not isinstance(holder, dict) or not isinstance(holder.get(name), list):
        raise DataError(f"{where}: the field {name!r} is missing or not a list")
    return holder[name]


def _flat(question: Any, paragraph: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(question, dict):
        raise DataError(f"{where}: not an object but {type(question).__name__}")
    # what v2.0 gives beside an impossible question is plausible, not right
    answers = [] if question.get("is_impossible") is True else _list_of(question, "answers", where)
    if not all(isinstance(one, dict) for one in answers):
        raise DataError(f"{where}: 'answers' is not a list of objects")
    columns = {name: [one.get(name) for one in answers] for name in ("text", "answer_start")}
    return where, {**question, "context": paragraph.get("context"), "answers": columns}


def _example(where: str, row: Any) -> Example:
    for name in ("id", "question", "context"):
        if not isinstance(row.get(name), str):
            what = "is missing" if row.get(name) is None else f"is {type(row[name]).__name__}, not text"
            raise DataError(f"{where}: the field {name!r} {what}")
        if not row[name].strip():
            raise DataError(f"{where}: the field {name!r} is empty")
        check_characters(row[name], name, where)
    answers = row.get("answers")
    if not isinstance(answers, dict) or not all(
        isinstance(answers.get(name), list) for name in ("text", "answer_start")
    ):
        raise DataError(f"{where}: the field 'answers' must be {{'text': [...], 'answer_start': [...]}}")
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        raise DataError(f"{where}: {len(texts)} answer texts but {len(starts)} offsets")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise DataError(f"{where}: answer {text!r} at {start!r} is not a text with an integer offset")
        if not text.strip():
            raise DataError(f"{where}: the answer at character {start} is empty")
        if row["context"][start : start + len(text)] != text or start < 0:
            raise DataError(f"{where}: the answer {text!r} does not stand at character {start} of the context")
    return Example(row["id"], row["question"], row["context"], tuple(texts), tuple(starts))


def features(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, doc_stride: int, for_training: bool
) -> list[dict[str, Any]]:
    """Windows of at most ``max_length`` tokens over each example, overlapping by ``doc_stride``.

    Each has the tokenizer's inputs; in training ``start_positions`` and ``end_positions``, 0 (the first token) where the window does not hold
    the answer; otherwise ``example_index`` and ``offsets``. Raises :class:`DataError` when a question leaves no room for context.
    """
    longest = max_length - doc_stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
    questions = tokenizer([example.question.strip() for example in examples], add_special_tokens=False)["input_ids"]
    for example, ids in zip(examples, questions, strict=True):
        if len(ids) > longest:
            raise DataError(
                f"question {example.id!r} has {len(ids)} tokens, which leaves no room for context in windows of {max_length} tokens "
                f"overlapping by {doc_stride}"
            )
    encoding = tokenizer(
        [example.question.strip() for example in examples],
        [example.context for example in examples],
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoding]
    windows = []
    for window, index in enumerate(encoding["overflow_to_sample_mapping"]):
        feature: dict[str, Any] = {name: encoding[name][window] for name in names}
        offsets = context_offsets(encoding, window, examples[index].context)
        if for_training:
            feature["start_positions"], feature["end_positions"] = _target(examples[index], offsets)
        else:
            feature["example_index"], feature["offsets"] = index, offsets
        windows.append(feature)
    return windows


def _target(example: Example, offsets: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    if not example.answers:
        return 0, 0
    # references may carry blanks around them, which no token covers
    text = example.answers[0]
    start = example.answer_starts[0] + len(text) - len(text.lstrip())
    end = start + len(text.strip())
    tokens = [t for t, offset in enumerate(offsets) if offset is not None and offset[0] < end and offset[1] > start]
    inside = [offset for offset in offsets if offset is not None]
    if not tokens or inside[0][0] > start or inside[-1][1] < end:
        return 0, 0
    return tokens[0], tokens[-1]


def collate(
    batch: Sequence[dict[str, Any]], tokenizer: Any, pad_to_multiple_of: int = 8, max_length: int | None = None
) -> dict[str, torch.Tensor]:
    """One batch of windows as tensors, without what only their evaluation needs; see :func:`collating.pad`."""
    names = ("input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions")
    return pad(batch, tokenizer, names, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of)


def predictions_from_logits(
    examples: Sequence[Example],
    windows: Sequence[dict[str, Any]],
    start_logits: Sequence[torch.Tensor],
    end_logits: Sequence[torch.Tensor],
    *,
    n_best: int,
    max_answer_length: int,
    version_2: bool,
    null_threshold: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """The prediction for each question: ``text``, ``score``, ``n_best`` texts with scores, and with ``version_2`` ``null_score_diff``.

    With ``version_2`` the text is empty when the score of no answer (start and end logit of the first token, the lowest of all windows)
    exceeds the best span's by more than ``null_threshold``. A context in which the tokenizer finds no token has no span: its text is empty
    and what needs a span's score is None.
    """
    spans: list[dict[tuple[int, int], float]] = [{} for _ in examples]
    null = [float("inf")] * len(examples)
    for window, start, end in zip(windows, start_logits, end_logits, strict=True):
        index = window["example_index"]
        null[index] = min(null[index], float(start[0]) + float(end[0]))
        found = best_spans(start, end, window["offsets"], n_best=n_best, max_answer_length=max_answer_length)
        for score, first, last in found:
            spans[index][first, last] = max(score, spans[index].get((first, last), score))
    predictions = {}
    for example, found_spans, no_answer in zip(examples, spans, null, strict=True):
        ranked = sorted(found_spans.items(), key=lambda item: -item[1])[:n_best]
        texts = [{"text": example.context[first:last], "score": score} for (first, last), score in ranked]
        prediction: dict[str, Any] = {"text": "", "score": None} if not texts else dict(texts[0])
        prediction["n_best"] = texts
        if version_2:
            difference = no_answer - prediction["score"] if texts else None
            if difference is None or difference > null_threshold:
                prediction |= {"text": "", "score": no_answer}
            prediction["null_score_diff"] = difference
        predictions[example.id] = prediction
    return predictions
