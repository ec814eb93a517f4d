"""All relations between the entities of a document, as in DocRED (Yao et al. 2019) and Re-DocRED (Tan et al. 2022, arXiv 2205.12696).

After ATLOP (Zhou et al. 2021, arXiv 2010.11304), without its pooling by attention: an entity is ``e = logsumexp`` of the states of its mentions, each that of the mark before it;
a pair is scored by blocks, ``logit_r = sum_k z_k^T W_rk y_k + b_r`` with ``z = tanh(A e_head)``, ``y = tanh(B e_tail)``. Adaptive threshold: relations that hold must score above one more
class, all others below it. Global threshold: each relation has a cross entropy of its own, and holds from a half on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from relation_model import Head, RelationOutput
from relation_task import RelationTask, tokens_of
from scores import score
from script import Evaluation
from sources import DataError, check_characters, list_of
from torch import Tensor, nn

MARK = "*"


class DocumentHead(Head):
    """``logits`` ``[B, N, N, relations]`` over the threshold, from head entity to tail, for ``mentions`` ``[B, N, M]``, the places of their states, -1 for none.

    ``labels`` ``[B, N, N, relations]`` say what holds, ``pairs`` ``[B, N, N]`` which pairs count; the loss is the mean over those.
    """

    kind = "documents"

    def __init__(self, *, width: int, labels: int, size: int, block: int, dropout: float, adaptive: bool) -> None:
        super().__init__(width=width, labels=labels, size=size, block=block, dropout=dropout, adaptive=adaptive)
        self.adaptive = adaptive
        self.dropout = nn.Dropout(dropout)
        self.source, self.target = nn.Linear(width, size), nn.Linear(width, size)
        classes = labels + adaptive
        self.weight = nn.Parameter(torch.empty(classes, size // block, block, block))
        self.bias = nn.Parameter(torch.zeros(classes))
        nn.init.uniform_(self.weight, -((size * block) ** -0.5), (size * block) ** -0.5)

    def forward(
        self, states: Tensor, mentions: Tensor, pairs: Tensor | None = None, labels: Tensor | None = None
    ) -> RelationOutput:
        """See the class."""
        batch, entities, most = mentions.shape
        places = mentions.clamp(min=0).view(batch, -1, 1).expand(-1, -1, states.shape[-1])
        found = states.gather(1, places).view(batch, entities, most, -1).float()
        there = (mentions >= 0)[..., None]
        # an entity without mentions is zero, not the logarithm of it
        there = there | ~there.any(2, keepdim=True)
        pooled = self.dropout(found.masked_fill(~there, -torch.inf).logsumexp(2)).to(states.dtype)
        shape = (batch, entities, *self.weight.shape[1:3])
        source, target = torch.tanh(self.source(pooled)).view(shape), torch.tanh(self.target(pooled)).view(shape)
        # without ever holding the products of all pairs
        half = torch.einsum("bikx,rkxy->birky", source, self.weight)
        scores = (torch.einsum("birky,bjky->bijr", half, target) + self.bias).float()
        logits = scores[..., 1:] - scores[..., :1] if self.adaptive else scores
        if labels is None or pairs is None:
            return RelationOutput(logits=logits)
        scores, labels = scores[pairs], labels[pairs]
        loss = adaptive_loss(scores, labels) if self.adaptive else _each(scores, labels)
        return RelationOutput(loss=loss.mean(), logits=logits)


def _each(scores: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none").sum(-1)


def adaptive_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss ``[P]`` of pairs with ``scores`` ``[P, 1 + R]``, the threshold's first, of which ``labels`` ``[P, R]`` hold (arXiv 2010.11304, equation 7).

    ``-sum_{r holds} log(e^s_r / sum of those that hold and the threshold) - log(e^s_0 / sum of those that do not and the threshold)``
    """
    always = torch.ones_like(labels[:, :1])
    above = scores.masked_fill(~torch.cat((always, labels), -1), -torch.inf).log_softmax(-1)
    below = scores.masked_fill(~torch.cat((always, ~labels), -1), -torch.inf).log_softmax(-1)
    return -above[:, 1:].masked_fill(~labels, 0.0).sum(-1) - below[:, 0]


