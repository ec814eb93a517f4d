"""The training loop that every task shares. It knows steps, checkpoints, schedules, logging and resuming; it knows no task.

A run can be killed at any moment: checkpoints are written under another name and renamed when they are complete, and a resumed run goes
on with the same batches, random numbers and optimizer state, so that its losses are those of an unbroken run. What could make it another
run is refused.
"""

import dataclasses
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, load, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from tqdm.auto import tqdm
from transformers import get_scheduler

METRICS, PROGRESS = "metrics.json", "progress.json"
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
# what a full disk raises, by the library that writes, and what a damaged file does
_UNWRITABLE = (OSError, RuntimeError, SafetensorError)
_UNREADABLE = (*_UNWRITABLE, EOFError, KeyError, ValueError, pickle.UnpicklingError)


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why in one line."""


@dataclass
class LoopArguments:
    """What the loop must be told, whatever the task."""

    # what a resumed run may be told otherwise than the run that it goes on from, for nothing computed depends on it
    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {"output_dir", "overwrite_output_dir", "resume", "eval_batch_size", "save_steps", "keep_checkpoints", "tracker"}
    )

    output_dir: str = field(default="outputs/run", metadata={"help": "folder for the model, checkpoints and logs"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "empty output_dir first"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest complete checkpoint in output_dir"})
    train_batch_size: int = field(default=16, metadata={"help": "rows a device and step"})
    eval_batch_size: int = field(default=32, metadata={"help": "rows a device when evaluating"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches that make one step"})
    epochs: float = field(default=1.0, metadata={"help": "passes over the training data"})
    max_steps: int | None = field(default=None, metadata={"help": "stop after so many steps, whatever epochs says"})
    learning_rate: float = field(default=5e-5, metadata={"help": "peak learning rate"})
    encoding_learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate of relative encodings; 10 times learning_rate unless given"}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "of matrices; biases, norms and encodings have none"})
    warmup_ratio: float = field(default=0.1, metadata={"help": "share of the steps in which the rate grows"})
    schedule: str = field(
        default="linear",
        metadata={"help": "what follows the warmup: linear, cosine, constant_with_warmup; or constant"},
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm; 0 for never"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute activations to save memory"})
    group_by_length: bool = field(default=True, metadata={"help": "batches of rows of similar length"})
    eval_steps: int | None = field(default=None, metadata={"help": "evaluate every so many steps, besides the end"})
    save_steps: int | None = field(default=None, metadata={"help": "write a checkpoint every so many steps"})
    keep_checkpoints: int = field(default=2, metadata={"help": "how many checkpoints to keep"})
    tracker: str = field(default="tensorboard", metadata={"help": "accelerate's name of a tracker, or none"})
    seed: int = field(default=0, metadata={"help": "seed of everything random"})

    def __post_init__(self) -> None:
        def need(name: str, valid: bool, what: str) -> None:
            if not valid:
                raise ValueError(f"{name}={getattr(self, name)!r} is not valid: it must be {what}")

        for name in ("train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "keep_checkpoints"):
            need(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "eval_steps", "save_steps"):
            need(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("epochs", "learning_rate", "encoding_learning_rate"):
            value = getattr(self, name)
            need(name, value is None or 0 < value < math.inf, "a positive number")
        for name in ("weight_decay", "max_grad_norm"):
            need(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        need("warmup_ratio", 0 <= self.warmup_ratio <= 1, "between 0 and 1")
        need("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        need("mixed_precision", self.mixed_precision in ("no", "bf16", "fp16"), "one of no, bf16, fp16")
        need("seed", 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")
        if self.resume and self.overwrite_output_dir:
            raise ValueError("resume and overwrite_output_dir exclude each other: go on in output_dir, or empty it")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must be told as the run that it goes on from was."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in self.free_to_change}


def epoch_batches(
    rows: int, batch_size: int, *, seed: int, epoch: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """Batches of row numbers, each row in one of them: a pure function of its arguments, by which a resumed run finds its place.

    With ``lengths``, rows are shuffled, sorted by length within stretches of 50 batches, cut, and the batches shuffled.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(rows, generator=generator).tolist()
    if lengths is not None:
        stretch = 50 * batch_size
        pieces = [order[start : start + stretch] for start in range(0, len(order), stretch)]
        order = [row for piece in pieces for row in sorted(piece, key=lengths.__getitem__, reverse=True)]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if lengths is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


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


