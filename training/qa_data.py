"""Question-answering data: reading SQuAD in its shapes, cutting contexts into windows, and turning logits back into answers."""

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_relpos import best_spans, context_offsets


class DataError(ValueError):
    """A data set that cannot be used; the message names file, row and what is wrong."""


@dataclass(frozen=True)
class Example:
    """A question, its context, and its reference answers with their character offsets (none: unanswerable)."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]


def read_examples(source: str, *, split: str, limit: int | None = None) -> list[Example]:
    """Examples of ``source``: a local file (.json in SQuAD's official nested form or a list of rows, .jsonl, .parquet, each also .gz) or the
    Hub id of a data set, of which ``split`` is read; at most ``limit``.

    A row has ``id``, ``question``, ``context`` and ``answers: {"text": [...], "answer_start": [...]}``. Raises :class:`DataError` that names the
    file and row of whatever is malformed, and for an empty set or a file that cannot be read.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    for where, row in _rows(source, split):
        example = _example(where, row)
        if example.id in seen:
            raise DataError(f"{where}: the id {example.id!r} occurs twice")
        seen.add(example.id)
        examples.append(example)
        if limit is not None and len(examples) >= limit:
            break
    if not examples:
        raise DataError(f"{source} holds no examples")
    return examples


def _rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    if not path.exists():
        if path.suffix in (".json", ".jsonl", ".gz", ".parquet"):
            raise DataError(f"{source}: there is no such file")
        yield from _hub_rows(source, split)
        return
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind not in (".json", ".jsonl", ".parquet") or not path.is_file():
        raise DataError(
            f"{source}: its format is unknown; valid: .json, .jsonl, .parquet, each also .gz, or the Hub id of a data set"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if kind == ".jsonl":
                for number, line in enumerate(file, 1):
                    where = f"{source}, line {number}"
                    if line.strip():
                        yield where, _parse(line, where)
            elif kind == ".json":
                yield from _json_rows(source, _parse(file.read(), source))
            else:
                yield from _parquet_rows(source, file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None


def _parquet_rows(source: str, file: Any) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(io.BytesIO(file.read())).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{source}, row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def _json_rows(source: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, list):
        for number, row in enumerate(content, 1):
            yield f"{source}, record {number}", row
        return
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f"{source}: neither a list of rows nor SQuAD's {{'data': [...]}}")
    for a, article in enumerate(content["data"], 1):
        if not isinstance(article, dict) or "paragraphs" not in article:
            yield f"{source}, record {a}", article
            continue
        for p, paragraph in enumerate(_list_of(article, "paragraphs", f"{source}, article {a}"), 1):
            where = f"{source}, article {a}, paragraph {p}"
            for q, question in enumerate(_list_of(paragraph, "qas", where), 1):
                yield _flat(question, paragraph, f"{where}, question {q}")


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


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        rows = datasets.load_dataset(source, split=split)
    except (OSError, ValueError, DatasetsError, HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the data set {source!r} is neither a local file nor to be had from the Hub: {reason}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{source} ({split}), row {number}", row


def _example(where: str, row: Any) -> Example:
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object but {type(row).__name__}")
    for name in ("id", "question", "context"):
        if not isinstance(row.get(name), str):
            what = "is missing" if row.get(name) is None else f"is {type(row[name]).__name__}, not text"
            raise DataError(f"{where}: the field {name!r} {what}")
        if not row[name].strip():
            raise DataError(f"{where}: the field {name!r} is empty")
        if not _encodable(row[name]):
            raise DataError(f"{where}: the field {name!r} holds half of a surrogate pair, which is no character")
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


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    """One batch of windows as tensors, padded to its longest, rounded up to a multiple of ``pad_to_multiple_of`` but not beyond
    ``max_length``, where a table of positions may end."""
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch[0]]
    length = max(len(feature["input_ids"]) for feature in batch)
    rounded = math.ceil(length / pad_to_multiple_of) * pad_to_multiple_of
    padded = tokenizer.pad(
        {name: [feature[name] for feature in batch] for name in names},
        padding="max_length",
        max_length=rounded if max_length is None else max(length, min(rounded, max_length)),
        return_tensors="pt",
    )
    tensors = dict(padded)
    for name in ("start_positions", "end_positions"):
        if name in batch[0]:
            tensors[name] = torch.tensor([feature[name] for feature in batch])
    return tensors


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
