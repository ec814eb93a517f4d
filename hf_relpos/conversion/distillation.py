"""Training a fitted model to be its original again, on raw text: the original at its own lengths is the teacher.

First the encodings, gains and biases alone, then all weights but word vectors, whose tokens a short training rarely meets. The model is compared with the
teacher on texts that are held out every so many steps, and ends with the weights that came nearest.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import distillation_checkpoint as checkpoint
from . import low_rank
from .distillation_targets import (
    WEIGHTS,
    States,
    Targets,
    comparison,
    has_logits,
    similarity,
    student_states,
    teacher_states,
)
from .distillation_texts import DistillationTexts, StepTexts
from .layerwise import Progress
from .processes import PRECISIONS, Processes

# the share of each phase in which its rate grows
WARMUP = 0.05
# seconds between two words on how far it is
EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class DistillationOptions:
    """How a model is distilled.

    ``steps`` of about ``tokens`` tokens in texts of up to ``length`` (what the fit read, unless given), a share ``beyond`` of them with texts that are longer than the teacher's.
    ``layers``: of how many, counted from the last, hidden states are compared.
    ``learning_rate`` of weights, ``encoding_rate`` of encodings, at their peaks; the share ``first`` of the steps leaves matrices alone. ``evaluate_every`` so many steps
    (a twentieth of them unless given) the held-out texts are read; ``patience`` evaluations in a row that are no better than the best end the training.
    ``lora_rank``: matrices learn by products of this rank (:mod:`low_rank`), which takes less memory and wants a higher rate, instead of whole. ``precision``: of activations, bfloat16 where the CPU computes in it unless given. Raises ValueError for values out of range.
    """

    steps: int
    tokens: int = 2048
    length: int | None = None
    layers: int = 2
    learning_rate: float = 1e-4
    encoding_rate: float = 1e-3
    first: float = 0.05
    beyond: float = 0.1
    evaluate_every: int | None = None
    patience: int = 10
    max_norm: float = 1.0
    lora_rank: int | None = None
    precision: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "layers", "evaluate_every", "patience", "lora_rank"):
            value = getattr(self, name)
            if value is not None:
                self._need(name, isinstance(value, int) and value >= 1, "a whole number of at least 1")
        for name in ("learning_rate", "encoding_rate", "max_norm"):
            self._need(name, 0 < getattr(self, name) < math.inf, "a positive number")
        for name in ("first", "beyond"):
            self._need(name, 0 <= getattr(self, name) <= 1, "a share between 0 and 1")
        self._need("precision", self.precision in (None, *PRECISIONS), f"one of {', '.join(PRECISIONS)}")
        self._need("seed", isinstance(self.seed, int) and 0 <= self.seed < 2**32, "between 0 and 2**32 - 1")

    def _need(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"distil_{name}={getattr(self, name)!r} is not valid: it must be {what}")

    @property
    def first_steps(self) -> int:
        """Steps that leave matrices alone."""
        return round(self.first * self.steps)

    @property
    def between(self) -> int:
        """Steps between two evaluations."""
        return self.evaluate_every or max(1, self.steps // 20)


@dataclass
class Evaluation:
    """The mean loss since the evaluation before, in all and by part, and the similarity to the teacher on held-out texts, by length in tokens; lengths beyond the teacher's
    are those that it read in parts."""

    step: int
    loss: float | None
    losses: dict[str, float]
    similarity: dict[int, float]

    @property
    def score(self) -> float:
        """The mean over lengths."""
        return sum(self.similarity.values()) / len(self.similarity)


@dataclass
class DistillationResult:
    """What a distillation did: its options, steps taken, tokens that the student read, the step whose weights were kept, evaluations, and seconds over all its sittings.
    ``measure``: what the similarity is."""

    options: DistillationOptions
    length: int
    measure: str
    steps: int = 0
    tokens: int = 0
    best_step: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def best(self) -> Evaluation:
        """The evaluation of the weights that were kept."""
        return next(one for one in self.evaluations if one.step == self.best_step)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def distil(
    teacher: Any,
    student: Any,
    texts: DistillationTexts,
    options: DistillationOptions,
    *,
    together: Processes | None = None,
    folder: Path | None = None,
    progress: Progress = lambda message: None,
) -> DistillationResult:
    """Train ``student``, in place, to give what ``teacher`` gives; both are models of one class, and neither has dropout here.

    With ``folder`` a checkpoint is written there at every evaluation, and a run that finds one of its own goes on from it, to the same weights as an unbroken run.
    ``together``: the processes that share each step. Raises ValueError when the checkpoint is of another run, RuntimeError when the loss is no longer
    a number or a checkpoint cannot be written.
    """
    run = _Run(teacher, student, texts, options, together or Processes(options.precision), folder, progress)
    try:
        return run.go()
    finally:
        low_rank.merge(student)
        student.requires_grad_(True)
        for model in (teacher, student):
            model.to("cpu")


class _Run:
    def __init__(
        self,
        teacher: Any,
        student: Any,
        texts: DistillationTexts,
        options: DistillationOptions,
        together: Processes,
        folder: Path | None,
        progress: Progress,
    ):
        # of the teacher too, which is never asked for a gradient: autocast keeps what it has rounded only of weights that could have one
        self.teacher, self.student = (
            model.eval().requires_grad_(True).to(together.device) for model in (teacher, student)
        )
        student.requires_grad_(False)
        self.texts, self.options, self.together = texts, options, together
        self.folder, self.progress = folder, progress if together.index == 0 else lambda message: None
        if options.lora_rank is not None:
            low_rank.add(student.base_model, options.lora_rank, options.seed)
        self.trained = dict(trained_parameters(student))
        if together.count > 1:
            # all begin where the first one is
            for parameter in self.trained.values():
                parameter.copy_(together.add(parameter if together.index == 0 else torch.zeros_like(parameter)))
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.values()), "kind": kind} for kind, group in self._groups().items()],
            betas=(0.9, 0.999),
            weight_decay=0.0,
        )
        self.held_out = [self._moved(some) for some in texts.held_out()]
        with together.autocast():
            self.targets = Targets.of(teacher, self.held_out, options.layers)
        self.weights = {name: one for name, one in WEIGHTS.items() if name != "logits" or has_logits(student)}
        self.known: list[States | None] = []
        measure = "exp(-KL) of next tokens" if has_logits(student) else "cosine of pooled outputs"
        self.result = DistillationResult(options, texts.length, measure)
        self.best: dict[str, Tensor] = {}
        self.since_best = 0
        self.sums: dict[str, float] = {}
        self.summed = 0

    def _groups(self) -> dict[str, dict[str, nn.Parameter]]:
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.trained.items():
            kind = "encoding" if "relpos" in name.split(".") else "vector" if parameter.ndim == 1 else "matrix"
            groups.setdefault(kind, {})[name] = parameter
        return groups

    def _own(self, texts: StepTexts, number: int) -> StepTexts:
        """The rows of this process, which begins elsewhere in each text's turn, for some are too long for a row each."""
        return texts.take(slice((self.together.index + number) % self.together.count, None, self.together.count))

    def _moved(self, texts: StepTexts) -> StepTexts:
        return StepTexts(texts.ids.to(self.together.device), texts.factor, texts.before, texts.after)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this run the run that it is."""
        held_out = {
            "held out": torch.tensor(self.texts.held_out_ids()),
            "fitted": torch.cat([ids.flatten() for ids in self.texts.fitting.fit]),
        }
        return {
            **{f"distil_{name}": value for name, value in asdict(self.options).items()},
            "distil_precision": self.together.precision,
            "rel_pos": self.student.config.rel_pos,
            "length": self.texts.length,
            "teacher": checkpoint.fingerprint(self.teacher.state_dict()),
            "text": checkpoint.fingerprint(held_out),
            "number of processes": self.together.count,
            "kind of device": self.together.device.type,
        }

    def go(self) -> DistillationResult:
        options, result = self.options, self.result
        resumed = None if self.folder is None else checkpoint.load(self.folder, self.identity)
        before = 0.0
        started = time.monotonic()
        if resumed is None:
            self._evaluate()
        else:
            before = self._restore(resumed)
            self.progress(f"distilling: going on from step {result.steps} of {options.steps}")
        first, told = result.steps, started
        steps = self.texts.steps(options.tokens, options.beyond, options.seed, first)
        while result.steps < options.steps and not self._impatient():
            loss = self._step(next(steps))
            result.steps += 1
            now = time.monotonic()
            if now - told > EVERY_SECONDS:
                told = now
                left = (now - started) / (result.steps - first) * (options.steps - result.steps)
                self.progress(
                    f"distilling: step {result.steps} of {options.steps}, loss {loss:.4f}, {_duration(left)} left"
                )
            if result.steps % options.between == 0 or result.steps == options.steps:
                self._evaluate()
                result.seconds = before + time.monotonic() - started
                if self.folder is not None and self.together.index == 0:
                    checkpoint.save(self.folder, self.identity, self._state())
        result.stopped_early = result.steps < options.steps
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.best[name])
        result.seconds = before + time.monotonic() - started
        return result

    def _impatient(self) -> bool:
        return self.since_best >= self.options.patience

    def _rates(self) -> None:
        """Set the rates of this step, and whether matrices learn."""
        options, step = self.options, self.result.steps
        first = options.first_steps
        whole = _rise_and_fall(step, 0, options.steps)
        late = _rise_and_fall(step, first, options.steps) if step >= first else 0.0
        rates = {
            "encoding": options.encoding_rate * whole,
            "vector": options.learning_rate * whole,
            "matrix": options.learning_rate * late,
        }
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["kind"]]
            for parameter in group["params"]:
                parameter.requires_grad_(group["kind"] != "matrix" or step >= first)

    def _step(self, step: list[StepTexts]) -> float:
        """One step on all processes; each takes a share of its rows."""
        self._rates()
        together = self.together
        self.optimizer.zero_grad(set_to_none=True)
        told = torch.zeros(len(self.weights), device=together.device)
        # one context for all texts, for which it rounds each weight that may learn once
        with together.autocast():
            for number, texts in enumerate(step):
                mine = self._moved(self._own(texts, number))
                if not len(mine.ids):
                    continue
                share = len(mine.ids) / len(texts.ids) / len(step)
                with torch.no_grad():
                    wanted = teacher_states(self.teacher, mine)
                found = student_states(self.student, mine)
                with torch.autocast(together.device.type, enabled=False):
                    parts = self.targets.loss(wanted, found)
                    weighed = torch.stack([weight * parts[name] for name, weight in self.weights.items()])
                    (weighed.sum() * share).backward()
                told += torch.stack([parts[name].detach() * share for name in self.weights])
        learning = [parameter for parameter in self.trained.values() if parameter.requires_grad]
        if together.count > 1:
            self._add_gradients(learning)
            told = together.add(told)
        norm = float(nn.utils.clip_grad_norm_(learning, self.options.max_norm))
        losses = {name: float(value) for name, value in zip(self.weights, told, strict=True)}
        total = sum(self.weights[name] * value for name, value in losses.items())
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise RuntimeError(
                f"the distillation failed at step {self.result.steps + 1}: its loss is {total} and the norm of its gradient {norm}; lower distil_learning_rate"
            )
        self.optimizer.step()
        self.result.tokens += sum(texts.whole().numel() for texts in step)
        for name, value in {"loss": total, **losses}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        return total

    def _add_gradients(self, learning: list[nn.Parameter]) -> None:
        flat = torch.cat(
            [torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten() for one in learning]
        )
        flat = self.together.add(flat)
        for one, gradient in zip(learning, flat.split([one.numel() for one in learning]), strict=True):
            one.grad = gradient.view_as(one)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Compare on the texts held out, and keep the weights when they are the best so far."""
        together, texts = self.together, self.held_out
        mine = [self._own(some, number) for number, some in enumerate(texts)]
        with together.autocast():
            known = self.known or [teacher_states(self.teacher, some) if len(some.ids) else None for some in mine]
            if not has_logits(self.teacher):
                # logits of all texts would be much to keep; of the rest the last states are compared
                self.known = [None if one is None else States(one.hidden[-1:], None) for one in known]
            sums = [
                0.0 if wanted is None else comparison(wanted, student_states(self.student, some)) * len(some.ids)
                for some, wanted in zip(mine, known, strict=True)
            ]
        added = together.add(torch.tensor(sums, device=together.device))
        found = {
            some.whole().shape[1]: similarity(float(total) / len(some.ids), has_logits(self.student))
            for some, total in zip(texts, added, strict=True)
        }
        result = self.result
        means = {name: value / self.summed for name, value in self.sums.items()}
        loss = means.pop("loss", None)
        result.evaluations.append(Evaluation(result.steps, loss, means, found))
        self.sums, self.summed = {}, 0
        score = result.evaluations[-1].score
        if not self.best or score > result.best.score:
            result.best_step, self.since_best = result.steps, 0
            self.best = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        else:
            self.since_best += 1
        self.progress(
            f"distilling: step {result.steps} of {self.options.steps}, held-out similarity {score:.4f}, best {result.best.score:.4f}"
        )

    def _state(self) -> dict[str, Any]:
        result = self.result
        return {
            "model": {name: parameter.detach() for name, parameter in self.trained.items()},
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "since_best": self.since_best,
            "steps": result.steps,
            "tokens": result.tokens,
            "best_step": result.best_step,
            "seconds": result.seconds,
            "evaluations": [asdict(one) for one in result.evaluations],
        }

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> float:
        """Go back to ``state``; returns the seconds that it took."""
        for name, parameter in self.trained.items():
            parameter.copy_(state["model"][name])
        self.best = {name: value.to(self.together.device) for name, value in state["best"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.since_best = state["since_best"]
        result = self.result
        result.steps, result.tokens, result.best_step = (state[name] for name in ("steps", "tokens", "best_step"))
        result.evaluations = [Evaluation(**one) for one in state["evaluations"]]
        return state["seconds"]


def trained_parameters(student: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """What a distillation trains, by name: all of the base model but word vectors, and of what learns by products of low rank these alone."""
    words = {id(parameter) for parameter in student.get_input_embeddings().parameters()}
    by_products = any(map(parametrize.is_parametrized, student.base_model.modules()))
    for name, parameter in student.base_model.named_parameters():
        parts = name.split(".")
        whole = "relpos" in parts or parameter.ndim == 1 or not by_products
        if id(parameter) not in words and (whole or ("parametrizations" in parts and parts[-1] != "original")):
            yield name, parameter


def _rise_and_fall(step: int, first: int, last: int) -> float:
    """A linear rise to 1 over the first part of the steps from ``first`` to ``last``, times half a cosine down to 0."""
    place = (step - first) / max(1, last - first)
    rise = min(1.0, (step - first + 1) / max(1.0, WARMUP * (last - first)))
    return rise * 0.5 * (1 + math.cos(math.pi * place))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
