"""Classify texts, sentences or long documents, with an encoder or a decoder.

    python training/classification.py --rel_pos alibi --absolute drop --max_length 2048 \\
        --train_file TRAIN.jsonl.gz --validation_file DEV.jsonl.gz --output_dir outputs/reviews
    python training/classification.py --label_field category --train_file TRAIN.csv --validation_file TEST.csv
    accelerate launch training/classification.py --model bert-base-uncased --dataset imdb --validation_split test

Classes are those of all training rows. Data are often sorted by class, so limit_train and limit_eval take rows evenly spread over the data. Writes to ``output_dir``: the
best model with tokenizer and model card, metrics.json, predictions.json (class and probability of each evaluation row), log.jsonl, checkpoints, runs/.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from arguments import option
from batches import Row, Stream
from collating import pad
from loop import LoopArguments
from models import ModelArguments, check_length, load_model, load_tokenizer
from prediction import predict
from results import ResultArguments
from scores import score
from script import Evaluation, Task, main
from sources import DataArguments, DataError, text_of, value_of

HEADLINES = ("accuracy", "macro_f1", "mcc")


@dataclass
class ClassificationArguments(ModelArguments, DataArguments, LoopArguments, ResultArguments):
    """What the classification task must be told."""

    text_field: str = option("text", "field of a row that holds the text")
    label_field: str = option("label", "field that holds its class, a name or a number")
    classes: str | None = option(
        None, "all classes, comma-separated, in the order of their numbers; those of the training rows unless given"
    )
    max_length: int = option(512, "tokens of a text; what is longer loses its end")
    best_metric: str = option("accuracy", f"what chooses the best model: {', '.join(HEADLINES)}", "evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_at_least(8, "max_length")
        self.need("best_metric", self.best_metric in HEADLINES, f"one of {', '.join(HEADLINES)}")
        names = self.class_names
        if names is not None and (len(set(names)) < len(names) or len(names) < 2 or "" in names):
            raise ValueError(f"classes={self.classes!r} is not valid: give two names or more, each once")

    @property
    def class_names(self) -> list[str] | None:
        """The classes that the user named."""
        return None if self.classes is None else [name.strip() for name in self.classes.split(",")]

    def texts(self, part: str) -> Iterator[tuple[str, str, str]]:
        """Place, text and class of the rows of ``part``: all of them, or of a stream the first ones."""
        for where, row in self.rows(part, limited=self.streaming):
            yield where, text_of(row, self.text_field, where), class_of(row, self.label_field, where)


def class_of(row: dict[str, Any], name: str, where: str) -> str:
    """The class of a row, as text: numbers and truth values are names too."""
    value = value_of(row, name, where)
    if isinstance(value, str):
        return text_of(row, name, where)
    if not isinstance(value, int):
        raise DataError(f"{where}: the field {name!r} is {type(value).__name__}, not the name or number of a class")
    return str(value).lower() if isinstance(value, bool) else str(value)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once: numbers by value, others by alphabet."""
    found = set(names)
    return sorted(found, key=int) if all(name.removeprefix("-").isdecimal() for name in found) else sorted(found)


