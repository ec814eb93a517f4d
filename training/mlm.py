"""Train a masked language model, from scratch or on from pretrained weights, such as after a change of positions.

    python training/mlm.py --rel_pos t5 --absolute drop --train_file TRAIN.txt.gz --validation_file VALIDATION.txt.gz \\
        --document_start '^ = [^=]' --max_length 128 --eval_lengths 256,512,1024
    python training/mlm.py --from_scratch true --model bert --tokenizer wordpiece --packing true --rel_pos alibi --absolute drop \\
        --train_file TRAIN.jsonl --validation_file DEV.jsonl

15 % of a text's tokens are to be found again: 80 % of them are hidden, 10 % replaced by any token, 10 % left; others in each epoch, the same ones in each
evaluation. Perplexity is that of the tokens to be found, and at all lengths these are the same. Writes to ``output_dir``: the best model with tokenizer and model
card, metrics.json, predictions.json (a line for each length), log.jsonl, checkpoints, runs/.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from arguments import option, parse_numbers
from batches import Row, Stream
from checkpoints import RunError
from collating import pack, pad, pad_packed
from loop import LoopArguments, target_weight
from models import ModelArguments, check_length, load_model, load_tokenizer
from perplexity import perplexity
from prediction import predict
from results import ResultArguments
from script import Evaluation, Task, main
from sources import DataArguments, DataError, text_of
from tokenizing import put_around
from torch.nn.functional import cross_entropy

# evaluation masks follow from this, and not from the seed of a run, so that all runs are asked the same
_EVALUATION_SEED = 15
# the tokens that a tokenizer puts before a text, and those after it
Around = tuple[list[int], list[int]]


@dataclass
class MLMArguments(ModelArguments, DataArguments, LoopArguments, ResultArguments):
    """What masked language modelling must be told."""

    text_field: str = option("text", "field of a row that holds the text")
    document_start: str | None = option(
        None,
        "regular expression of rows that begin a document, such as '^ = [^=]' in WikiText; each row is one unless given",
    )
    max_length: int = option(512, "tokens of a window; longer documents are cut into several")
    packing: bool = option(False, "several documents in a row of max_length, which do not see each other")
    mask_share: float = option(0.15, "share of the tokens that are to be found again")
    eval_lengths: str | None = option(
        None, "perplexity also in windows of these lengths, comma-separated, such as 256,1024", "evaluation"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_at_least(8, "max_length")
        self.need("mask_share", 0 < self.mask_share < 1, "between 0 and 1")
        self.need("eval_lengths", min(self.lengths) >= 8, "of at least 8 each")
        try:
            re.compile(self.document_start or "")
        except re.error as error:
            raise ValueError(
                f"document_start={self.document_start!r} is not valid: no regular expression: {error}"
            ) from None

    @property
    def lengths(self) -> list[int]:
        """The lengths that are evaluated, ``max_length`` among them."""
        return sorted({self.max_length, *parse_numbers("eval_lengths", self.eval_lengths)})

    def documents(self, part: str) -> Iterator[tuple[str, str]]:
        """The documents of ``part`` that are not blank, with the places where they begin."""
        texts = ((where, text_of(row, self.text_field, where, empty=True)) for where, row in self.rows(part))
        for where, lines in joined(texts, self.document_start, self.source(part)):
            if text := "\n".join(lines).strip():
                yield where, text


_UNPACKED = (
    "packing needs rel_pos: documents in a row would see each other in transformers' encoders; rel_pos with absolute=keep "
    "or drop keeps them apart, and packing=false gives each a row"
)


def joined(texts: Iterable[tuple[str, str]], start: str | None, source: str) -> Iterator[tuple[str, list[str]]]:
    """Texts put together to documents, each of which begins with a text that ``start`` finds something in; :class:`DataError` when none does."""
    pattern = None if start is None else re.compile(start)
    place, found = "", pattern is None
    lines: list[str] = []
    for where, text in texts:
        begins = pattern is None or pattern.search(text) is not None
        found = found or begins
        if begins and lines:
            yield place, lines
            lines = []
        place = place if lines else where
        lines.append(text)
    if lines:
        yield place, lines
    if not found:
        raise DataError(f"{source}: no row begins a document by document_start={start!r}")


def windows(ids: Sequence[int], around: Around, length: int) -> Iterator[list[int]]:
    """``ids`` cut into rows of at most ``length``, each with what goes ``around`` it."""
    before, after = around
    room = length - len(before) - len(after)
    for start in range(0, len(ids), room):
        yield [*before, *ids[start : start + room], *after]


@dataclass
class Masking:
    """BERT's masking (arXiv:1810.04805): a share of a row's tokens, at least one and none that are special, become targets; of these 80 % are hidden, 10 %
    replaced by any token, 10 % left as they are."""

    tokenizer: Any
    share: float

    def __post_init__(self) -> None:
        special = set(self.tokenizer.all_special_ids)
        self._ordinary = np.array([number for number in range(len(self.tokenizer)) if number not in special])
        self._special = np.array(sorted(special))

    def __call__(self, row: Row, random: np.random.Generator) -> Row:
        """``row`` with what is left of its ``input_ids``, and ``labels``, -100 where there is nothing to find."""
        ids = np.array(row["input_ids"])
        candidates = np.flatnonzero(~np.isin(ids, self._special))
        wanted = min(len(candidates), max(1, round(self.share * len(candidates))))
        chosen = random.choice(candidates, wanted, replace=False) if wanted else candidates
        labels = np.full_like(ids, -100)
        labels[chosen] = ids[chosen]
        fate = random.random(len(chosen))
        anything = random.choice(self._ordinary, len(chosen))
        ids[chosen] = np.where(fate < 0.8, self.tokenizer.mask_token_id, np.where(fate < 0.9, anything, ids[chosen]))
        return {**row, "input_ids": ids.tolist(), "labels": labels.tolist()}


def evaluation_rows(
    documents: Iterable[Row], masking: Masking, around: Around, lengths: Sequence[int]
) -> dict[int, list[Row]]:
    """Masked documents in windows of each of ``lengths``: the same tokens are hidden, and to be found, at all of them.

    ValueError when no document is so long that a length differs from the one before.
    """
    masked = [masking(row, np.random.default_rng((_EVALUATION_SEED, n))) for n, row in enumerate(documents)]
    no_targets = ([-100] * len(around[0]), [-100] * len(around[1]))
    longest = max((len(row["input_ids"]) for row in masked), default=0) + sum(map(len, around))
    for shorter, length in itertools.pairwise(lengths):
        if longest <= shorter:
            raise ValueError(
                f"the longest document to evaluate on has {longest} tokens: windows of {length} would be those of {shorter}; "
                "leave the length out, or see document_start"
            )
    return {
        length: [
            {"input_ids": ids, "labels": labels}
            for row in masked
            for ids, labels in zip(
                windows(row["input_ids"], around, length),
                windows(row["labels"], no_targets, length),
                strict=True,
            )
        ]
        for length in lengths
    }


def found_again(model: Any, inputs: dict[str, torch.Tensor], batch: Sequence[Row]) -> list[tuple[float, int, int]]:
    """Of each row: the sum of the targets' losses, how many there are, and how many are the likeliest token."""
    labels = inputs.pop("labels")
    # of the others, no probabilities are needed, which over a vocabulary take more memory than the model
    where = labels != -100
    logits, wanted = model(**inputs).logits[where].float(), labels[where]
    losses = cross_entropy(logits, wanted, reduction="none").double()
    row = where.nonzero()[:, 0]
    empty = losses.new_zeros(len(batch))
    sums = (
        empty.index_add(0, row, values)
        for values in (losses, torch.ones_like(losses), (logits.argmax(-1) == wanted).double())
    )
    return [(loss, int(count), int(right)) for loss, count, right in zip(*(one.tolist() for one in sums), strict=True)]