def check_folder(arguments: LoopArguments) -> None:
    """Raise :class:`RunError` that says why a run cannot use its output folder; loses nothing in it. On every process alike."""
    _on_main_process(lambda: _check(Path(arguments.output_dir), arguments))


def prepare_folder(arguments: LoopArguments) -> Path:
    """Make the output folder ready, or raise :class:`RunError` that says why it is not; nothing in it is lost unless told so. On every
    process alike."""
    folder = Path(arguments.output_dir)

    def prepare() -> None:
        _check(folder, arguments)
        patterns = ("*",) if arguments.overwrite_output_dir else (".checkpoint-*", ".best-*.partial")
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    _on_main_process(prepare)
    return folder


def _on_main_process(action: Callable[[], None]) -> None:
    problem: list[str | None] = [None]
    if PartialState().is_main_process:
        try:
            action()
        except RunError as error:
            problem = [str(error)]
        except OSError as error:
            problem = [f"the output folder cannot be written: {error}"]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise RunError(problem[0])


def _check(folder: Path, arguments: LoopArguments) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir={folder} is a file")
    if arguments.resume:
        if (folder / METRICS).exists():
            raise RunError(f"the run in output_dir={folder} is complete: there is nothing to resume")
        if newest_checkpoint(folder) is None:
            raise RunError(
                f"output_dir={folder} holds no complete checkpoint to resume from: start with --overwrite_output_dir true instead"
            )
    elif not arguments.overwrite_output_dir and folder.is_dir() and any(folder.iterdir()):
        raise RunError(
            f"output_dir={folder} is not empty: use --resume true to go on there, or --overwrite_output_dir true to empty it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"0" * 65536)
        probe.unlink()
    except OSError as error:
        raise RunError(f"output_dir={folder} cannot be written: {error}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(
        (path for path in found if (path / PROGRESS).is_file()), key=lambda path: int(path.name.rpartition("-")[2])
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    return next(reversed(checkpoints(folder)), None)


def finish(folder: Path, metrics: dict[str, float]) -> None:
    """Write ``metrics.json``, by which a complete run is known, and remove what only a resumed run would need."""
    _replace_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    for path in folder.glob(".best-*"):
        path.unlink()


def fingerprint(rows: Iterable[Any]) -> str:
    """A short text that is another one for other rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()[:16]


def _replace_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


class TrainingLoop:
    """Trains ``model`` on ``rows``; see :meth:`run`.

    ``collate`` makes a batch of tensors that the model takes and answers with a ``loss``, the mean over the batch's rows;
    ``evaluate(model, accelerator)`` gives metrics by name, of which ``best_metric`` (greater is better) chooses the model that is kept.
    ``eval_rows`` are what it evaluates on, so that a run is not resumed with others.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[dict[str, Any]],
        collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]],
        evaluate: Callable[[Any, Accelerator], dict[str, float]],
        best_metric: str,
        arguments: LoopArguments,
        accelerator: Accelerator,
        eval_rows: Sequence[Any] = (),
    ):
        if not rows:
            raise RunError("there are no rows to train on")
        self.arguments, self.accelerator = arguments, accelerator
        self.folder = Path(arguments.output_dir)
        self.evaluate, self.best_metric = evaluate, best_metric
        self.rows, self.eval_rows, self.collate = rows, eval_rows, collate
        self.lengths = [len(row["input_ids"]) for row in rows] if arguments.group_by_length else None
        optimizer = torch.optim.AdamW(parameter_groups(model, arguments))
        self.batches_per_step = arguments.gradient_accumulation_steps * accelerator.num_processes
        batches = math.ceil(len(rows) / arguments.train_batch_size)
        self.steps_per_epoch = math.ceil(batches / self.batches_per_step)
        self.max_steps = arguments.max_steps or max(1, math.ceil(arguments.epochs * self.steps_per_epoch))
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
        self.best: dict[str, Any] = {}
        self._identity: dict[str, Any] | None = None
        # a cache is of no use in training and rules out recomputing activations
        cached = arguments.gradient_checkpointing and getattr(model.config, "use_cache", False)
        self._forward_options = {"use_cache": False} if cached else {}

    @property
    def identity(self) -> dict[str, Any]:
        """What makes this run the run that it is; a checkpoint of another one is not resumed from."""
        if self._identity is None:
            self._identity = {
                **self.arguments.identity(),
                "training data": fingerprint(self.rows),
                "evaluation data": fingerprint(self.eval_rows),
                "number of processes": self.accelerator.num_processes,
                "kind of device": self.accelerator.device.type,
            }
        return self._identity

    def run(self) -> dict[str, float]:
        """Train to the last step, evaluate, leave the best model's weights in the model, and return its metrics.

        Raises :class:`RunError` when the loss or the gradient is no longer a number, a checkpoint cannot be written, or there is none to
        resume from that this run could have written.
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
        try:
            while self.step < self.max_steps:
                self._epoch(bar, lambda: (self.tokens - first) / max(time.perf_counter() - started, 1e-9))
        finally:
            bar.close()
        if self.best.get("step") != self.step:
            self._evaluate()
        self._take_best()
        return self.best["metrics"]

    def _epoch(self, bar: Any, rate: Callable[[], float]) -> None:
        arguments = self.arguments
        epoch, done = divmod(self.step, self.steps_per_epoch)
        batches = epoch_batches(
            len(self.rows), arguments.train_batch_size, seed=arguments.seed, epoch=epoch, lengths=self.lengths
        )
        self.model.train()
        for first in range(done * self.batches_per_step, len(batches), self.batches_per_step):
            loss = self._take_step(batches[first : first + self.batches_per_step])
            self.step += 1
            self._log({"loss": loss, "learning_rate": self.schedule.get_last_lr()[0]})
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{rate():.0f}")
            if arguments.eval_steps and self.step % arguments.eval_steps == 0 and self.step < self.max_steps:
                self._evaluate()
            if arguments.save_steps and self.step % arguments.save_steps == 0:
                self._save_checkpoint()
            if self.step >= self.max_steps:
                return

    def _take_step(self, batches: Sequence[Sequence[int]]) -> float:
        """Deal ``batches`` of row numbers out to the processes, take one optimizer step on all of them, and return the mean loss.

        Each row counts the same, also in the last step of an epoch, which may have fewer batches, and one with fewer rows.
        """
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        rows = sum(len(batch) for batch in batches)
        losses = []
        for start in range(0, len(batches), processes):
            dealt = batches[start : start + processes]
            # a process that gets none joins in without weight, for the others wait for its gradient
            chosen, weight = (dealt[mine], len(dealt[mine])) if mine < len(dealt) else (dealt[0], 0)
            inputs = {
                name: tensor.to(self.accelerator.device)
                for name, tensor in self.collate([self.rows[row] for row in chosen]).items()
            }
            last = start + processes >= len(batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                # the processes' gradients are averaged, not added
                loss = self.model(**inputs, **self._forward_options).loss * (weight * processes / rows)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            self.tokens += int(inputs["attention_mask"].sum()) * processes
        mean = float(self.accelerator.reduce(torch.stack(losses).sum(), "mean"))
        if not math.isfinite(mean):
            raise RunError(
                f"the loss became {mean} at step {self.step + 1}; lower the learning rate or use mixed_precision bf16"
            )
        self._clip_gradient()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return mean

    def _clip_gradient(self) -> None:
        norm = float(
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm or math.inf)
        )
        # in fp16 infinite gradients are part of finding the scale; such a step is skipped
        if not math.isfinite(norm) and self.arguments.mixed_precision != "fp16":
            raise RunError(f"the norm of the gradient became {norm} at step {self.step + 1}; lower the learning rate")

    def _evaluate(self) -> None:
        random_state = torch.get_rng_state()
        self.model.eval()
        with torch.no_grad():
            metrics = self.evaluate(self.model, self.accelerator)
        self.model.train()
        torch.set_rng_state(random_state)
        self._log({f"eval_{name}": value for name, value in metrics.items()})
        score = metrics[self.best_metric]
        if not self.best or score > self.best["metrics"][self.best_metric]:
            self.best = {"step": self.step, "metrics": metrics}
            if self.accelerator.is_main_process:
                self._save_best()
        else:
            self.accelerator.print(
                f"step {self.step}: {self.best_metric} {score:.2f}, best stays step {self.best['step']}"
            )

    def _best_path(self, step: int) -> Path:
        return self.folder / f".best-{step}.safetensors"

    def _save_best(self) -> None:
        path = self._best_path(self.step)
        unfinished = path.with_suffix(".partial")
        try:
            save_model(self.accelerator.unwrap_model(self.model), str(unfinished))
            os.replace(unfinished, path)
        except _UNWRITABLE as error:
            unfinished.unlink(missing_ok=True)
            raise RunError(f"the best model, of step {self.step}, could not be written: {_line(error)}") from error
        self._forget_old_best()

    def _forget_old_best(self) -> None:
        """Remove earlier best models, except those that a run resumed from one of the checkpoints may end with."""
        steps = {self.best.get("step")}
        for checkpoint in checkpoints(self.folder):
            steps.add(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))["best"].get("step"))
        needed = {self._best_path(step) for step in steps if step is not None}
        for path in self.folder.glob(".best-*.safetensors"):
            if path not in needed:
                path.unlink()

    def _take_best(self) -> None:
        if self.best["step"] != self.step:
            self.accelerator.wait_for_everyone()
            load_model(self.accelerator.unwrap_model(self.model), self._best_path(self.best["step"]))

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
            _replace_text(path, "".join(f"{line}\n" for line in kept))

    def _save_checkpoint(self) -> None:
        unfinished, final = self.folder / f".checkpoint-{self.step}", self.folder / f"checkpoint-{self.step}"
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "best": self.best,
            "identity": self.identity,
        }
        try:
            self.accelerator.save_state(str(unfinished))
            self.accelerator.wait_for_everyone()
            if not self.accelerator.is_main_process:
                return
            (unfinished / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            if final.exists():
                shutil.rmtree(final)
            os.replace(unfinished, final)
        except _UNWRITABLE as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RunError(
                f"the checkpoint of step {self.step} could not be written, earlier ones are whole: {_line(error)}"
            ) from error
        for old in checkpoints(self.folder)[: -self.arguments.keep_checkpoints]:
            # under another name first, for a run may be killed in the middle of removing it
            shutil.rmtree(old.rename(self.folder / f".{old.name}"))
        self._forget_old_best()

    def _restore(self, checkpoint: Path) -> None:
        try:
            progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
            self._refuse_another_run(checkpoint, progress["identity"])
            self.accelerator.load_state(str(checkpoint))
            # load_state passes over random numbers that it cannot read
            states = load(checkpoint / f"random_states_{self.accelerator.process_index}.pkl")
            if not torch.equal(torch.get_rng_state(), states["torch_manual_seed"]):
                raise ValueError("the random numbers could not be restored")
            self.step, self.tokens, self.best = progress["step"], progress["tokens"], progress["best"]
            if self.best and not self._best_path(self.best["step"]).is_file():
                raise ValueError(f"{self._best_path(self.best['step']).name}, the best model so far, is missing")
        except RunError:
            raise
        except _UNREADABLE as error:
            raise RunError(
                f"{checkpoint} cannot be read, remove it to resume from an earlier one: {_line(error)}"
            ) from error
        self.accelerator.print(f"resuming from {checkpoint} at step {self.step}")

    def _refuse_another_run(self, checkpoint: Path, identity: dict[str, Any]) -> None:
        # through JSON, as the other one
        mine = json.loads(json.dumps(self.identity))
        changed = [
            f"{name} was {identity.get(name)!r} and is {mine.get(name)!r}"
            for name in sorted({*identity, *mine})
            if identity.get(name) != mine.get(name)
        ]
        if changed:
            raise RunError(f"{checkpoint} is of another run: {'; '.join(changed)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def make_accelerator(arguments: LoopArguments) -> Accelerator:
    """The accelerator of a run, its tracker and seeds set up. Of gradient accumulation it knows nothing: the loop weighs the batches."""
    accelerator = Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.tracker == "none" else arguments.tracker,
        project_config=ProjectConfiguration(
            project_dir=arguments.output_dir, logging_dir=str(Path(arguments.output_dir) / "runs")
        ),
    )
    if arguments.tracker != "none" and not accelerator.log_with:
        raise RunError(f"tracker={arguments.tracker} is not installed: install it, or use tracker=none")
    set_seed(arguments.seed)
    return accelerator
