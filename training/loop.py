"""The training loop that every task shares. It knows steps, schedules, evaluation, logging, stopping and resuming; it knows no task.

A run can be killed at any moment, and a resumed run goes on with the same batches, random numbers and optimizer state, so that its losses
are those of an unbroken run. What it leaves on the disk is the matter of :mod:`checkpoints`, which rows make a step of :mod:`batches`.
"""

import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, TorchDynamoPlugin, set_seed
from arguments import Arguments, option
from batches import Row, Stream, Vary, batches_of, row_lengths, steps_of
from checkpoints import (
    RunError,
    fingerprint,
    load_checkpoint,
    newest_checkpoint,
    replace_text,
    save_best,
    save_checkpoint,
    take_best,
)
from distribution import shard_where_asked
from tqdm.auto import tqdm
from transformers import get_scheduler

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


class Stopped(Exception):
    """The run was asked to stop by SIGTERM, and its checkpoint is written."""


@dataclass
class LoopArguments(Arguments):
    """What the loop must be told, whatever the task."""

    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {"output_dir", "overwrite_output_dir", "resume", "eval_batch_size", "save_steps", "keep_checkpoints", "tracker"}
    )

    output_dir: str = option("outputs/run", "folder for the model, checkpoints and logs", "saving")
    overwrite_output_dir: bool = option(False, "empty output_dir first", "saving")
    resume: bool = option(False, "go on from the newest complete checkpoint in output_dir", "saving")
    save_steps: int | None = option(None, "write a checkpoint every so many steps", "saving")
    keep_checkpoints: int = option(2, "how many checkpoints to keep", "saving")
    tracker: str = option("tensorboard", "accelerate's name of a tracker, or none", "saving")
    train_batch_size: int = option(16, "rows a device and step", "optimisation")
    gradient_accumulation_steps: int = option(1, "batches that make one step", "optimisation")
    epochs: float = option(1.0, "passes over the training data", "optimisation")
    max_steps: int | None = option(None, "stop after so many steps, whatever epochs says", "optimisation")
    learning_rate: float = option(5e-5, "peak learning rate", "optimisation")
    encoding_learning_rate: float | None = option(
        None, "peak learning rate of relative encodings; 10 times learning_rate unless given", "optimisation"
    )
    weight_decay: float = option(0.01, "of matrices; biases, norms and encodings have none", "optimisation")
    warmup_ratio: float = option(0.1, "share of the steps in which the rate grows", "optimisation")
    schedule: str = option(
        "linear", "what follows the warmup: linear, cosine, constant_with_warmup; or constant", "optimisation"
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 for never", "optimisation")
    mixed_precision: str = option("no", "no, bf16 or fp16", "optimisation")
    gradient_checkpointing: bool = option(False, "recompute activations to save memory", "optimisation")
    compile_backend: str = option(
        "no", "torch.compile with this backend, such as inductor; no for never", "optimisation"
    )
    group_by_length: bool = option(True, "batches of rows of similar length", "optimisation")
    seed: int = option(0, "seed of everything random", "optimisation")
    eval_batch_size: int = option(32, "rows a device when evaluating", "evaluation")
    eval_steps: int | None = option(None, "evaluate every so many steps, besides the end", "evaluation")
    patience: int | None = option(
        None, "stop after so many evaluations in a row that are no better than the best", "evaluation"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_at_least(1, "train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "keep_checkpoints")
        self.need_at_least(1, "max_steps", "eval_steps", "save_steps", "patience")
        for name in ("epochs", "learning_rate", "encoding_learning_rate"):
            value = getattr(self, name)
            self.need(name, value is None or 0 < value < math.inf, "a positive number")
        for name in ("weight_decay", "max_grad_norm"):
            self.need(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        self.need("warmup_ratio", 0 <= self.warmup_ratio <= 1, "between 0 and 1")
        self.need("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self.need("mixed_precision", self.mixed_precision in ("no", "bf16", "fp16"), "one of no, bf16, fp16")
        self.need("seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")
        valid = ("no", *torch.compiler.list_backends(exclude_tags=None))
        self.need("compile_backend", self.compile_backend in valid, f"one of {', '.join(valid)}")
        if self.patience is not None and self.eval_steps is None:
            raise ValueError("patience counts evaluations during training, which need eval_steps")
        if self.resume and self.overwrite_output_dir:
            raise ValueError("resume and overwrite_output_dir exclude each other: go on in output_dir, or empty it")


def parameter_groups(model: torch.nn.Module, arguments: LoopArguments) -> list[dict[str, Any]]:
    """Optimizer groups: matrices with weight decay, vectors without, and encodings with their own learning rate and none."""
    rate = arguments.encoding_learning_rate
    groups: dict[str, dict[str, Any]] = {
        "decay": {"params": [], "weight_decay": arguments.weight_decay, "lr": arguments.learning_rate},
        "plain": {"params": [], "weight_decay": 0.0, "lr": arguments.learning_rate},
        "encoding": {"params": [], "weight_decay": 0.0, "lr": 10 * arguments.learning_rate if rate is None else rate},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "encoding" if "relpos" in name.split(".") else "decay" if parameter.ndim > 1 else "plain"
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def row_weight(inputs: dict[str, torch.Tensor]) -> int:
    """The weight of a batch whose loss is the mean over its rows."""
    return len(inputs["input_ids"])


def target_weight(inputs: dict[str, torch.Tensor]) -> int:
    """The weight of a batch whose loss is the mean over the labels that are not -100."""
    return int((inputs["labels"] != -100).sum())


def next_token_weight(inputs: dict[str, torch.Tensor]) -> int:
    """The same where each label is predicted from the tokens before it, so that a row's first label is no target."""
    return int((inputs["labels"][:, 1:] != -100).sum())


class TrainingLoop:
    """Trains ``model`` on ``rows``; see :meth:`run`.

    ``collate`` makes a batch of tensors that the model takes and answers with a ``loss``, a mean; ``weigh`` tells over how many things, so
    that the loss of a step is the mean over all of its batches, whatever they hold. ``evaluate(model, accelerator)`` gives metrics by
    name, of which ``best_metric`` chooses the model that is kept. ``eval_rows`` are what it evaluates on, so that a run is not resumed with others. ``vary``
    makes of a row what it is in an epoch; see :func:`batches.batches_of`.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Row] | Stream,
        collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]],
        evaluate: Callable[[Any, Accelerator], dict[str, float]],
        best_metric: str,
        arguments: LoopArguments,
        accelerator: Accelerator,
        eval_rows: Sequence[Any] = (),
        *,
        greater_is_better: bool = True,
        weigh: Callable[[dict[str, torch.Tensor]], int] = row_weight,
        vary: Vary | None = None,
    ):
        self.arguments, self.accelerator = arguments, accelerator
        self.folder = Path(arguments.output_dir)
        self.evaluate, self.best_metric, self.greater_is_better = evaluate, best_metric, greater_is_better
        self.rows, self.eval_rows, self.collate, self.weigh, self.vary = rows, eval_rows, collate, weigh, vary
        self.batches_per_step = arguments.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = self._steps_per_epoch()
        self.max_steps = arguments.max_steps or max(1, math.ceil(arguments.epochs * (self.steps_per_epoch or 0)))
        grouped = arguments.group_by_length and not isinstance(rows, Stream)
        self.lengths = row_lengths(rows) if grouped else None  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(parameter_groups(model, arguments))
        # accelerate advances the schedule once for each process
        schedule = get_scheduler(
            arguments.schedule,
            optimizer,
            num_warmup_steps=int(arguments.warmup_ratio * self.max_steps) * accelerator.num_processes,
            num_training_steps=self.max_steps * accelerator.num_processes,
        )
        # shared by all accelerators of a process; an earlier one may have left it off
        accelerator.sync_gradients = True
        # not the batches: accelerate's loader reads one ahead, with random numbers that a checkpoint between the two would miss
        self.model, self.optimizer, self.schedule = accelerator.prepare(model, optimizer, schedule)
        self.step, self.tokens = 0, 0
        # the epoch and how many of its steps are done
        self.epoch, self.epoch_step = 0, 0
        self.best: dict[str, Any] = {}
        # evaluations since the best one, and the step of the last
        self.since_best, self.evaluated = 0, 0
        self._identity: dict[str, Any] | None = None
        self._saved_step, self._asked_to_stop = 0, False
        # a cache is of no use in training and rules out recomputing activations
        cached = arguments.gradient_checkpointing and getattr(model.config, "use_cache", False)
        self._forward_options = {"use_cache": False} if cached else {}

    def _steps_per_epoch(self) -> int | None:
        if isinstance(self.rows, Stream):
            if self.arguments.max_steps is None:
                raise RunError("how many rows a stream has is not known: say max_steps")
            return None
        if not len(self.rows):
            raise RunError("there are no rows to train on")
        return math.ceil(math.ceil(len(self.rows) / self.arguments.train_batch_size) / self.batches_per_step)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run the run that it is; a checkpoint of another one is not resumed from."""
        if self._identity is None:
            self._identity = {
                **self.arguments.identity(),
                "training data": self.rows.identity if isinstance(self.rows, Stream) else fingerprint(self.rows),
                "evaluation data": fingerprint(self.eval_rows),
                "number of processes": self.accelerator.num_processes,
                "kind of device": self.accelerator.device.type,
                "distribution": str(self.accelerator.distributed_type.value),
            }
        return self._identity

    @property
    def finished(self) -> bool:
        """Whether the last step is taken, or patience has run out."""
        patience = self.arguments.patience
        return self.step >= self.max_steps or (patience is not None and self.since_best >= patience)

    def run(self) -> dict[str, float]:
        """Train to the last step, evaluate, leave the best model's weights in the model, and return its metrics.

        Raises :class:`RunError` when the loss or the gradient is no longer a number, a checkpoint cannot be written, or there is none to
        resume from that this run could have written; :class:`Stopped` after SIGTERM.
        """
        if self.arguments.resume:
            resumed = newest_checkpoint(self.folder)
            if resumed is None:
                raise RunError(f"{self.folder} holds no complete checkpoint to resume from")
            self._restore(resumed)
        self._trim_log()
        if self.arguments.gradient_checkpointing:
            self.accelerator.unwrap_model(self.model).activation_checkpointing_enable()
        bar = tqdm(
            total=self.max_steps, initial=self.step, disable=not self.accelerator.is_local_main_process, unit="step"
        )
        started, first = time.perf_counter(), self.tokens
        with self._stopping_on_sigterm():
            try:
                while not self.finished:
                    self._epoch(bar, lambda: (self.tokens - first) / max(time.perf_counter() - started, 1e-9))
            finally:
                bar.close()
            if self.evaluated != self.step:
                self._evaluate()
        if self.best["step"] != self.step:
            take_best(self.folder, self.model, self.accelerator, self.best["step"])
        return self.best["metrics"]

    @contextmanager
    def _stopping_on_sigterm(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self._asked_to_stop = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _epoch(self, bar: Any, rate: Callable[[], float]) -> None:
        arguments = self.arguments
        batches = batches_of(
            self.rows,
            arguments.train_batch_size,
            seed=arguments.seed,
            epoch=self.epoch,
            lengths=self.lengths,
            grouped=arguments.group_by_length,
            vary=self.vary,
        )
        self.model.train()
        for step in steps_of(batches, self.batches_per_step, self.epoch_step):
            loss, stop = self._take_step(step)
            self.step += 1
            self.epoch_step += 1
            self._log({"loss": loss, "learning_rate": self.schedule.get_last_lr()[0]})
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{rate():.0f}")
            if arguments.eval_steps and self.step % arguments.eval_steps == 0 and self.step < self.max_steps:
                self._evaluate()
            if arguments.save_steps and self.step % arguments.save_steps == 0:
                self._save_checkpoint()
            if stop:
                if self._saved_step != self.step:
                    self._save_checkpoint()
                raise Stopped(f"stopped by SIGTERM at step {self.step}; --resume true goes on from there")
            if self.finished:
                return
        if not self.epoch_step:
            raise RunError("there are no rows to train on")
        self.epoch, self.epoch_step = self.epoch + 1, 0

    def _take_step(self, batches: Sequence[Sequence[Row]]) -> tuple[float, bool]:
        """Deal ``batches`` out to the processes, take one optimizer step on all of them, and return the mean loss, and whether a process was
        asked to stop.

        Each thing that the loss is a mean over counts the same, in whatever batch, also in the last step of an epoch, which may have fewer of them.
        """
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        dealt = [batches[start : start + processes] for start in range(0, len(batches), processes)]
        # a process that gets none joins in without weight, for the others wait for its gradient
        inputs = [self.collate(part[mine] if mine < len(part) else part[0]) for part in dealt]
        weights = [self.weigh(batch) if mine < len(part) else 0 for part, batch in zip(dealt, inputs, strict=True)]
        tokens = sum(int(batch.get("attention_mask", batch["input_ids"] >= 0).sum()) for batch in inputs)
        told = torch.tensor([sum(weights), tokens, self._asked_to_stop], dtype=torch.float64)
        if processes > 1:
            told = self.accelerator.reduce(told.to(self.accelerator.device), "sum").cpu()
        total, everywhere, stop = told.tolist()
        if not total:
            raise RunError(f"no row of step {self.step + 1} has a target")
        losses = []
        for number, (batch, weight) in enumerate(zip(inputs, weights, strict=True), 1):
            moved = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            last = number == len(inputs)
            # DeepSpeed takes its step inside backward, and goes by this
            self.accelerator.sync_gradients = last
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                output = self.model(**moved, **self._forward_options)
                # the processes' gradients are averaged, not added
                loss = output.loss * (weight * processes / total) if weight else _nothing(output)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
        self.tokens += int(everywhere)
        mean = float(self.accelerator.reduce(torch.stack(losses).sum(), "mean"))
        if not math.isfinite(mean):
            raise RunError(
                f"the loss became {mean} at step {self.step + 1}; lower the learning rate or use mixed_precision bf16"
            )
        self._clip_gradient()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return mean, bool(stop)

    def _clip_gradient(self) -> None:
        found = self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm or math.inf)
        # DeepSpeed clips by its own configuration, and may not tell
        norm = 0.0 if found is None else float(found)
        # in fp16 infinite gradients are part of finding the scale; such a step is skipped
        if not math.isfinite(norm) and self.arguments.mixed_precision != "fp16":
            raise RunError(f"the norm of the gradient became {norm} at step {self.step + 1}; lower the learning rate")

    def _evaluate(self) -> None:
        with _random_numbers_kept():
            self.model.eval()
            with torch.no_grad():
                metrics = self.evaluate(self.model, self.accelerator)
            self.model.train()
        self.evaluated = self.step
        self._log({f"eval_{name}": value for name, value in metrics.items()})
        score = metrics[self.best_metric]
        if not self.best or self._better(score, self.best["metrics"][self.best_metric]):
            self.best, self.since_best = {"step": self.step, "metrics": metrics}, 0
            self._save_best()
        else:
            self.since_best += 1
            self.accelerator.print(
                f"step {self.step}: {self.best_metric} {score:.2f}, best stays step {self.best['step']}"
            )

    def _better(self, score: float, than: float) -> bool:
        return score > than if self.greater_is_better else score < than

    def _save_best(self) -> None:
        save_best(self.folder, self.model, self.accelerator, self.step)

    def _log(self, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=self.step)
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")

    def _trim_log(self) -> None:
        """Forget what was logged after the checkpoint that a resumed run goes on from: those steps are taken again."""
        path = self.folder / "log.jsonl"
        if self.accelerator.is_main_process and path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= self.step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break  # the line that was being written when the run was killed
            replace_text(path, "".join(f"{line}\n" for line in kept))

    def _save_checkpoint(self) -> None:
        names = ("step", "tokens", "epoch", "epoch_step", "best", "since_best", "evaluated", "identity")
        progress = {name: getattr(self, name) for name in names}
        save_checkpoint(self.folder, self.accelerator, progress, self.arguments.keep_checkpoints)
        self._saved_step = self.step

    def _restore(self, checkpoint: Path) -> None:
        progress = load_checkpoint(checkpoint, self.accelerator, self.identity)
        for name in ("step", "tokens", "epoch", "epoch_step", "best", "since_best", "evaluated"):
            setattr(self, name, progress[name])
        self._saved_step = self.step
        self.accelerator.print(f"resuming from {checkpoint} at step {self.step}")


def _nothing(output: Any) -> torch.Tensor:
    """A loss of zero whose gradient reaches every parameter that the outputs hang on: the mean over no target would be no number."""
    found = [value for name, value in output.items() if name != "loss" and isinstance(value, torch.Tensor)]
    return sum(value.float().sum() for value in found if value.requires_grad) * 0.0  # type: ignore[return-value]


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """What happens inside changes no random numbers outside."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if device is not None:
            torch.cuda.set_rng_state_all(device)


def make_accelerator(arguments: LoopArguments) -> Accelerator:
    """The accelerator of a run, its tracker and seeds set up. Of gradient accumulation it knows nothing: the loop weighs the batches."""
    compiling = TorchDynamoPlugin(backend=arguments.compile_backend) if arguments.compile_backend != "no" else None
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.tracker == "none" else arguments.tracker,
        project_config=ProjectConfiguration(
            project_dir=arguments.output_dir, logging_dir=str(Path(arguments.output_dir) / "runs")
        ),
        dynamo_plugin=compiling,
    )
    if arguments.tracker != "none" and not accelerator.log_with:
        raise RunError(f"tracker={arguments.tracker} is not installed: install it, or use tracker=none")
    shard_where_asked(accelerator)
    set_seed(arguments.seed)
    return accelerator
