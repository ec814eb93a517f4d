"""The training loop that every task shares. It knows steps, checkpoints, schedules, logging and resuming; it knows no task.

A run can be killed at any moment: checkpoints are written under another name and renamed when they are complete, and a resumed run goes
on with the same batches, random numbers and optimizer state, so that its losses are those of an unbroken run.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm
from transformers import get_scheduler


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why in one line."""


@dataclass
class LoopArguments:
    """What the loop must be told, whatever the task."""

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
        default="linear", metadata={"help": "decay, by transformers' name: linear, cosine, constant_with_warmup"}
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
        for name in ("train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not valid: it must be at least 1")
        for name in ("max_steps", "eval_steps", "save_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not valid: it must be at least 1")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r} is not valid; valid: no, bf16, fp16")


class EpochBatches(Sampler[list[int]]):
    """Batches of row numbers, a pure function of seed and epoch.

    With ``lengths``, rows are shuffled, sorted by length within stretches of 50 batches, cut, and the batches shuffled.
    """

    drop_last = False

    def __init__(self, rows: int, batch_size: int, seed: int, lengths: Sequence[int] | None):
        self.rows, self.batch_size, self.seed, self.lengths, self.epoch = rows, batch_size, seed, lengths, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        if self.lengths is not None:
            stretch = 50 * self.batch_size
            pieces = [order[start : start + stretch] for start in range(0, len(order), stretch)]
            order = [row for piece in pieces for row in sorted(piece, key=self.lengths.__getitem__, reverse=True)]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if self.lengths is not None:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return iter(batches)


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
            kind = "encoding" if "relpos." in f"{name}." else "decay" if parameter.ndim > 1 else "plain"
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def prepare_folder(arguments: LoopArguments) -> Path:
    """Make the output folder ready, or raise :class:`RunError` that says why it is not; nothing in it is lost unless told so."""
    folder = Path(arguments.output_dir)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir={folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not arguments.resume:
        if not arguments.overwrite_output_dir:
            raise RunError(
                f"output_dir={folder} is not empty: use --resume true to go on there, or --overwrite_output_dir true to empty it"
            )
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"0" * 65536)
        probe.unlink()
    except OSError as error:
        raise RunError(f"output_dir={folder} cannot be written: {error}") from error
    for leftover in folder.glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return folder


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "progress.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class TrainingLoop:
    """Trains ``model`` on ``rows``; see :meth:`run`.

    ``collate`` makes a batch of tensors that the model takes and answers with a ``loss``; ``evaluate(model, accelerator)`` gives metrics by name,
    of which ``best_metric`` (greater is better) chooses the model that is kept.
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
    ):
        self.arguments, self.accelerator = arguments, accelerator
        self.folder = Path(arguments.output_dir)
        self.evaluate, self.best_metric = evaluate, best_metric
        if arguments.gradient_checkpointing:
            model.config.use_cache = False
            model.gradient_checkpointing_enable()
        lengths = [len(row["input_ids"]) for row in rows] if arguments.group_by_length else None
        self.batches = EpochBatches(len(rows), arguments.train_batch_size, arguments.seed, lengths)
        # a generator of its own keeps the loader from drawing on the random numbers of dropout
        loader: DataLoader = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(arguments.seed),
        )
        optimizer = torch.optim.AdamW(parameter_groups(model, arguments))
        per_step = arguments.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = math.ceil(len(self.batches) / per_step)
        self.max_steps = arguments.max_steps or max(1, math.ceil(arguments.epochs * self.steps_per_epoch))
        # accelerate advances the schedule once for each process
        schedule = get_scheduler(
            arguments.schedule,
            optimizer,
            num_warmup_steps=int(arguments.warmup_ratio * self.max_steps) * accelerator.num_processes,
            num_training_steps=self.max_steps * accelerator.num_processes,
        )
        self.model, self.optimizer, self.loader, self.schedule = accelerator.prepare(model, optimizer, loader, schedule)
        self.step, self.epoch, self.batch, self.tokens = 0, 0, 0, 0
        self.best: dict[str, Any] = {}

    def run(self) -> dict[str, float]:
        """Train to the last step, evaluate, leave the best model's weights in the model, and return its metrics."""
        resumed = newest_checkpoint(self.folder) if self.arguments.resume else None
        if resumed is not None:
            self._restore(resumed)
        self._trim_log()
        bar = tqdm(
            total=self.max_steps, initial=self.step, disable=not self.accelerator.is_local_main_process, unit="step"
        )
        started, first = time.perf_counter(), self.tokens
        try:
            while self.step < self.max_steps:
                self._epoch(bar, lambda: (self.tokens - first) / max(time.perf_counter() - started, 1e-9))
                self.epoch, self.batch = self.epoch + 1, 0
        finally:
            bar.close()
        if self.best.get("step") != self.step:
            self._evaluate()
        self._take_best()
        return self.best["metrics"]

    def _epoch(self, bar: Any, rate: Callable[[], float]) -> None:
        self.batches.set_epoch(self.epoch)
        loader = skip_first_batches(self.loader, self.batch) if self.batch else self.loader
        self.model.train()
        losses: list[torch.Tensor] = []
        for batch in loader:
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch).loss
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.arguments.max_grad_norm:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
            self.batch += 1
            self.tokens += int(batch["attention_mask"].sum()) * self.accelerator.num_processes
            if not self.accelerator.sync_gradients:
                continue
            self.step += 1
            mean = float(self.accelerator.gather(torch.stack(losses).mean()).mean())
            losses = []
            if not math.isfinite(mean):
                raise RunError(
                    f"the loss became {mean} at step {self.step}; lower the learning rate or use mixed_precision bf16"
                )
            self._log({"loss": mean, "learning_rate": self.schedule.get_last_lr()[0]})
            bar.update()
            bar.set_postfix(loss=f"{mean:.3f}", tokens_per_s=f"{rate():.0f}")
            if self.arguments.eval_steps and self.step % self.arguments.eval_steps == 0 and self.step < self.max_steps:
                self._evaluate()
            if self.arguments.save_steps and self.step % self.arguments.save_steps == 0:
                self._save_checkpoint()
            if self.step >= self.max_steps:
                return

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
            self.accelerator.wait_for_everyone()
            self.accelerator.unwrap_model(self.model).save_pretrained(
                self.folder / "best",
                is_main_process=self.accelerator.is_main_process,
                state_dict=self.accelerator.get_state_dict(self.model),
            )
        elif self.accelerator.is_main_process:
            self.accelerator.print(
                f"step {self.step}: {self.best_metric} {score:.2f}, best stays step {self.best['step']}"
            )

    def _take_best(self) -> None:
        if self.best["step"] != self.step:
            weights = load_file(self.folder / "best" / "model.safetensors")
            self.accelerator.unwrap_model(self.model).load_state_dict(weights, strict=False)

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
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _save_checkpoint(self) -> None:
        unfinished, final = self.folder / f".checkpoint-{self.step}", self.folder / f"checkpoint-{self.step}"
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        progress = {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "tokens": self.tokens,
            "best": self.best,
        }
        (unfinished / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        os.replace(unfinished, final)
        complete = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for old in complete[: -self.arguments.keep_checkpoints]:
            shutil.rmtree(old)

    def _restore(self, checkpoint: Path) -> None:
        self.accelerator.load_state(str(checkpoint))
        progress = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
        self.step, self.epoch, self.batch = progress["step"], progress["epoch"], progress["batch"]
        self.tokens, self.best = progress["tokens"], progress["best"]
        self.accelerator.print(f"resuming from {checkpoint} at step {self.step}")


def make_accelerator(arguments: LoopArguments) -> Accelerator:
    """The accelerator of a run, its tracker and seeds set up."""
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.tracker == "none" else arguments.tracker,
        project_dir=arguments.output_dir,
    )
    set_seed(arguments.seed)
    return accelerator