def spread(rows: list[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` of ``rows``, evenly spread over them."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[number * len(rows) // limit] for number in range(limit)]


def classes_of(labels: Iterable[str], source: str, given: list[str] | None) -> list[str]:
    """The classes to tell apart; :class:`DataError` when ``labels``, those of all training rows, are none, all one, or all different."""
    counts = Counter(labels)
    total = sum(counts.values())
    if not total:
        raise DataError(f"{source}: there are no rows to train on")
    if len(counts) == 1:
        raise DataError(
            f"{source}: all {total} rows are of the class {next(iter(counts))!r}; there is nothing to learn"
        )
    if len(counts) == total > 10:
        raise DataError(f"{source}: each of the {total} rows has a class of its own; is label_field the right field?")
    if given is None:
        return in_order(counts)
    unknown = in_order(set(counts) - set(given))
    if unknown:
        raise DataError(f"{source}: rows of classes that classes leaves out: {', '.join(unknown[:10])}")
    return given


@dataclass
class Features:
    """Texts to tokens, at most ``max_length``, and class names to numbers. Counts what is cut."""

    tokenizer: Any
    max_length: int
    numbers: dict[str, int]
    seen: int = 0
    cut: int = 0
    longest: int = 0

    def __call__(self, where: str, text: str, label: str) -> Row:
        if label not in self.numbers:
            few = ", ".join(list(self.numbers)[:10]) + (", ..." if len(self.numbers) > 10 else "")
            raise DataError(f"{where}: no training row is of the class {label!r}; classes: {few}")
        encoded = self.tokenizer(text, verbose=False)
        length = len(encoded["input_ids"])
        if not length:
            raise DataError(f"{where}: the tokenizer finds nothing in the text")
        self.seen, self.longest = self.seen + 1, max(self.longest, length)
        if length > self.max_length:
            self.cut += 1
            # anew, for only the tokenizer knows what it puts around a text
            encoded = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return {"input_ids": list(encoded["input_ids"]), "labels": self.numbers[label]}

    @property
    def share_cut(self) -> float:
        """The percentage of texts that lost their end."""
        return 100 * self.cut / max(self.seen, 1)

    def report(self, what: str) -> str:
        """What was cut, in a line."""
        cut = (
            f"{self.cut} of them ({self.share_cut:.1f} %) cut to {self.max_length}" if self.cut else "none of them cut"
        )
        return f"{self.seen} texts to {what}, the longest of {self.longest} tokens, {cut}"


def read_rows(arguments: ClassificationArguments, part: str, features: Features) -> list[Row]:
    """The rows of ``part`` as features; :class:`DataError` when they are all of one class."""
    limit = arguments.limit(part)
    chosen = spread(list(arguments.texts(part)), None if arguments.streaming else limit)
    rows = [features(*one) for one in chosen]
    found = {label for _, _, label in chosen}
    if len(found) < 2:
        what = f"all {len(rows)} rows are of the class {min(found)!r}" if found else "there are no rows"
        hint = "; data sorted by class need a file of their own to evaluate on" if arguments.validation_share else ""
        raise DataError(f"{arguments.source(part)} ({part}): {what}{hint}")
    return rows


def prepare(arguments: ClassificationArguments, accelerator: Accelerator) -> Task:
    """Read texts and classes, load the model, and say what had to be cut."""
    named = arguments.class_names
    if named is None or not arguments.streaming:
        labels = (label for _, _, label in arguments.texts("train"))
        named = classes_of(labels, arguments.source("train"), named)
    numbers = {name: number for number, name in enumerate(named)}
    tokenizer = load_tokenizer(arguments, lambda: (text for _, text, _ in arguments.texts("train")))
    model = load_model(
        arguments,
        "SequenceClassification",
        tokenizer,
        num_labels=len(named),
        id2label=dict(enumerate(named)),
        label2id=numbers,
    )
    check_length(model, arguments.max_length)
    # what is saved cuts texts, where it is asked to, as they were cut here
    tokenizer.model_max_length = arguments.max_length
    make = partial(Features, tokenizer, arguments.max_length, numbers)
    evaluated = make()
    eval_rows = read_rows(arguments, "validation", evaluated)
    train_rows: list[Row] | Stream
    accelerator.print(f"{len(named)} classes; {evaluated.report('evaluate')}")
    if arguments.streaming:
        train_rows = Stream(
            lambda: (feature(*one) for feature in (make(),) for one in arguments.texts("train")),
            arguments.rows_identity("train"),
            arguments.shuffle_buffer,
        )
    else:
        trained = make()
        train_rows = read_rows(arguments, "train", trained)
        accelerator.print(trained.report("train on"))
    collate = partial(pad, tokenizer=tokenizer, max_length=arguments.max_length)

    def evaluate(model: Any, accelerator: Accelerator) -> Evaluation:
        def likeliest(model: Any, inputs: dict[str, torch.Tensor], batch: Any) -> list[tuple[float, int]]:
            found = model(**inputs).logits.float().softmax(-1).max(-1)
            return list(zip(found.values.tolist(), found.indices.tolist(), strict=True))

        found = predict(model, accelerator, eval_rows, collate, likeliest, arguments.eval_batch_size, unit="text")
        metrics = score("classification", [number for _, number in found], [row["labels"] for row in eval_rows])
        predictions = [{"label": named[number], "score": probability} for probability, number in found]
        return Evaluation({**metrics, "truncated": evaluated.share_cut}, predictions)

    return Task(
        name="text-classification",
        model=model,
        tokenizer=tokenizer,
        rows=train_rows,
        collate=collate,
        evaluate=evaluate,
        headline=arguments.best_metric,
        dataset=arguments.dataset_name,
        eval_rows=eval_rows,
    )


if __name__ == "__main__":
    main(ClassificationArguments, prepare, __doc__)
