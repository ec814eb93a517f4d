"""Train translation and other tasks from a text to a text: an encoder with a decoder, or a decoder alone.

    python training/translation.py --config training/configs/scan_length.yaml --rel_pos t5 --absolute drop \\
        --train_file TRAIN.jsonl.gz --validation_file TEST.jsonl.gz --output_dir outputs/scan_t5
    python training/translation.py --architecture decoder --model gpt2 --from_scratch --tokenizer bpe --rel_pos alibi --absolute drop \\
        --dataset HUB_ID --source_field translation.en --target_field translation.de

Writes to ``output_dir``: the best model with tokenizer and model card, metrics.json, predictions.json, log.jsonl, checkpoints, runs/. The saved tokenizer
encodes a source as the model was trained to read it, and ``generate`` does what was measured.
"""

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sacrebleu
import torch
from accelerate import Accelerator
from arguments import option
from batches import Stream
from collating import pad, prompted
from loop import LoopArguments, next_token_weight, target_weight
from models import check_length, load_model, load_tokenizer
from prediction import generate
from results import ResultArguments
from scores import score
from script import Evaluation, Task, main
from seq2seq import OWN, Seq2SeqArguments, load_seq2seq
from sources import SPLITS, DataArguments, DataError, text_of
from tokenizing import end_texts_with, marks

ARCHITECTURES = ("encoder_decoder", "decoder")
LONG_ROWS = ("refuse", "drop", "cut")
METRICS = ("bleu", "chrf", "exact_match")
# where it stands, source, target
Pair = tuple[str, str, str]


@dataclass
class TranslationArguments(Seq2SeqArguments, DataArguments, LoopArguments, ResultArguments):
    """What the translation task must be told."""

    architecture: str = option("encoder_decoder", "encoder_decoder; or decoder, which continues the source")
    source_field: str = option("translation.en", "field of a row that holds the source, a.b for b in a")
    target_field: str = option("translation.de", "field that holds the target")
    max_source_length: int = option(128, "tokens of a source")
    max_target_length: int = option(128, "tokens of a target, also of one that is written")
    long_rows: str = option("refuse", "what of longer rows: refuse, cut, or drop (only cut where evaluated)")
    num_beams: int = option(1, "beams of the search; 1 takes the likeliest token", "evaluation")
    length_penalty: float = option(1.0, "with beams: above 0 for longer texts, below for shorter", "evaluation")
    best_metric: str = option("bleu", f"what chooses the best model: {', '.join(METRICS)}", "evaluation")
    bleu_tokenize: str = option("13a", "sacrebleu's tokenizer: 13a, intl, zh, char, none, ...", "evaluation")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("architecture", self.architecture in ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}")
        self.need("long_rows", self.long_rows in LONG_ROWS, f"one of {', '.join(LONG_ROWS)}")
        self.need("best_metric", self.best_metric in METRICS, f"one of {', '.join(METRICS)}")
        known = sorted(sacrebleu.BLEU.TOKENIZERS)
        self.need("bleu_tokenize", self.bleu_tokenize in known, f"one of {', '.join(known)}")
        self.need_at_least(2, "max_source_length", "max_target_length")
        self.need_at_least(1, "num_beams")
        for name in (f"decoder_{value}" for value in OWN):
            if self.architecture == "decoder" and getattr(self, name) is not None:
                raise ValueError(f"{name} is for architecture=encoder_decoder: a decoder alone has no other side")


def pairs_of(arguments: TranslationArguments, part: str) -> Iterator[Pair]:
    """The pairs of ``part``, each with its place; :class:`DataError` for one that is none."""
    for where, row in arguments.rows(part):
        yield where, text_of(row, arguments.source_field, where), text_of(row, arguments.target_field, where)


def features_of(
    pairs: Iterable[Pair],
    tokenizer: Any,
    arguments: TranslationArguments,
    *,
    training: bool,
    counts: Counter[str] | None = None,
) -> Iterator[dict[str, list[int]]]:
    """``input_ids`` of each pair's source and, for ``training``, ``labels``; both in one row for a decoder alone.

    ``counts`` is told what became of pairs that are too long. Raises :class:`DataError` that names them where they are refused.
    """
    counts = Counter() if counts is None else counts
    end = tokenizer.convert_tokens_to_ids(marks(tokenizer)[1])
    limits = {"source": arguments.max_source_length, "target": arguments.max_target_length}
    pairs = iter(pairs)
    # many at once, which tokenizers are fast at
    while chunk := list(itertools.islice(pairs, 1000)):
        places, sources, targets = zip(*chunk, strict=True)
        read = tokenizer(list(sources))["input_ids"]
        written = tokenizer(list(targets), add_special_tokens=False)["input_ids"]
        for where, source, bare in zip(places, read, written, strict=True):
            target = [*bare, end]
            lengths = {"source": len(source), "target": len(target)}
            long = [side for side in limits if lengths[side] > limits[side]]
            if long and arguments.long_rows == "refuse":
                raise DataError(
                    f"{where}: the {long[0]} has {lengths[long[0]]} tokens, more than max_{long[0]}_length={limits[long[0]]}: "
                    "raise it, or choose long_rows drop or cut"
                )
            counts.update(long)
            if long and training and arguments.long_rows == "drop":
                continue
            if "source" in long:
                # its last token is the mark behind it
                source = [*source[: limits["source"] - 1], source[-1]]
            target = target[: limits["target"]]
            if not training:
                yield {"input_ids": source}
            elif arguments.architecture == "decoder":
                yield prompted(source, target)
            else:
                yield {"input_ids": source, "labels": target}


