"""Rows to what a text generator learns from: running text, or prompts with the texts that are to follow them.

- ``text``: a field of text, for language modelling.
- ``pairs``: a field to go by and a field to write, each a text or a list of texts (sentences there, references here).
- ``dialogues``: turns with speaker and utterance; what one speaker says is to be written after all that was said before.
- ``meetings``: QMSum's rows, a transcript with queries and their answers.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from collating import prompted
from sources import DataError, list_of, text_of, value_of

FORMATS = ("text", "pairs", "dialogues", "meetings")
Rows = Iterable[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Example:
    """``prompt``, of which a part is left out where it is too long (its start with ``keeps_end``), then ``ending``, which is whole, then one of ``references``."""

    where: str
    prompt: str
    ending: str
    references: tuple[str, ...]
    keeps_end: bool = False


def texts_of(row: dict[str, Any], name: str, where: str) -> list[str]:
    """The field ``name`` of a row, a text or a list of texts, as a list; :class:`DataError` when it is neither, or holds nothing."""
    value = value_of(row, name, where)
    if not isinstance(value, list):
        return [text_of(row, name, where)]
    found = [text for text in list_of(row, name, where) if text.strip()]
    if not found:
        raise DataError(f"{where}: the field {name!r} holds no text")
    return found


def pairs(rows: Rows, prompt: str, target: str, ending: str) -> Iterator[Example]:
    """One example a row."""
    for where, row in rows:
        yield Example(where, " ".join(texts_of(row, prompt, where)), ending, tuple(texts_of(row, target, where)))


def dialogues(rows: Rows, turns: str, speaker: str) -> Iterator[Example]:
    """One example for each turn of ``speaker`` that answers another; :class:`DataError` when there is none in a row."""
    for where, row in rows:
        said: list[str] = []
        found = False
        members = list_of(row, turns, where, dict)
        for number, turn in enumerate(members):
            place = f"{where}, member {number} of {turns!r}"
            who, what = text_of(turn, "speaker", place), text_of(turn, "utterance", place)
            if who == speaker and said:
                found = True
                yield Example(where, "\n".join(said), f"\n{speaker}:", (what,), keeps_end=True)
            said.append(f"{who}: {what}")
        if not found:
            speakers = ", ".join(sorted({str(turn["speaker"]) for turn in members})) or "nobody"
            raise DataError(f"{where}: {speaker!r} answers nothing; speakers: {speakers}")


def meetings(rows: Rows) -> Iterator[Example]:
    """One example for each query."""
    for where, row in rows:
        said = []
        for number, turn in enumerate(list_of(row, "meeting_transcripts", where, dict)):
            place = f"{where}, member {number} of 'meeting_transcripts'"
            said.append(f"{text_of(turn, 'speaker', place)}: {text_of(turn, 'content', place, empty=True)}")
        transcript = "\n".join(said)
        for name in ("general_query_list", "specific_query_list"):
            for number, asked in enumerate(list_of(row, name, where, dict)):
                place = f"{where}, member {number} of {name!r}"
                query, answer = text_of(asked, "query", place), text_of(asked, "answer", place)
                yield Example(place, transcript, f"\n\n{query}\n", (answer,))


@dataclass
class Features:
    """Examples to tokens, at most ``max_length``, of which the last ``max_target_length`` are kept for the target. Counts what it had to cut."""

    tokenizer: Any
    max_length: int
    max_target_length: int
    end: int
    seen: int = 0
    prompts_cut: int = 0
    targets_cut: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        # queries of a meeting share its transcript
        self._long = functools.lru_cache(maxsize=4)(self.encode)

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text`` without any around it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def prompt(self, example: Example) -> list[int]:
        """Prompt and ending; :class:`DataError` when they leave nothing of the prompt."""
        prompt, ending = self._long(example.prompt), self.encode(example.ending)
        room = self.max_length - self.max_target_length - len(ending)
        if room < 1:
            raise DataError(
                f"{example.where}: {len(ending)} tokens before a target of {self.max_target_length} leave a prompt no room in max_length={self.max_length}"
            )
        self.seen += 1
        self.prompts_cut += len(prompt) > room
        self.longest = max(self.longest, len(prompt) + len(ending))
        return (prompt[-room:] if example.keeps_end else prompt[:room]) + ending

    def row(self, example: Example) -> dict[str, list[int]]:
        """The whole example, its first reference being the target, of which alone there are labels."""
        prompt = self.prompt(example)
        target = [*self.encode(f" {example.references[0]}"), self.end]
        self.targets_cut += len(target) > self.max_target_length
        target = target[: self.max_target_length]
        return prompted(prompt, target)

    def report(self) -> str:
        """What was cut, in a sentence."""
        return (
            f"{self.seen} examples, {self.prompts_cut} prompts and {self.targets_cut} targets of them cut to fit in max_length={self.max_length} and "
            f"max_target_length={self.max_target_length}; the longest prompt has {self.longest} tokens"
        )


def text_tokens(texts: Iterable[str], tokenizer: Any, end: int | None) -> Iterator[list[int]]:
    """The tokens of each text and its end: the token ``end``, or a line break where that is None."""
    texts = iter(texts)
    # many at once, which a fast tokenizer does in parallel, but not all, for a stream has no end
    while some := list(itertools.islice(texts, 1000)):
        if end is None:
            some = [f"{text}\n" for text in some]
        ids = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        yield from ids if end is None else ([*one, end] for one in ids)


def reader(arguments: Any) -> Callable[[Rows], Iterator[Example]]:
    """What makes examples of rows of ``arguments.format``, which is not text."""
    makers: dict[str, Callable[[Rows], Iterator[Example]]] = {
        "pairs": functools.partial(
            pairs, prompt=arguments.prompt_field, target=arguments.target_field, ending=arguments.ending
        ),
        "dialogues": functools.partial(dialogues, turns=arguments.turns_field, speaker=arguments.speaker),
        "meetings": meetings,
    }
    return makers[arguments.format]
