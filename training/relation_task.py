"""What the three tasks of relations.py have in common: words to tokens, relation ids of pairs of tokens, and what a task must bring."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Generic, TypeVar

import torch
from collating import pad
from relation_model import Head
from script import Evaluation
from sources import DataError
from torch import Tensor

RecordT = TypeVar("RecordT")
# relation_ids: elsewhere; in one sentence; entities of one sentence; entities of different sentences; the same entity
NUM_RELATIONS = 5


@dataclass(frozen=True)
class Tokens:
    """``ids`` of a text made of words; ``word`` of each token, -1 for none; ``first`` token of each word, None where the text was cut before it."""

    ids: list[int]
    word: list[int]
    first: list[int | None]


def tokens_of(words: Sequence[str], tokenizer: Any, max_length: int, too_long: str, where: str) -> Tokens:
    """The tokens of ``words`` with blanks between them, whatever the tokenizer makes of blanks.

    A word that the tokenizer leaves nothing of, such as a control character, has the token before it, or else the first one. A text of more
    than ``max_length`` tokens is cut when ``too_long`` is "cut", and is a :class:`DataError` otherwise.
    """
    for number, word in enumerate(words, 1):
        if not word.strip():
            raise DataError(f"{where}: word {number} is empty")
    text = " ".join(words)
    encoded = encode(text, tokenizer, max_length, too_long, where)
    ends = list(accumulate(len(word) + 1 for word in words))
    word_of: list[int] = []
    for start, end in encoded["offset_mapping"]:
        # byte-level tokens hold the blank before a word
        while start < end and text[start].isspace():
            start += 1
        word_of.append(bisect_right(ends, start) if start < end else -1)
    found: dict[int, int] = {}
    for token, number in enumerate(word_of):
        found.setdefault(number, token)
    found.pop(-1, None)
    last = max(found, default=-1)
    if not found and words:
        raise DataError(f"{where}: the tokenizer leaves nothing of the text")
    cut = len(encoded["input_ids"]) < encoded["length"]
    first: list[int | None] = []
    before = 0
    for number in range(len(words)):
        before = found.get(number, before)
        first.append(None if cut and number > last else before)
    return Tokens(encoded["input_ids"], word_of, first)


def encode(text: str, tokenizer: Any, max_length: int, too_long: str, where: str) -> dict[str, Any]:
    """``input_ids`` and ``offset_mapping`` of a text of at most ``max_length`` tokens, and its full ``length``; too long ones as in :func:`tokens_of`."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    length = len(encoded["input_ids"])
    if length > max_length:
        if too_long != "cut":
            raise DataError(
                f"{where}: {length} tokens are more than max_length={max_length}; raise it, or cut with --too_long cut"
            )
        encoded = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=max_length)
    return {"input_ids": encoded["input_ids"], "offset_mapping": encoded["offset_mapping"], "length": length}


def relation_ids_of(entities: Tensor, sentences: Tensor) -> Tensor:
    """The relation ``[B, T, T]`` of each pair of tokens, by the entity and the sentence ``[B, T]`` of each, numbered from 1, 0 for none."""
    same_sentence = (sentences[:, :, None] == sentences[:, None]) & (sentences > 0)[:, None]
    both = (entities > 0)[:, :, None] & (entities > 0)[:, None]
    ids = same_sentence.long()
    ids[both] = torch.where(same_sentence[both], 2, 3)
    ids[both & (entities[:, :, None] == entities[:, None])] = 4
    return ids


class RelationTask(ABC, Generic[RecordT]):
    """One of the tasks of relations.py, for rows read into records; ``labels`` are those of the training data, in order.

    ``name`` is the Hub's name of the task. The features of a row are a dict with ``input_ids``, and with ``entities`` and ``sentences`` of its tokens where
    relation ids are asked for.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    least_labels: ClassVar[int] = 1
    special_tokens: ClassVar[tuple[str, ...]] = ()

    def __init__(self, arguments: Any, tokenizer: Any, labels: Sequence[str]) -> None:
        self.arguments, self.tokenizer, self.labels = arguments, tokenizer, list(labels)
        self.index = {label: number for number, label in enumerate(self.labels)}

    @classmethod
    @abstractmethod
    def read(cls, where: str, row: dict[str, Any], arguments: Any) -> RecordT:
        """A row, checked; :class:`DataError` names ``where`` and what is wrong."""

    @classmethod
    @abstractmethod
    def labels_of(cls, record: RecordT) -> Iterable[str]:
        """The labels of a record."""

    @classmethod
    @abstractmethod
    def text_of(cls, record: RecordT) -> str:
        """Its text, for a tokenizer that is trained."""

    @abstractmethod
    def head(self, width: int) -> Head:
        """A new head over states of ``width``."""

    @abstractmethod
    def features(self, record: RecordT, *, for_training: bool) -> dict[str, Any] | None:
        """The features of a record, with targets ``for_training``; None when there is nothing to train on."""

    @abstractmethod
    def targets(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """What the head reads beside the states."""

    @abstractmethod
    def weigh(self, inputs: dict[str, Tensor]) -> int:
        """Over how many things the loss of a batch is the mean."""

    @abstractmethod
    def answers(self, output: Any, batch: Sequence[dict[str, Any]]) -> list[Any]:
        """What the model says of each row of ``batch``."""

    @abstractmethod
    def evaluation(self, records: Sequence[RecordT], found: Sequence[Any]) -> Evaluation:
        """Metrics of the answers ``found``, and predictions to be written."""

    def prepare_evaluation(self, records: Iterator[RecordT]) -> None:
        """Take from the training records what the metrics need, which is nothing unless a task says so."""

    def collate(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of features as tensors."""
        names = ["input_ids", *(("entities", "sentences") if self.arguments.relation_ids else ())]
        inputs = pad(batch, self.tokenizer, names, max_length=self.arguments.max_length)
        if self.arguments.relation_ids:
            inputs["relation_ids"] = relation_ids_of(inputs.pop("entities"), inputs.pop("sentences"))
        return {**inputs, **self.targets(batch)}
