"""What a student is to have of its teacher: hidden states of the last layers, their mean over a text, and the next tokens of a decoder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .distillation_texts import StepTexts

# weights of the parts of the loss, each about 1 for a student that knows nothing
WEIGHTS = {"layers": 1.0, "token": 1.0, "pooled": 1.0, "logits": 1.0}


@dataclass
class States:
    """A model on the parts of some texts: ``hidden``, after each layer, ``[R, factor, W, E]``; ``logits`` ``[R, factor, W, V]`` of models that write."""

    hidden: list[Tensor]
    logits: Tensor | None

    def pooled(self) -> Tensor:
        """The mean last hidden state of each part, ``[R, factor, E]``."""
        return self.hidden[-1].mean(2)


def has_logits(model: Any) -> bool:
    """Whether the outputs of a model are next tokens."""
    return bool(model.can_generate())


def _run(model: Any, ids: Tensor) -> list[Tensor]:
    """Hidden states after each layer and, of models that write, the logits, ``[B, T, ...]``."""
    if has_logits(model):
        output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        return [*output.hidden_states[1:], output.logits]
    return list(model.base_model(input_ids=ids, output_hidden_states=True).hidden_states[1:])


def _states(model: Any, found: list[Tensor]) -> States:
    found = [one.float() for one in found]
    return States(found[:-1], found[-1]) if has_logits(model) else States(found, None)


def _body(texts: StepTexts, causal: bool) -> tuple[int, int]:
    """The places of a part that are compared: all that it has of the text, and of a decoder beyond its length the second half, before which its teacher has
    read too little of what the student knows."""
    width = texts.ids.shape[1] // texts.factor
    return (width // 2 if causal else 0), width


def teacher_states(model: Any, texts: StepTexts) -> States:
    """The teacher on each part by itself."""
    found = _run(model, texts.parts())
    if texts.factor == 1:
        return _states(model, [one[:, None] for one in found])
    first, last = _body(texts, has_logits(model))
    start = len(texts.before)
    return _states(model, [one[:, start + first : start + last].unflatten(0, (-1, texts.factor)) for one in found])


def student_states(model: Any, texts: StepTexts) -> States:
    """The student on whole rows, in the parts that the teacher reads."""
    found = _run(model, texts.whole())
    if texts.factor == 1:
        return _states(model, [one[:, None] for one in found])
    first, last = _body(texts, has_logits(model))
    start, count = len(texts.before), texts.ids.shape[1]
    return _states(
        model, [one[:, start : start + count].unflatten(1, (texts.factor, -1))[:, :, first:last] for one in found]
    )


@dataclass
class Targets:
    """The loss; ``scales``: how much the teacher's states vary, one number for each of its last layers, and ``pooled_scale`` the same for its means."""

    scales: list[float]
    pooled_scale: float

    @classmethod
    @torch.no_grad()
    def of(cls, teacher: Any, held_out: Sequence[StepTexts], layers: int) -> "Targets":
        """Scales of the last ``layers`` from the texts held out."""
        states = teacher_states(teacher, held_out[-1])
        flat = [one.flatten(0, 2) for one in states.hidden[-layers:]]
        means = states.pooled().flatten(0, 1)
        spread = float((means - means.mean(0)).square().mean()) if len(means) > 1 else 0.0
        return cls(
            [max(float((one - one.mean(0)).square().mean()), 1e-12) for one in flat],
            max(spread, 1e-12) if len(means) > 1 else 1.0,
        )

    def loss(self, wanted: States, found: States) -> dict[str, Tensor]:
        """The parts of the loss, each a mean over rows:

        ``layers``  mean over the last layers of |s - t|^2 / scale; ``token``  1 - cos(s, t) of the last hidden states;
        ``pooled``  |mean s - mean t|^2 / scale, the mean over a part; ``logits``  KL(teacher | student) of the next token, in nats.
        """
        first = -len(self.scales)
        parts = {
            "layers": torch.stack(
                [
                    (mine - theirs).square().mean() / scale
                    for mine, theirs, scale in zip(
                        found.hidden[first:], wanted.hidden[first:], self.scales, strict=True
                    )
                ]
            ).mean(),
            "token": 1 - torch.cosine_similarity(found.hidden[-1], wanted.hidden[-1], dim=-1).mean(),
            "pooled": (found.pooled() - wanted.pooled()).square().mean() / self.pooled_scale,
        }
        if found.logits is not None and wanted.logits is not None:
            parts["logits"] = divergence(wanted.logits, found.logits)
        return parts


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """The mean KL divergence of next tokens ``[..., V]`` in nats."""
    target, mine = wanted.log_softmax(-1), found.log_softmax(-1)
    return (target.exp() * (target - mine)).sum(-1).mean()


def comparison(wanted: States, found: States) -> float:
    """The mean cosine of pooled outputs, or where there are next tokens the mean of KL(wanted | found)."""
    if found.logits is not None and wanted.logits is not None:
        return float(divergence(wanted.logits, found.logits))
    return float(torch.cosine_similarity(found.pooled(), wanted.pooled(), dim=-1).mean())


def similarity(mean: float, writes: bool) -> float:
    """How near the student is, at most 1, from the mean of :func:`comparison`: the cosine, or exp(-KL) of models that write."""
    return math.exp(-mean) if writes else mean
