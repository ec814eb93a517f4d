"""Dependency trees: the head of each word and the label of the edge, by biaffine attention. Dozat, Manning 2017, arXiv 1611.01734.

A word is the state ``h_i`` of its first token, the root a vector of its own. ``arc_ij = [d_i; 1]^T U h'_j`` scores ``j`` as head of ``i``,
``label_ijr = [a_i; 1]^T V_r [b_j; 1]`` the label of that edge, where d, h', a and b are one-layer perceptrons of the states. The best tree is found by the algorithm of Chu, Liu and
Edmonds; as in Universal Dependencies, one word hangs on the root.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from loop import target_weight
from relation_model import Head, RelationOutput
from relation_task import RelationTask, tokens_of
from scores import score
from script import Evaluation
from sources import DataError, check_characters, list_of
from torch import Tensor, nn


class BiaffineHead(Head):
    """``logits`` ``[B, W, 1 + W]`` of heads, 0 the root, for words whose first tokens are at ``starts`` ``[B, W]``, of which ``words`` ``[B]`` are real.

    With ``heads`` and ``labels`` ``[B, W]`` (-100: no target) the loss is the sum of both cross entropies, mean over words; without them
    ``label_logits`` ``[B, W, 1 + W, labels]`` are given too.
    """

    kind = "dependencies"

    def __init__(self, *, width: int, labels: int, size: int, dropout: float) -> None:
        super().__init__(width=width, labels=labels, size=size, dropout=dropout)
        small = max(size // 4, 1)

        def perceptron(size: int) -> nn.Module:
            return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Dropout(dropout))

        self.dropout = nn.Dropout(dropout)
        self.root = nn.Parameter(torch.randn(width) * 0.02)
        self.arc_word, self.arc_head = perceptron(size), perceptron(size)
        self.label_word, self.label_head = perceptron(small), perceptron(small)
        self.arc = nn.Parameter(torch.empty(size + 1, size))
        self.label = nn.Parameter(torch.empty(labels, small + 1, small + 1))
        nn.init.xavier_uniform_(self.arc)
        nn.init.normal_(self.label, std=small**-1)

    def forward(
        self, states: Tensor, starts: Tensor, words: Tensor, heads: Tensor | None = None, labels: Tensor | None = None
    ) -> RelationOutput:
        """See the class."""
        batch, count = starts.shape
        own = self.dropout(states.gather(1, starts[..., None].expand(-1, -1, states.shape[-1])))
        possible = torch.cat((self.dropout(self.root).to(own.dtype).expand(batch, 1, -1), own), 1)
        arcs = torch.einsum("bix,xy,bjy->bij", _and_one(self.arc_word(own)), self.arc, self.arc_head(possible)).float()
        absent = torch.arange(count + 1, device=starts.device) > words[:, None]
        arcs = arcs.masked_fill(absent[:, None], -1e9)
        word, head = _and_one(self.label_word(own)), _and_one(self.label_head(possible))
        if heads is None or labels is None:
            every = torch.einsum("bix,rxy,bjy->bijr", word, self.label, head).float()
            return RelationOutput(logits=arcs, label_logits=every)
        head = head.gather(1, heads[..., None].expand(-1, -1, head.shape[-1]))
        named = torch.einsum("bix,rxy,biy->bir", word, self.label, head).float()
        wanted = labels != -100
        loss = nn.functional.cross_entropy(arcs[wanted], heads[wanted])
        loss = loss + nn.functional.cross_entropy(named[wanted], labels[wanted])
        return RelationOutput(loss=loss, logits=arcs, label_logits=named)


def _and_one(states: Tensor) -> Tensor:
    return torch.cat((states, states.new_ones(*states.shape[:-1], 1)), -1)


def best_tree(scores: Any) -> list[int]:
    """The heads of the tree with the highest sum of ``scores`` ``[W, 1 + W]`` in which one word has head 0."""
    scores = np.asarray(scores, dtype=np.float64)
    words = len(scores)
    square = np.full((words + 1, words + 1), -np.inf)
    square[:, 1:] = scores.T
    # so much dearer that a second edge from the root is never worth it
    square[0, 1:] -= (words + 1) * (scores.max() - scores.min() + 1)
    np.fill_diagonal(square, -np.inf)
    return _arborescence(square)[1:].tolist()


def _arborescence(scores: np.ndarray) -> np.ndarray:
    """The head of each node in the best tree with the root 0, ``scores[head, node]``; a cycle of best heads is taken as one node."""
    heads = scores.argmax(0)
    heads[0] = 0
    cycle = _cycle(heads)
    if not cycle:
        return heads
    inside = np.array(cycle)
    outside = np.setdiff1d(np.arange(len(scores)), inside)
    # what entering the cycle at a node gains over the edge that it replaces
    gains = scores[np.ix_(outside, inside)] - scores[heads[inside], inside]
    leaving = scores[np.ix_(inside, outside)]
    smaller = np.full((len(outside) + 1, len(outside) + 1), -np.inf)
    smaller[:-1, :-1] = scores[np.ix_(outside, outside)]
    smaller[:-1, -1], smaller[-1, :-1] = gains.max(1), leaving.max(0)
    found = _arborescence(smaller)
    entered = found[-1]
    heads[inside[gains[entered].argmax()]] = outside[entered]
    for place, node in enumerate(outside[1:], 1):
        head = found[place]
        heads[node] = inside[leaving[:, place].argmax()] if head == len(outside) else outside[head]
    return heads


def _cycle(heads: Sequence[int] | np.ndarray) -> list[int]:
    """The nodes of a cycle among ``heads``, of which 0 is its own."""
    checked = {0}
    for start in range(1, len(heads)):
        path: list[int] = []
        node = start
        while node not in checked:
            checked.add(node)
            path.append(node)
            node = int(heads[node])
        if node in path:
            return path[path.index(node) :]
    return []


@dataclass(frozen=True)
class Tree:
    """A sentence as words, the head of each (from 1, 0 for the root), and the labels of the edges."""

    where: str
    words: list[str]
    heads: list[int]
    labels: list[str]


class DependencyTrees(RelationTask[Tree]):
    """See the module. A sentence that is cut counts whole: words beyond have no head, and their scores are lost."""

    name = "token-classification"
    headline = "las"

    @classmethod
    def read(cls, where: str, row: dict[str, Any], arguments: Any) -> Tree:
        """A sentence of CoNLL-U, or a row with its columns ``tokens``, ``head`` and ``deprel``."""
        words, labels = list_of(row, "tokens", where), list_of(row, "deprel", where)
        heads = list_of(row, "head", where, int)
        if not len(words) == len(heads) == len(labels) or not words:
            raise DataError(f"{where}: {len(words)} tokens, {len(heads)} heads and {len(labels)} labels (deprel)")
        for number, (word, head) in enumerate(zip(words, heads, strict=True), 1):
            check_characters(word, "tokens", where)
            if not 0 <= head <= len(words) or head == number:
                raise DataError(f"{where}: word {number} has the head {head}, but must have another word or 0")
        cycle = _cycle([0, *heads])
        if cycle:
            raise DataError(f"{where}: no tree: the words {', '.join(map(str, cycle))} hang on each other")
        return Tree(where, words, heads, labels)

    @classmethod
    def labels_of(cls, record: Tree) -> Iterable[str]:
        """The labels of the edges."""
        return record.labels

    @classmethod
    def text_of(cls, record: Tree) -> str:
        """The words."""
        return " ".join(record.words)

    def head(self, width: int) -> BiaffineHead:
        """A new head."""
        arguments = self.arguments
        return BiaffineHead(
            width=width, labels=len(self.labels), size=arguments.head_size, dropout=arguments.head_dropout
        )

    def features(self, record: Tree, *, for_training: bool) -> dict[str, Any]:
        """``starts`` of the words; a word whose head is cut off has no target."""
        arguments = self.arguments
        tokens = tokens_of(record.words, self.tokenizer, arguments.max_length, arguments.too_long, record.where)
        starts = [start for start in tokens.first if start is not None]
        row: dict[str, Any] = {"input_ids": tokens.ids, "starts": starts}
        if for_training:
            edges = list(zip(record.heads, record.labels, strict=True))[: len(starts)]
            row["heads"] = [head if head <= len(starts) else 0 for head, _ in edges]
            row["labels"] = [self.index[label] if head <= len(starts) else -100 for head, label in edges]
        if arguments.relation_ids:
            row["entities"], row["sentences"] = [word + 1 for word in tokens.word], [1] * len(tokens.ids)
        return row

    def targets(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Words, heads and labels, filled up to the longest sentence."""
        longest = max(len(row["starts"]) for row in batch)
        inputs = {"words": torch.tensor([len(row["starts"]) for row in batch])}
        for name, fill in (("starts", 0), ("heads", 0), ("labels", -100)):
            if name in batch[0]:
                inputs[name] = torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in batch])
        return inputs

    def weigh(self, inputs: dict[str, Tensor]) -> int:
        """The loss is the mean over words that have a target."""
        return target_weight(inputs)

    def answers(self, output: RelationOutput, batch: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[str]]]:
        """Heads and labels of each sentence."""
        assert output.logits is not None
        assert output.label_logits is not None
        arcs, labels = output.logits.cpu(), output.label_logits.cpu()
        found = []
        for number, row in enumerate(batch):
            words = len(row["starts"])
            scores = arcs[number, :words, : words + 1]
            if self.arguments.decoding == "tree":
                heads = best_tree(scores.numpy())
            else:
                # no word is its own head
                itself = torch.eye(words, words + 1, dtype=torch.bool).roll(1, -1)
                heads = scores.masked_fill(itself, -torch.inf).argmax(-1).tolist()
            chosen = labels[number, torch.arange(words), torch.tensor(heads)].argmax(-1).tolist()
            found.append((heads, [self.labels[label] for label in chosen]))
        return found

    def evaluation(self, records: Sequence[Tree], found: Sequence[tuple[list[int], list[str]]]) -> Evaluation:
        """``uas`` and ``las`` over all words, labels without subtypes, as in the CoNLL 2018 evaluation; ``las_subtypes`` with whole labels; ``*_no_punct`` without words
        labelled ``punct`` in the reference."""
        predicted: list[dict[str, list[Any]]] = []
        wanted: list[dict[str, list[Any]]] = []
        for record, (heads, labels) in zip(records, found, strict=True):
            cut = len(record.words) - len(heads)
            predicted.append({"head": [*heads, *[-1] * cut], "deprel": [*labels, *["_"] * cut]})
            wanted.append({"head": record.heads, "deprel": record.labels})
        metrics = score("dependencies", predicted, wanted)
        metrics["las_subtypes"] = score("dependencies", predicted, wanted, universal=False)["las"]
        counted = [[label.partition(":")[0] != "punct" for label in one["deprel"]] for one in wanted]
        if any(map(any, counted)):
            bare = score("dependencies", _only(predicted, counted), _only(wanted, counted))
            metrics |= {"uas_no_punct": bare["uas"], "las_no_punct": bare["las"]}
        return Evaluation(metrics, predicted)


def _only(trees: list[dict[str, list[Any]]], counted: list[list[bool]]) -> list[dict[str, list[Any]]]:
    return [
        {name: [value for value, keep in zip(values, kept, strict=True) if keep] for name, values in tree.items()}
        for tree, kept in zip(trees, counted, strict=True)
    ]
