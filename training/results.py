"""What a run leaves behind: model, tokenizer, predictions, model card, metrics.json, a table on the screen, a repository on the Hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from arguments import Arguments, as_scalars, option
from checkpoints import RunError, complete, one_line
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError

import hf_relpos

# settings of a run that its card leaves out: where things were, and how it was looked at
_UNTOLD = frozenset(
    [
        "output_dir",
        "overwrite_output_dir",
        "resume",
        "save_steps",
        "keep_checkpoints",
        "tracker",
        "eval_batch_size",
        "train_file",
        "validation_file",
        "rel_pos",
        "absolute",
        "push_to_hub",
        "hub_model_id",
        "streaming",
        "shuffle_buffer",
        "limit_eval",
    ]
)


@dataclass
class ResultArguments(Arguments):
    """Whether and where the model is published."""

    free_to_change: ClassVar[frozenset[str]] = frozenset({"push_to_hub", "hub_model_id"})

    push_to_hub: bool = option(False, "publish the model at the end", "hub")
    hub_model_id: str | None = option(None, "where to publish it", "hub")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs hub_model_id")


def _is_ours(model: Any) -> bool:
    """Whether ``model`` is of hf_relpos; one of two sides has its encodings in the sides' configs."""
    return model.config.model_type.startswith("relpos_")


def write_results(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    task: str,
    dataset: str,
    metrics: dict[str, float],
    predictions: Any,
    arguments: Any,
) -> None:
    """Write everything into ``folder``, the metrics last, which say that the rest is there. Raises :class:`RunError` when there is no room."""
    settings = {name: value for name, value in as_scalars(arguments).items() if name not in _UNTOLD}
    try:
        if predictions is not None:
            text = json.dumps(predictions, indent=1, ensure_ascii=False) + "\n"
            (folder / "predictions.json").write_text(text, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        if _is_ours(model):
            hf_relpos.write_model_card(model, folder, task=task, dataset=dataset, metrics=metrics, training=settings)
        else:
            _write_stock_card(folder, task, dataset, metrics, settings)
        complete(folder, metrics)
    except (OSError, SafetensorError) as error:
        raise RunError(f"the trained model could not be written: {error}") from error


def _write_stock_card(
    folder: Path, task: str, dataset: str, metrics: dict[str, float], settings: dict[str, Any]
) -> None:
    """The card of a model without relative positions, which the package has nothing to say about."""
    title = folder.resolve().name
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
    text = (
        f"# {title}\n\n{settings.get('model', 'A model')} trained for {task}, with its own positions.\n\n"
        f"## Training\n\n{tables[0]}\n\n## Results on {dataset}\n\n{tables[1]}"
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")


def show(metrics: dict[str, float], folder: Path) -> None:
    """Print the table of what came out."""
    width = max(28, *(len(name) + 2 for name in metrics))
    print(f"\n{'metric':<{width}}value")
    for name, value in metrics.items():
        print(f"{name:<{width}}{value:.2f}" if abs(value) < 1e6 else f"{name:<{width}}{value:.4g}")
    print(f"written to {folder}")


def push(model: Any, folder: Path, repo_id: str) -> None:
    """Publish ``folder``, which holds ``model``; a failure leaves it as it is and is a :class:`RunError` that says how to repeat the push."""
    try:
        if _is_ours(model):
            model.push_to_hub(repo_id, folder=folder)
        else:
            api = HfApi()
            repo_id = api.create_repo(repo_id, exist_ok=True).repo_id
            api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=["checkpoint-*", ".*", "runs/*"])
    except (OSError, ValueError, HTTPError) as error:
        raise RunError(
            f"the model is in {folder} but could not be published, which `hf upload {repo_id} {folder}` may repeat: {one_line(error)}"
        ) from error
