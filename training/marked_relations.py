"""The relation between two entities that are marked in a text, as in SemEval-2010 Task 8 (Hendrickx et al. 2010).

The marks ``<e1> </e1> <e2> </e2>`` are tokens of their own; the class is read off the states of the two that open (Baldini Soares et al. 2019, arXiv 1906.03158, "entity
markers, entity start"): ``logits = V tanh(W [h_<e1>; h_<e2>])``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from loop import row_weight
from relation_model import Head, RelationOutput
from relation_task import RelationTask, encode
from scores import score
from script import Evaluation
from sources import DataError, text_of, value_of
from torch import Tensor, nn

MARKS = ("<e1>", "</e1>", "<e2>", "</e2>")


class MarkedHead(Head):
    """States at ``first`` and ``second`` ``[B]`` to ``logits`` ``[B, labels]``; ``labels`` ``[B]`` are the classes."""

    kind = "marked"

    def __init__(self, *, width: int, labels: int, size: int, dropout: float) -> None:
        super().__init__(width=width, labels=labels, size=size, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.dense, self.out = nn.Linear(2 * width, size), nn.Linear(size, labels)

    def forward(self, states: Tensor, first: Tensor, second: Tensor, labels: Tensor | None = None) -> RelationOutput:
        """See the class."""
        rows = torch.arange(len(states), device=states.device)
        pair = torch.cat((states[rows, first], states[rows, second]), -1)
        logits = self.out(self.dropout(torch.tanh(self.dense(self.dropout(pair))))).float()
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return RelationOutput(loss=loss, logits=logits)


@dataclass(frozen=True)
class MarkedText:
    """A text with two marked entities, and their relation."""

    where: str
    text: str
    label: str


class MarkedRelations(RelationTask[MarkedText]):
    """See the module. The metric is SemEval's: macro F1 with direction, without "Other"."""

    name = "text-classification"
    headline = "macro_f1"
    least_labels = 2
    special_tokens = MARKS

    @classmethod
    def read(cls, where: str, row: dict[str, Any], arguments: Any) -> MarkedText:
        """The text and the label of a row."""
        text, label = text_of(row, arguments.text_field, where), value_of(row, arguments.label_field, where)
        if not isinstance(label, (str, int)):
            raise DataError(
                f"{where}: the field {arguments.label_field!r} is {type(label).__name__}, not text or a number"
            )
        found = re.findall("|".join(MARKS), text)
        if sorted(found) != sorted(MARKS):
            raise DataError(
                f"{where}: the text must have each of {' '.join(MARKS)} once, but has {' '.join(found) or 'none'}"
            )
        for start, end in (MARKS[:2], MARKS[2:]):
            if text.index(start) > text.index(end):
                raise DataError(f"{where}: {end} stands before {start}")
        return MarkedText(where, text, str(label))

    @classmethod
    def labels_of(cls, record: MarkedText) -> Iterable[str]:
        """The one label."""
        return (record.label,)

    @classmethod
    def text_of(cls, record: MarkedText) -> str:
        """The text without marks."""
        return re.sub("|".join(MARKS), "", record.text)

    def head(self, width: int) -> MarkedHead:
        """A new head."""
        arguments = self.arguments
        return MarkedHead(
            width=width, labels=len(self.labels), size=arguments.head_size, dropout=arguments.head_dropout
        )

    def features(self, record: MarkedText, *, for_training: bool) -> dict[str, Any]:
        """``first`` and ``second`` are the places of the marks that open."""
        arguments = self.arguments
        ids = encode(record.text, self.tokenizer, arguments.max_length, arguments.too_long, record.where)["input_ids"]
        marks = self.tokenizer.convert_tokens_to_ids(list(MARKS))
        places = [ids.index(mark) if mark in ids else None for mark in marks]
        if None in places:
            raise DataError(
                f"{record.where}: an entity is cut off at max_length={arguments.max_length}; raise it, or leave the row out"
            )
        row: dict[str, Any] = {"input_ids": ids, "first": places[0], "second": places[2]}
        if for_training:
            row["labels"] = self.index[record.label]
        if arguments.relation_ids:
            row["sentences"], row["entities"] = [1] * len(ids), [0] * len(ids)
            for number, (start, end) in enumerate(((places[0], places[1]), (places[2], places[3])), 1):
                row["entities"][start : end + 1] = [number] * (end + 1 - start)
        return row

    def targets(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Places and classes."""
        names = [name for name in ("first", "second", "labels") if name in batch[0]]
        return {name: torch.tensor([row[name] for row in batch]) for name in names}

    def weigh(self, inputs: dict[str, Tensor]) -> int:
        """The loss is the mean over rows."""
        return row_weight(inputs)

    def answers(self, output: RelationOutput, batch: Sequence[dict[str, Any]]) -> list[str]:
        """The likeliest label of each row."""
        assert output.logits is not None
        return [self.labels[number] for number in output.logits.argmax(-1).tolist()]

    def evaluation(self, records: Sequence[MarkedText], found: Sequence[str]) -> Evaluation:
        """The official score."""
        return Evaluation(score("relation", list(found), [record.label for record in records]), list(found))