def collate(
    batch: Sequence[dict[str, list[int]]], tokenizer: Any, arguments: TranslationArguments
) -> dict[str, torch.Tensor]:
    """A training batch; the decoder of two sides reads the token that starts a text, then the target."""
    if arguments.architecture == "decoder":
        return pad(batch, tokenizer, max_length=arguments.max_source_length + arguments.max_target_length)
    start = tokenizer.convert_tokens_to_ids(marks(tokenizer)[0])
    sides = [{"input_ids": [start, *row["labels"][:-1]], "labels": row["labels"]} for row in batch]
    targets = pad(sides, tokenizer, max_length=arguments.max_target_length)
    return {
        **pad(batch, tokenizer, ("input_ids",), max_length=arguments.max_source_length),
        "decoder_input_ids": targets["input_ids"],
        "decoder_attention_mask": targets["attention_mask"],
        "labels": targets["labels"],
    }


def evaluate(
    model: Any,
    accelerator: Accelerator,
    *,
    pairs: Sequence[Pair],
    rows: Sequence[dict[str, list[int]]],
    tokenizer: Any,
    arguments: TranslationArguments,
) -> Evaluation:
    """BLEU, chrF and exact match, in per cent, of what ``model`` writes for ``rows``, the features of ``pairs``. Blanks count once."""
    written = generate(
        model, accelerator, rows, tokenizer, arguments.eval_batch_size, max_length=arguments.max_source_length
    )
    found, wanted = ([" ".join(text.split()) for text in texts] for texts in (written, (pair[2] for pair in pairs)))
    metrics = score("translation", found, [[text] for text in wanted], tokenize=arguments.bleu_tokenize)
    told = [
        {"source": source, "target": target, "prediction": text}
        for (_, source, target), text in zip(pairs, found, strict=True)
    ]
    return Evaluation(metrics, told)


def unwritable(pairs: Iterable[Pair], tokenizer: Any) -> list[str]:
    """The targets that ``tokenizer`` cannot write, for want of their words or capitals: no model that uses it can match them exactly."""
    targets = [pair[2] for pair in pairs]
    ids = tokenizer(targets, add_special_tokens=False)["input_ids"]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [target for target, text in zip(targets, texts, strict=True) if target.split() != text.split()]


def _load(arguments: TranslationArguments, tokenizer: Any) -> Any:
    """The model, which can read and write as much as is asked of it, and knows how it is to write."""
    source, target = arguments.max_source_length, arguments.max_target_length
    if arguments.architecture == "decoder":
        model = load_model(arguments, "CausalLM", tokenizer)
        check_length(model, source + target, "max_source_length + max_target_length")
        end = tokenizer.convert_tokens_to_ids(marks(tokenizer)[1])
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = tokenizer.pad_token_id, end
    else:
        model = load_seq2seq(arguments, tokenizer)
        check_length(model.encoder, source, "max_source_length")
        check_length(model.decoder, target, "max_target_length")
    model.generation_config.max_new_tokens = target
    model.generation_config.num_beams = arguments.num_beams
    if arguments.num_beams > 1:
        model.generation_config.length_penalty = arguments.length_penalty
    return model


def prepare(arguments: TranslationArguments, accelerator: Accelerator) -> Task:
    """Read pairs of texts, and load or make tokenizer and model."""
    # on each call with labels, about training with versions long gone
    warnings.filterwarnings("ignore", "Version v4.12.0 introduces a better way to train", FutureWarning)
    pairs = {
        part: [] if part == "train" and arguments.streaming else list(pairs_of(arguments, part)) for part in SPLITS
    }
    for part in SPLITS:
        if not pairs[part] and not (part == "train" and arguments.streaming):
            raise DataError(f"{arguments.source(part)}: there are no rows")

    def train_pairs() -> Iterable[Pair]:
        return pairs_of(arguments, "train") if arguments.streaming else pairs["train"]

    tokenizer = load_tokenizer(arguments, lambda: (text for pair in train_pairs() for text in pair[1:]))
    start, end = marks(tokenizer)
    end_texts_with(tokenizer, end if arguments.architecture == "encoder_decoder" else start)
    counts = {part: Counter[str]() for part in SPLITS}

    def features(part: str, rows: Iterable[Pair]) -> Iterator[dict[str, list[int]]]:
        return features_of(rows, tokenizer, arguments, training=part == "train", counts=counts[part])

    eval_rows = list(features("validation", pairs["validation"]))
    model = _load(arguments, tokenizer)
    rows: Any = Stream(
        lambda: features("train", train_pairs()), arguments.rows_identity("train"), arguments.shuffle_buffer
    )
    if not arguments.streaming:
        rows = list(features("train", pairs["train"]))
        accelerator.print(f"{len(rows)} pairs to train on, {len(eval_rows)} to evaluate, {len(tokenizer)} tokens")
    for part in SPLITS:
        for side, count in counts[part].items():
            accelerator.print(f"{part}: in {count} rows the {side} is longer than max_{side}_length")
    if lost := unwritable(pairs["validation"], tokenizer):
        accelerator.print(
            f"{len(lost)} of {len(eval_rows)} targets cannot be written with this tokenizer, such as {lost[0]!r}"
        )
    return Task(
        name="translation",
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=partial(collate, tokenizer=tokenizer, arguments=arguments),
        evaluate=partial(evaluate, pairs=pairs["validation"], rows=eval_rows, tokenizer=tokenizer, arguments=arguments),
        headline=arguments.best_metric,
        dataset=arguments.dataset_name,
        eval_rows=pairs["validation"],
        weigh=next_token_weight if arguments.architecture == "decoder" else target_weight,
    )


if __name__ == "__main__":
    main(TranslationArguments, prepare, __doc__)
