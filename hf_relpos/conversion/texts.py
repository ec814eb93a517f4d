"""Raw text as windows of token ids: what a conversion is fitted on."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENDINGS = (".txt", ".md", ".jsonl", ".txt.gz", ".jsonl.gz")
# tokens of one batch
BATCH_TOKENS = 2048
# the share of unknown tokens above which a text is refused
MOST_UNKNOWN = 0.5
# characters that are tokenised at once
_CHUNK = 50_000

Text = str | Path | Iterable[str]


def read_text(source: Text) -> Iterator[str]:
    """The pieces of text in ``source`` in order: a file (its lines, or the field "text" of JSON lines), all such files in a folder, or strings.

    Raises FileNotFoundError when there is none, ValueError for a file that is neither text nor JSON lines with "text".
    """
    if not isinstance(source, (str, Path)):
        yield from source
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"the text {path} does not exist; give a file ({', '.join(ENDINGS)}) or a folder of them"
        )
    files = sorted(found for found in path.rglob("*") if found.name.endswith(ENDINGS)) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"the folder {path} holds no text; files must end in {', '.join(ENDINGS)}")
    for file in files:
        if not file.name.endswith(ENDINGS):
            raise ValueError(f"{file} is not valid as text: its name must end in {', '.join(ENDINGS)}")
        yield from _lines(file)


def _lines(file: Path) -> Iterator[str]:
    opened: Any = gzip.open if file.name.endswith(".gz") else open
    is_json = file.name.removesuffix(".gz").endswith(".jsonl")
    read = 0
    with opened(file, "rt", encoding="utf-8") as lines:
        try:
            for line in lines:
                read += 1
                yield _text_of(line) if is_json else line
        except (ValueError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{file} cannot be read as text, line {read}: {error}") from None


def _text_of(line: str) -> str:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError('it has no string "text"')
    return row["text"]


@dataclass(frozen=True)
class TokenStream:
    """Ids of running text without special tokens, and those that the tokenizer puts before and after a text."""

    ids: list[int]
    before: list[int]
    after: list[int]

    def windows(self, length: int, count: int, start: int) -> Tensor:
        """``count`` texts of ``length`` tokens in all, ``[count, length]``, one after the other from id ``start`` on."""
        width = self.width(length)
        rows = [self.ids[start + n * width : start + (n + 1) * width] for n in range(count)]
        return torch.tensor([[*self.before, *row, *self.after] for row in rows])

    def width(self, length: int) -> int:
        """How many ids a text of ``length`` tokens takes."""
        return length - len(self.before) - len(self.after)


def token_chunks(source: Text, tokenizer: Any) -> Iterator[list[int]]:
    """The ids of ``source``, in order, some at a time; no more text is held than a chunk."""
    pieces: list[str] = []
    size = 0

    def take() -> list[int]:
        ids = tokenizer("".join(pieces), add_special_tokens=False, verbose=False)["input_ids"]
        pieces.clear()
        return ids

    for piece in read_text(source):
        pieces.append(piece if piece.endswith("\n") else piece + "\n")
        size += len(piece)
        if size > _CHUNK:
            yield take()
            size = 0
    yield take()


def tokenise(source: Text, tokenizer: Any, count: int) -> TokenStream:
    """The first ``count`` ids of ``source``, or all when there are fewer."""
    ids: list[int] = []
    for chunk in token_chunks(source, tokenizer):
        ids.extend(chunk)
        if len(ids) >= count:
            break
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    first = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
    return TokenStream(ids[:count], whole[:first], whole[first + len(plain) :])


@dataclass(frozen=True)
class FittingTexts:
    """Batches ``[B, T]`` to fit on and, unseen there, to compare on; ``long``: running ids beyond both, for texts longer than ``length``."""

    fit: list[Tensor]
    unseen: list[Tensor]
    long: TokenStream
    length: int

    @property
    def tokens(self) -> int:
        """How many tokens the fit reads."""
        return sum(ids.numel() for ids in self.fit)


def fitting_texts(source: Text, tokenizer: Any, *, length: int, tokens: int) -> FittingTexts:
    """About ``tokens`` tokens of ``source`` in texts of ``length``, half and a quarter of it, a third of the tokens each, and an eighth as many unseen ones.

    Raises ValueError when the text is empty or too short for four texts of ``length`` to fit on and one to compare on.
    """
    total = tokens + tokens // 8 + 9 * length
    stream = tokenise(source, tokenizer, total)
    if not stream.ids:
        raise ValueError("the text to fit on is empty")
    unknown = stream.ids.count(tokenizer.unk_token_id) / len(stream.ids)
    if (
        tokenizer.unk_token_id is not None
        and tokenizer.unk_token_id != tokenizer.eos_token_id
        and unknown > MOST_UNKNOWN
    ):
        raise ValueError(
            f"the tokenizer does not know {100 * unknown:.0f} % of the text to fit on: is it the model's, and the text in its language?"
        )
    have = len(stream.ids)
    needed = 8 * length
    if have < needed:
        raise ValueError(
            f"the text to fit on has {have} tokens, but at least {needed} are needed for texts of {length} tokens; "
            "give more text or a smaller fit_length"
        )
    tokens = min(tokens, (have - length) * 3 // 4)
    lengths = sorted({max(length // part, len(stream.before) + len(stream.after) + 2) for part in (1, 2, 4)})
    start = 0

    def take(budget: int) -> list[Tensor]:
        nonlocal start
        batches = []
        for size in lengths:
            rows = max(1, budget // len(lengths) // size)
            ids = stream.windows(size, rows, start)
            start += rows * stream.width(size)
            batches += list(ids.split(max(1, BATCH_TOKENS // size)))
        return batches

    fit, unseen = take(tokens), take(tokens // 8)
    return FittingTexts(fit, unseen, TokenStream(stream.ids[start:], stream.before, stream.after), length)
