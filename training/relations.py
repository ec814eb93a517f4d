"""Train relations: between two marked entities, between words (dependency trees), or between the entities of a document.

    python training/relations.py --config training/configs/semeval_minilm.yaml --train_file TRAIN.jsonl.gz --validation_file VALIDATION.jsonl.gz
    python training/relations.py --config training/configs/ewt_minilm.yaml --train_file TRAIN.conllu.gz --validation_file DEV.conllu.gz \\
        --rel_pos relative_key_query --absolute keep
    python training/relations.py --config training/configs/redocred_minilm.yaml --train_file DEV.jsonl.gz \\
        --rel_pos t5 --absolute drop --max_length 1024

Rows of ``--task marked``: a text with ``<e1>...</e1>`` and ``<e2>...</e2>``, and a label. ``dependencies``: CoNLL-U, or ``tokens``, ``head`` (from 1, 0 the root), ``deprel``.
``documents``: ``sents``, ``vertexSet`` and ``labels`` as DocRED has them. What is written is read by :func:`relation_model.load_relation_model`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from arguments import option
from batches import Stream
from dependency_trees import DependencyTrees
from document_relations import DocumentRelations
from loop import LoopArguments
from marked_relations import MarkedRelations
from models import ModelArguments, check_length, load_model, load_tokenizer
from prediction import predict
from relation_model import RelationModel, check_encoder
from relation_task import NUM_RELATIONS, RelationTask
from results import ResultArguments
from script import Evaluation, Task, main
from sources import DataArguments, DataError

TASKS: dict[str, type[RelationTask[Any]]] = {
    "marked": MarkedRelations,
    "dependencies": DependencyTrees,
    "documents": DocumentRelations,
}


@dataclass
class RelationArguments(ModelArguments, DataArguments, LoopArguments, ResultArguments):
    """What the tasks on relations must be told."""

    task: str = option(
        "marked",
        "marked: relation of two entities marked in a text; dependencies: head and label of each word; documents: all relations between the entities of a document",
    )
    max_length: int = option(512, "tokens of a row")
    too_long: str = option("refuse", "what to do with longer rows: refuse, or cut, which loses what lies beyond")
    unseen_labels: str = option(
        "refuse", "labels of the evaluation data that training data lack: refuse, or miss, which counts them as errors"
    )
    relation_ids: bool = option(
        False,
        f"give the encoder {NUM_RELATIONS} kinds of pairs of tokens: elsewhere, same sentence, entities of one sentence, entities of different "
        "sentences, same entity (of dependencies, words are the entities); needs the encoding 'relation'",
    )
    text_field: str = option("text", "marked: field of a row that holds the text")
    label_field: str = option("relation", "marked: field that holds the label")
    decoding: str = option(
        "tree", "dependencies: tree, the best one with one root; or greedy, the best head of each word"
    )
    mark_mentions: bool = option(
        True, "documents: put * before and after each mention, and read its state at the first"
    )
    threshold: str = option(
        "adaptive", "documents: what a relation must exceed: adaptive, learned for each pair; or global"
    )
    block_size: int = option(64, "documents: size of the blocks in which head and tail meet; divides head_size")
    head_size: int = option(256, "width of the head")
    head_dropout: float = option(0.1, "dropout in the head")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, valid in (
            ("task", tuple(TASKS)),
            ("too_long", ("refuse", "cut")),
            ("unseen_labels", ("refuse", "miss")),
            ("decoding", ("tree", "greedy")),
            ("threshold", ("adaptive", "global")),
        ):
            self.need(name, getattr(self, name) in valid, f"one of {', '.join(valid)}")
        self.need_at_least(1, "head_size", "block_size")
        self.need_at_least(3, "max_length")
        self.need("head_dropout", 0 <= self.head_dropout < 1, "at least 0 and less than 1")
        if self.task == "documents":
            self.need("block_size", self.head_size % self.block_size == 0, f"a divisor of head_size={self.head_size}")


def prepare(arguments: RelationArguments, accelerator: Accelerator) -> Task:
    """Read rows, find the labels, load the encoder and put the task's head on it."""
    kind = TASKS[arguments.task]

    def records(part: str, *, limited: bool = True) -> Iterator[Any]:
        return (kind.read(where, row, arguments) for where, row in arguments.rows(part, limited=limited))

    # labels are those of all training rows, also when few are trained on
    everything = None if arguments.streaming else list(records("train", limited=False))
    labels = sorted(
        {label for record in everything or records("train", limited=False) for label in kind.labels_of(record)}
    )
    if len(labels) < kind.least_labels:
        source = arguments.source("train")
        raise DataError(
            f"{source}: {f'all rows have the label {labels[0]!r}' if labels else 'it has no row with a label'}"
        )
    eval_records = list(records("validation"))
    _check_evaluation(arguments, accelerator, kind, eval_records, labels)

    tokenizer = load_tokenizer(
        arguments, texts=lambda: (kind.text_of(one) for one in everything or records("train", limited=False))
    )
    tokenizer.add_tokens(list(kind.special_tokens), special_tokens=True)
    encoder = load_model(arguments, "Model", tokenizer)
    check_length(encoder, arguments.max_length)
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        # whose third stage has parameters in parts from the beginning
        check_encoder(encoder, NUM_RELATIONS if arguments.relation_ids else None)
    task = kind(arguments, tokenizer, labels)
    about = {"labels": labels, "max_length": arguments.max_length, "mark_mentions": arguments.mark_mentions}
    model = RelationModel(encoder, task.head(encoder.config.hidden_size), about)

    def training_rows() -> Iterator[dict[str, Any]]:
        chosen = records("train") if everything is None else iter(everything[: arguments.limit_train])
        return (row for record in chosen if (row := task.features(record, for_training=True)) is not None)

    rows: Any = (
        Stream(training_rows, arguments.rows_identity("train"), arguments.shuffle_buffer)
        if everything is None
        else list(training_rows())
    )
    task.prepare_evaluation(records("train") if everything is None else iter(everything[: arguments.limit_train]))
    eval_rows: list[Any] = [task.features(record, for_training=False) for record in eval_records]
    accelerator.print(
        f"{'a stream of' if everything is None else len(rows)} rows to train on, {len(eval_rows)} to evaluate, {len(labels)} labels"
    )

    def answers(model: Any, inputs: dict[str, torch.Tensor], batch: Sequence[dict[str, Any]]) -> list[Any]:
        return task.answers(model(**inputs), batch)

    def evaluate(model: Any, accelerator: Accelerator) -> Evaluation:
        found = predict(model, accelerator, eval_rows, task.collate, answers, arguments.eval_batch_size)
        return task.evaluation(eval_records, found)

    return Task(
        name=task.name,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=task.collate,
        evaluate=evaluate,
        headline=task.headline,
        dataset=arguments.dataset_name,
        eval_rows=eval_records,
        weigh=task.weigh,
    )


def _check_evaluation(
    arguments: RelationArguments,
    accelerator: Accelerator,
    kind: type[RelationTask[Any]],
    records: Sequence[Any],
    labels: Sequence[str],
) -> None:
    """Raise :class:`DataError` when nothing can be evaluated, or labels occur that no training row has, unless they may count as errors."""
    if not records:
        raise DataError(f"{arguments.source('validation')}: there are no rows to evaluate on")
    known = set(labels)
    unseen = [(record.where, label) for record in records for label in kind.labels_of(record) if label not in known]
    if unseen and arguments.unseen_labels == "refuse":
        where, label = unseen[0]
        raise DataError(
            f"{where}: no training row has the label {label!r}; with --unseen_labels miss such labels count as errors"
        )
    if unseen:
        names = ", ".join(sorted({label for _, label in unseen}))
        accelerator.print(
            f"{len(unseen)} labels of the evaluation data occur in no training row and are missed: {names}"
        )


if __name__ == "__main__":
    main(RelationArguments, prepare, __doc__)