def evaluate(
    model: Any, accelerator: Accelerator, *, rows: dict[int, list[Row]], tokenizer: Any, arguments: MLMArguments
) -> Evaluation:
    """Perplexity at each length, and accuracy at the length trained on."""
    lines: list[dict[str, float]] = []
    for length, chosen in rows.items():
        found = predict(
            model,
            accelerator,
            chosen,
            partial(pad, tokenizer=tokenizer, max_length=length),
            found_again,
            # about as many tokens in a batch at each length
            max(1, arguments.eval_batch_size * arguments.max_length // length),
            unit="window",
        )
        loss, targets, right = (sum(values) for values in zip(*found, strict=True))
        lines.append(
            {
                "length": length,
                "perplexity": perplexity(loss / targets),
                "accuracy": 100 * right / targets,
                "loss": loss / targets,
                "targets": targets,
                "windows": len(chosen),
                "tokens_a_window": sum(len(row["input_ids"]) for row in chosen) / len(chosen),
            }
        )
    (own,) = (line for line in lines if line["length"] == arguments.max_length)
    metrics = {name: own[name] for name in ("perplexity", "accuracy", "loss", "targets")}
    if len(lines) > 1:
        metrics |= {f"perplexity_{line['length']}": line["perplexity"] for line in lines}
    return Evaluation(metrics, lines)


def prepare(arguments: MLMArguments, accelerator: Accelerator) -> Task:
    """Read documents, load the model, and cut or pack them."""
    tokenizer = load_tokenizer(arguments, lambda: (text for _, text in arguments.documents("train")))
    if tokenizer.mask_token is None:
        raise RunError(f"{type(tokenizer).__name__} has no token that hides another: take the tokenizer of an encoder")
    model = load_model(arguments, "MaskedLM", tokenizer)
    if arguments.packing and not model.config.model_type.startswith("relpos_"):
        raise RunError(_UNPACKED)
    for length in arguments.lengths:
        check_length(model, length, "max_length" if length == arguments.max_length else "eval_lengths")
    tokenizer.model_max_length = max(arguments.lengths)
    around = put_around(tokenizer)
    masking = Masking(tokenizer, arguments.mask_share)

    def documents(part: str) -> Iterator[Row]:
        for _, text in arguments.documents(part):
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if ids:
                yield {"input_ids": ids}

    def train_rows() -> Iterator[Row]:
        cut = (
            {"input_ids": ids}
            for document in documents("train")
            for ids in windows(document["input_ids"], around, arguments.max_length)
        )
        if not arguments.packing:
            return cut
        return ({name: row[name] for name in ("input_ids", "position_ids")} for row in pack(cut, arguments.max_length))

    eval_rows = evaluation_rows(documents("validation"), masking, around, arguments.lengths)
    own = eval_rows[arguments.max_length]
    if not own:
        raise DataError(f"{arguments.source('validation')}: there is no text to evaluate on")
    rows: list[Row] | Stream
    if arguments.streaming:
        rows = Stream(train_rows, arguments.rows_identity("train"), arguments.shuffle_buffer)
    else:
        rows = list(train_rows())
        if not rows:
            raise DataError(f"{arguments.source('train')}: there is no text to train on")
        tokens = sum(len(row["input_ids"]) for row in rows)
        what = "packed rows" if arguments.packing else "windows"
        accelerator.print(f"{tokens} tokens in {len(rows)} {what} to train on, {len(own)} windows to evaluate")
    return Task(
        name="fill-mask",
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(pad_packed, tokenizer=tokenizer)
        if arguments.packing
        else partial(pad, tokenizer=tokenizer, max_length=arguments.max_length),
        evaluate=partial(evaluate, rows=eval_rows, tokenizer=tokenizer, arguments=arguments),
        headline="perplexity",
        greater_is_better=False,
        dataset=arguments.dataset_name,
        eval_rows=[row for chosen in eval_rows.values() for row in chosen],
        weigh=target_weight,
        vary=masking,
    )


if __name__ == "__main__":
    main(MLMArguments, prepare, __doc__)
