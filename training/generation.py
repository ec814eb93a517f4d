"""Train a decoder to write: language modelling, summaries, answers in dialogues and about meetings.

    python training/generation.py --from_scratch true --model gpt2 --tokenizer bpe --rel_pos alibi --absolute drop \\
        --train_file TRAIN.txt.gz --validation_file VALIDATION.txt.gz --max_length 128 --eval_lengths 256,1024
    python training/generation.py --format pairs --model gpt2 --rel_pos t5 --absolute drop --train_file TRAIN.jsonl --validation_file DEV.jsonl
    python training/generation.py --format dialogues --model gpt2 --train_file TRAIN.jsonl --validation_file DEV.jsonl

Running text is cut into rows of max_length; of prompts and targets, only the target counts in the loss. Writes to ``output_dir``: the best model
with tokenizer and model card, metrics.json, predictions.json (perplexity by length and place, texts written), log.jsonl, checkpoints, runs/.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from arguments import option, parse_numbers
from batches import Row, Stream
from checkpoints import RunError
from collating import blocks, pack, pad, pad_packed
from generation_data import FORMATS, Example, Features, reader, text_tokens
from loop import LoopArguments, next_token_weight
from models import ModelArguments, check_length, load_model, load_tokenizer
from perplexity import likelihood, windows
from prediction import generate
from results import ResultArguments
from scores import score
from script import Evaluation, Task, main
from sources import DataArguments, text_of
from tokenizing import marks

import hf_relpos


@dataclass
class GenerationArguments(ModelArguments, DataArguments, LoopArguments, ResultArguments):
    """What the text generation task must be told."""

    model: str = option("gpt2", "folder or Hub id; with from_scratch also a model type", "model")
    format: str = option("text", f"what rows hold: {', '.join(FORMATS)}")
    max_length: int = option(512, "tokens of a row, prompt and target together")
    max_target_length: int = option(64, "tokens of them that are kept for the target, and are generated")
    text_field: str = option("text", "field of the text (format text)")
    text_end: str | None = option(
        None, "what follows each text: newline, or token; newline after lines of .txt unless given (format text)"
    )
    prompt_field: str = option("source", "field to go by, text or list of sentences (format pairs)")
    target_field: str = option("target", "field to write, text or list of references, the first trained on (pairs)")
    ending: str = option("\nTL;DR:", "what stands between the two (pairs)")
    turns_field: str = option("turns", "field of turns, each with speaker and utterance (dialogues)")
    speaker: str = option("SYSTEM", "whose turns are to be written (dialogues)")
    packing: bool = option(False, "several texts or examples in a row, which do not see each other")
    eval_lengths: str | None = option(
        None, "perplexity also in rows of these lengths, comma-separated, such as 256,1024 (text)", "evaluation"
    )
    generate_rows: int | None = option(
        None, "write texts for so many evaluation rows; all unless given, none of running text", "evaluation"
    )
    num_beams: int = option(1, "beams of the search for a text", "evaluation")
    do_sample: bool = option(
        False, "draw each token, the same in every run, instead of taking the likeliest", "evaluation"
    )
    temperature: float = option(1.0, "of drawing", "evaluation")
    top_p: float = option(1.0, "draw from the likeliest tokens that together have this probability", "evaluation")
    no_repeat_ngram_size: int = option(
        0, "never write so many tokens twice in a text; 0 for no such rule", "evaluation"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("format", self.format in FORMATS, f"one of {', '.join(FORMATS)}")
        self.need("text_end", self.text_end in (None, "newline", "token"), "newline or token")
        self.need_at_least(2, "max_length")
        self.need_at_least(1, "max_target_length", "num_beams")
        self.need_at_least(0, "generate_rows", "no_repeat_ngram_size")
        self.need("temperature", self.temperature > 0, "a positive number")
        self.need("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1")
        if self.format != "text":
            self.need("eval_lengths", self.eval_lengths is None, "left out unless format is text")
            self.need("max_target_length", self.max_target_length < self.max_length, "less than max_length")
        shortest, *others = self.lengths
        self.need("eval_lengths", shortest >= 2, "at least 2")
        uneven = [length for length in others if length % shortest]
        if uneven:
            raise ValueError(
                f"eval_lengths={self.eval_lengths!r} is not valid: {uneven[0]} is no multiple of {shortest}, "
                "the shortest of them and max_length, so the same tokens cannot be scored at all lengths"
            )

    @property
    def lengths(self) -> list[int]:
        """The lengths at which perplexity is measured, max_length among them; ValueError when the argument is no list of numbers."""
        return sorted({self.max_length, *parse_numbers("eval_lengths", self.eval_lengths)})

    @property
    def generated(self) -> int | None:
        """How many rows texts are written for, None for all."""
        return 0 if self.generate_rows is None and self.format == "text" else self.generate_rows

    def texts(self, part: str) -> Iterator[str]:
        """The texts of ``part``, as they stand in the data."""
        for where, row in self.rows(part):
            yield text_of(row, self.text_field, where, empty=self.ends_with_newline)

    @property
    def ends_with_newline(self) -> bool:
        """Whether a text is a line of a longer one."""
        lines = [suffix for suffix in Path(self.source("train")).suffixes if suffix != ".gz"][-1:] == [".txt"]
        return self.text_end == "newline" or (self.text_end is None and lines)


def end_token(tokenizer: Any) -> int:
    """The number of the token after a text; ValueError when the tokenizer has none."""
    return tokenizer.convert_tokens_to_ids(marks(tokenizer)[1])


def collate_of(arguments: GenerationArguments, tokenizer: Any) -> Callable[[Sequence[Row]], dict[str, torch.Tensor]]:
    """What makes a batch of training rows."""
    if arguments.packing:
        return partial(pad_packed, tokenizer=tokenizer)
    return partial(pad, tokenizer=tokenizer, max_length=arguments.max_length)


def write_texts(
    model: Any, accelerator: Accelerator, prompts: Sequence[Row], tokenizer: Any, arguments: GenerationArguments
) -> list[str]:
    """What ``model`` writes after each prompt: batches of similar length, padded on the left, the same in every run."""
    drawing = {"temperature": arguments.temperature, "top_p": arguments.top_p} if arguments.do_sample else {}
    torch.manual_seed(arguments.seed)
    found = generate(
        model,
        accelerator,
        prompts,
        tokenizer,
        arguments.eval_batch_size,
        max_length=arguments.max_length - arguments.max_target_length,
        max_new_tokens=arguments.max_target_length,
        num_beams=arguments.num_beams,
        do_sample=arguments.do_sample,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        eos_token_id=end_token(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **drawing,
    )
    return [text.strip() for text in found]


def _task(
    arguments: GenerationArguments,
    model: Any,
    tokenizer: Any,
    train: Sequence[Row] | Stream,
    evaluate: Callable[[Any, Accelerator], Evaluation],
    eval_rows: Sequence[Any],
) -> Task:
    """What both kinds of data have in common: the loss over next tokens, and the perplexity that chooses the model."""
    return Task(
        name="text-generation",
        model=model,
        tokenizer=tokenizer,
        rows=train,
        collate=collate_of(arguments, tokenizer),
        evaluate=evaluate,
        headline="perplexity",
        greater_is_better=False,
        dataset=arguments.dataset_name,
        eval_rows=eval_rows,
        weigh=next_token_weight,
    )


def prepare_text(arguments: GenerationArguments, accelerator: Accelerator, model: Any, tokenizer: Any) -> Task:
    """Language modelling: rows of ``max_length`` tokens of one running text."""
    end = None if arguments.ends_with_newline else end_token(tokenizer)
    size = arguments.max_length

    def rows() -> Iterator[Row]:
        documents = text_tokens(arguments.texts("train"), tokenizer, end)
        if not arguments.packing:
            return blocks(documents, size)
        pieces = (ids[start : start + size] for ids in documents for start in range(0, len(ids), size))
        return pack(({"input_ids": piece, "labels": piece} for piece in pieces), size)

    train: list[Row] | Stream
    if arguments.streaming:
        train = Stream(rows, arguments.rows_identity("train"), arguments.shuffle_buffer)
    else:
        train = list(rows())
        if not train:
            raise RunError(f"the texts to train on have fewer than max_length={size} tokens together")
    tokens = list(itertools.chain.from_iterable(text_tokens(arguments.texts("validation"), tokenizer, end)))
    shortest, longest = arguments.lengths[0], arguments.lengths[-1]
    if len(tokens) < longest:
        raise RunError(f"the texts to evaluate on have {len(tokens)} tokens, fewer than the {longest} of a row")
    # the same tokens at all lengths
    tokens = tokens[: len(tokens) // longest * longest]
    readable = hf_relpos.window_length(model)
    lengths = [length for length in arguments.lengths if readable is None or length <= readable]
    if not arguments.streaming:
        accelerator.print(f"{len(train)} rows of at most {size} tokens to train on, {len(tokens)} tokens to evaluate")  # type: ignore[arg-type]
    if lengths != arguments.lengths:
        beyond = ", ".join(map(str, arguments.lengths[len(lengths) :]))
        accelerator.print(f"the model reads at most {readable} tokens: no perplexity at {beyond}")
    known = size - arguments.max_target_length
    if arguments.generated and known < 1:
        raise RunError(f"max_target_length={arguments.max_target_length} leaves no prompt in rows of {size} tokens")
    prompts = [
        {"input_ids": row["input_ids"][:known]} for row in windows(tokens, size, shortest)[: arguments.generated]
    ]

    def evaluate(model: Any, accelerator: Accelerator) -> Evaluation:
        metrics: dict[str, float] = {}
        details: dict[int, Any] = {}
        for length in lengths:
            # as many tokens at once, whatever the length
            batch_size = max(arguments.eval_batch_size * size // length, 1)
            found = likelihood(model, accelerator, windows(tokens, length, shortest), tokenizer, batch_size)
            details[length] = {"perplexity": found.perplexity, "tokens": found.total, "positions": found.positions()}
            if length == size:
                metrics |= {"perplexity": found.perplexity, "loss": found.loss}
            else:
                metrics[f"perplexity_{length}"] = found.perplexity
        written = write_texts(model, accelerator, prompts, tokenizer, arguments) if prompts else []
        if written:
            metrics |= score("distinct", written, written)
        return Evaluation(metrics, {"lengths": details, "texts": written})

    return _task(arguments, model, tokenizer, train, evaluate, [tokens])


def prepare_examples(arguments: GenerationArguments, accelerator: Accelerator, model: Any, tokenizer: Any) -> Task:
    """Prompts and targets: the loss is of the targets alone."""
    examples = reader(arguments)

    def made() -> Features:
        return Features(tokenizer, arguments.max_length, arguments.max_target_length, end_token(tokenizer))

    def rows(features: Features) -> Iterator[Row]:
        found = map(features.row, examples(arguments.rows("train")))
        return pack(found, arguments.max_length) if arguments.packing else found

    train: list[Row] | Stream
    if arguments.streaming:
        train = Stream(lambda: rows(made()), arguments.rows_identity("train"), arguments.shuffle_buffer)
    else:
        features = made()
        train = list(rows(features))
        accelerator.print(f"to train on: {features.report()}")
    asked: list[Example] = list(examples(arguments.rows("validation")))
    if not asked:
        raise RunError("there are no rows to evaluate on")
    features = made()
    eval_rows = [features.row(example) for example in asked]
    accelerator.print(f"to evaluate on: {features.report()}")
    asked = asked[: arguments.generated]
    prompts = [
        {"input_ids": [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]}
        for row in eval_rows[: len(asked)]
    ]

    def evaluate(model: Any, accelerator: Accelerator) -> Evaluation:
        found = likelihood(model, accelerator, eval_rows, tokenizer, arguments.eval_batch_size)
        metrics = {"perplexity": found.perplexity, "loss": found.loss}
        if not prompts:
            return Evaluation(metrics)
        written = write_texts(model, accelerator, prompts, tokenizer, arguments)
        metrics |= score("summarisation", written, [list(example.references) for example in asked])
        metrics |= score("distinct", written, written)
        texts = [
            {"after": example.ending.strip(), "text": text, "references": list(example.references)}
            for example, text in zip(asked, written, strict=True)
        ]
        return Evaluation(metrics, texts)

    return _task(arguments, model, tokenizer, train, evaluate, eval_rows)


def prepare(arguments: GenerationArguments, accelerator: Accelerator) -> Task:
    """Read the data, load the model, and cut texts into rows."""

    def texts() -> Iterator[str]:
        if arguments.format == "text":
            yield from arguments.texts("train")
            return
        last = ""
        for example in reader(arguments)(arguments.rows("train")):
            # queries of a meeting share its transcript
            if example.prompt is not last:
                yield example.prompt
            last = example.prompt
            yield from (example.ending, *example.references)

    tokenizer = load_tokenizer(arguments, texts)
    model = load_model(arguments, "CausalLM", tokenizer)
    check_length(model, arguments.max_length)
    make = prepare_text if arguments.format == "text" else prepare_examples
    return make(arguments, accelerator, model, tokenizer)


if __name__ == "__main__":
    main(GenerationArguments, prepare, __doc__)