@dataclass(frozen=True)
class Document:
    """Sentences of words; entities, each a list of mentions ``(name, first word, end)`` counted over the document; facts ``(head, tail, relation)``."""

    where: str
    title: str
    sentences: list[list[str]]
    entities: list[list[tuple[str, int, int]]]
    facts: list[tuple[int, int, str]]


class DocumentRelations(RelationTask[Document]):
    """See the module. Relations of an entity that is cut off are missed."""

    name = "token-classification"
    headline = "f1"

    @classmethod
    def read(cls, where: str, row: dict[str, Any], arguments: Any) -> Document:
        """A row with ``sents``, ``vertexSet`` and ``labels``, as DocRED has them."""
        sentences = list_of(row, "sents", where, list)
        for number, sentence in enumerate(sentences):
            for word in sentence:
                if not isinstance(word, str):
                    raise DataError(f"{where}: sentence {number} has {word!r} for a word")
                check_characters(word, "sents", where)
        if not any(sentences):
            raise DataError(f"{where}: the document has no words")
        begins = [sum(map(len, sentences[:number])) for number in range(len(sentences))]
        entities: list[list[tuple[str, int, int]]] = []
        for number, mentions in enumerate(list_of(row, "vertexSet", where, list)):
            entities.append([])
            for mention in mentions:
                place = f"{where}: entity {number}"
                try:
                    sentence, (start, end), name = mention["sent_id"], mention["pos"], str(mention["name"])
                    valid = 0 <= sentence < len(sentences) and 0 <= start < end <= len(sentences[sentence])
                except (KeyError, TypeError, ValueError):
                    raise DataError(f"{place}: a mention must have name, sent_id and pos [start, end]") from None
                if not valid:
                    raise DataError(
                        f"{place}: the mention {name!r} at {[start, end]} lies outside of sentence {sentence}"
                    )
                entities[-1].append((name, begins[sentence] + start, begins[sentence] + end))
            if not mentions:
                raise DataError(f"{where}: entity {number} has no mention")
        facts = []
        for label in list_of(row, "labels", where, dict):
            try:
                fact = (label["h"], label["t"], label["r"])
                valid = all(0 <= end < len(entities) for end in fact[:2]) and fact[0] != fact[1]
            except (KeyError, TypeError):
                raise DataError(
                    f"{where}: a label must have h and t, numbers of entities, and r, but is {label}"
                ) from None
            if not valid or not isinstance(fact[2], str):
                raise DataError(
                    f"{where}: a label must have h and t, two of the {len(entities)} entities, and r, but is {label}"
                )
            facts.append(fact)
        return Document(where, str(row.get("title", "")), sentences, entities, sorted(set(facts)))

    @classmethod
    def labels_of(cls, record: Document) -> Iterable[str]:
        """The relations that hold."""
        return (relation for _, _, relation in record.facts)

    @classmethod
    def text_of(cls, record: Document) -> str:
        """The words."""
        return " ".join(word for sentence in record.sentences for word in sentence)

    def head(self, width: int) -> DocumentHead:
        """A new head."""
        arguments = self.arguments
        return DocumentHead(
            width=width,
            labels=len(self.labels),
            size=arguments.head_size,
            block=arguments.block_size,
            dropout=arguments.head_dropout,
            adaptive=arguments.threshold == "adaptive",
        )

    def features(self, record: Document, *, for_training: bool) -> dict[str, Any] | None:
        """``mentions``: the places of each entity's. Documents with fewer than two entities have no pair to train on."""
        arguments = self.arguments
        words, owners, sentences, places = self._marked(record)
        tokens = tokens_of(words, self.tokenizer, arguments.max_length, arguments.too_long, record.where)
        mentions = [
            sorted({token for _, start, _ in entity if (token := tokens.first[places[start]]) is not None})
            for entity in record.entities
        ]
        if for_training and sum(map(bool, mentions)) < 2:
            return None
        row: dict[str, Any] = {"input_ids": tokens.ids, "mentions": mentions}
        if for_training:
            row["facts"] = [[head, tail, self.index[relation]] for head, tail, relation in record.facts]
        if arguments.relation_ids:
            row["entities"] = [owners[word] if word >= 0 else 0 for word in tokens.word]
            row["sentences"] = [sentences[word] if word >= 0 else 0 for word in tokens.word]
        return row

    def _marked(self, record: Document) -> tuple[list[str], list[int], list[int], dict[int, int]]:
        """Words with marks around mentions; the entity and the sentence of each, from 1; where the mention that begins at a word has its state."""
        mark = self.arguments.mark_mentions
        starts = {start for entity in record.entities for _, start, _ in entity}
        ends = {end for entity in record.entities for _, _, end in entity}
        owner = [0] * sum(map(len, record.sentences))
        for number, entity in enumerate(record.entities, 1):
            for _, start, end in entity:
                owner[start:end] = [number] * (end - start)
        words: list[str] = []
        owners: list[int] = []
        sentences: list[int] = []
        places: dict[int, int] = {}
        position = 0

        def put(word: str, entity: int, sentence: int) -> None:
            words.append(word)
            owners.append(entity)
            sentences.append(sentence)

        for number, sentence in enumerate(record.sentences, 1):
            for word in sentence:
                places[position] = len(words)
                if mark and position in starts:
                    put(MARK, owner[position], number)
                # a word of nothing but blanks would be no word to the tokenizer
                put(word if word.strip() else "_", owner[position], number)
                position += 1
                if mark and position in ends:
                    put(MARK, owner[position - 1], number)
        return words, owners, sentences, places

    def targets(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Mentions, pairs and what holds between them."""
        entities = max(1, *(len(row["mentions"]) for row in batch))
        most = max(1, *(len(mentions) for row in batch for mentions in row["mentions"]))
        places = torch.full((len(batch), entities, most), -1)
        for number, row in enumerate(batch):
            for entity, mentions in enumerate(row["mentions"]):
                places[number, entity, : len(mentions)] = torch.tensor(mentions, dtype=torch.long)
        if "facts" not in batch[0]:
            return {"mentions": places}
        there = (places >= 0).any(-1)
        pairs = there[:, :, None] & there[:, None] & ~torch.eye(entities, dtype=torch.bool)
        labels = torch.zeros(len(batch), entities, entities, len(self.labels), dtype=torch.bool)
        for number, row in enumerate(batch):
            for head, tail, relation in row["facts"]:
                labels[number, head, tail, relation] = True
        return {"mentions": places, "pairs": pairs, "labels": labels}

    def weigh(self, inputs: dict[str, Tensor]) -> int:
        """The loss is the mean over pairs."""
        return int(inputs["pairs"].sum())

    def answers(self, output: RelationOutput, batch: Sequence[dict[str, Any]]) -> list[list[tuple[int, int, str]]]:
        """The facts found in each document."""
        assert output.logits is not None
        found = []
        for number, row in enumerate(batch):
            facts = (output.logits[number] > 0).nonzero().tolist()
            there = {entity for entity, mentions in enumerate(row["mentions"]) if mentions}
            found.append([(h, t, self.labels[r]) for h, t, r in facts if h != t and {h, t} <= there])
        return found

    def prepare_evaluation(self, records: Iterator[Document]) -> None:
        """Keep the facts of the training data by the names of their entities."""
        self.known = {fact for record in records for fact in _named_facts(record)}

    def evaluation(self, records: Sequence[Document], found: Sequence[list[tuple[int, int, str]]]) -> Evaluation:
        """F1 of facts, and that without facts that the training data tell (``ign_f1``)."""

        def columns(facts: Sequence[tuple[int, int, str]]) -> dict[str, list[Any]]:
            return {name: [fact[place] for fact in facts] for place, name in enumerate("htr")}

        wanted = []
        for record in records:
            known = [any(fact in self.known for fact in _named_facts(record, [one])) for one in record.facts]
            wanted.append({**columns(record.facts), "known": known})
        metrics = score("document_relations", [columns(facts) for facts in found], wanted)
        predictions = [
            {"title": record.title, "h_idx": head, "t_idx": tail, "r": relation}
            for record, facts in zip(records, found, strict=True)
            for head, tail, relation in facts
        ]
        return Evaluation(metrics, predictions)


def _named_facts(
    record: Document, facts: Sequence[tuple[int, int, str]] | None = None
) -> Iterator[tuple[str, str, str]]:
    for head, tail, relation in record.facts if facts is None else facts:
        for one, _, _ in record.entities[head]:
            for other, _, _ in record.entities[tail]:
                yield one, other, relation
