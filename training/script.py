"""What every training script does around its task: arguments, folder, loop, trackers, results, and one line for whatever goes wrong."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from arguments import as_scalars, parse_arguments
from batches import Row, Stream, Vary
from checkpoints import RunError, check_folder, prepare_folder
from distribution import whole_model
from loop import Stopped, TrainingLoop, make_accelerator, row_weight
from models import finished_model
from results import push, show, write_results


@dataclass(frozen=True)
class Evaluation:
    """``metrics`` by name, and ``predictions``, anything that JSON can hold."""

    metrics: dict[str, float]
    predictions: Any = None


@dataclass
class Task:
    """All that the loop and the results must be given; a script's ``prepare(arguments, accelerator)`` makes it.

    ``name`` is the Hub's name of the task. ``rows`` are training features, dicts with ``input_ids``, or a stream of them; ``collate`` makes a
    batch of them. ``evaluate(model, accelerator)`` is called on every process, with gradients off, and gives the same everywhere; ``headline`` is the metric that
    chooses the best model. ``eval_rows`` are what it evaluates on, ``dataset`` what the card calls them. ``weigh`` tells over how many things the loss of a
    batch is the mean: rows, or :func:`loop.target_weight` and :func:`loop.next_token_weight` for losses over labels. ``vary(row, random)`` makes of a training row
    what it is in an epoch, such as with other tokens masked.
    """

    name: str
    model: Any
    tokenizer: Any
    rows: Sequence[Row] | Stream
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]
    evaluate: Callable[[Any, Accelerator], Evaluation]
    headline: str
    dataset: str
    eval_rows: Sequence[Any] = field(default=())
    greater_is_better: bool = True
    weigh: Callable[[dict[str, torch.Tensor]], int] = row_weight
    vary: Vary | None = None


def run(arguments: Any, prepare: Callable[[Any, Accelerator], Task]) -> dict[str, float]:
    """Train and evaluate as ``arguments`` say; returns the metrics of the best model.

    Raises :class:`RunError`, :class:`sources.DataError` or ValueError with one line that says what is wrong, before any training.
    """
    if hasattr(arguments, "check_sources"):
        arguments.check_sources()
    accelerator = make_accelerator(arguments)
    check_folder(arguments)
    task = prepare(arguments, accelerator)
    folder = prepare_folder(arguments)
    last: dict[str, Any] = {}

    def evaluate(model: Any, accelerator: Accelerator) -> dict[str, float]:
        found = task.evaluate(model, accelerator)
        last.update(step=loop.step, predictions=found.predictions)
        return found.metrics

    loop = TrainingLoop(
        task.model,
        task.rows,
        task.collate,
        evaluate,
        task.headline,
        arguments,
        accelerator,
        eval_rows=task.eval_rows,
        greater_is_better=task.greater_is_better,
        weigh=task.weigh,
        vary=task.vary,
    )
    if arguments.tracker != "none":
        accelerator.init_trackers(task.name, config=as_scalars(arguments))
    try:
        metrics = loop.run()
        if loop.best["step"] != last.get("step"):
            with torch.no_grad():
                evaluate(loop.model.eval(), accelerator)
        _leave(loop, task, folder, metrics, last["predictions"], arguments)
    finally:
        # closes trackers, and the processes' ties to each other
        accelerator.end_training()
    return metrics


def _leave(
    loop: TrainingLoop, task: Task, folder: Path, metrics: dict[str, float], predictions: Any, arguments: Any
) -> None:
    accelerator = loop.accelerator
    whole = whole_model(loop.model, accelerator)
    if accelerator.is_main_process:
        trained = finished_model(whole)
        write_results(
            trained,
            task.tokenizer,
            folder,
            task=task.name,
            dataset=task.dataset,
            metrics=metrics,
            predictions=predictions,
            arguments=arguments,
        )
        show(metrics, folder)
        if arguments.push_to_hub:
            push(trained, folder, str(arguments.hub_model_id))
    accelerator.wait_for_everyone()


def main(
    cls: type,
    prepare: Callable[[Any, Accelerator], Task],
    description: str | None,
    run: Callable[[Any, Callable[[Any, Accelerator], Task]], Any] = run,
) -> None:
    """Entry point of a script, which calls ``run(arguments, prepare)``: status 0 done, or stopped by SIGTERM with a checkpoint written; 1 the run could not be made (one line says
    why); 2 wrong usage."""
    arguments: Any = parse_arguments(cls, description=(description or "").splitlines()[0])
    name = Path(sys.argv[0]).name
    try:
        run(arguments, prepare)
    except Stopped as stopped:
        print(f"{name}: {stopped}", file=sys.stderr)
    except (RunError, ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
