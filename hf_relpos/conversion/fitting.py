"""Fitting without training: a model's new encodings and a few biases, layer by layer, so that its attention is the original's.

The layers are gone through once, from the first. In each, attention of the original on its own input is compared with attention of the converted model on
*its* input, which the layers before have moved; the encoding takes up what it can of the difference, and the end of the layer what remains of the
mean. So later layers are fitted to what they will get. Layers that share an encoding are measured together, in several rounds.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.architectures import architecture
from .distance_form import DistanceForm
from .folding import correct_layer, fold_positions
from .layerwise import LayeredModel, Progress, scores_of
from .projection import BLOCK, DAMPING, ContentSample, Problem, has_parameters, leaves, objections
from .texts import FittingTexts

PASSES = 3
# texts, and steps of LBFGS in all, for encodings whose scores depend on content
CONTENT_TEXTS = 24
CONTENT_STEPS = 30


@dataclass
class LayerFit:
    """One layer, numbers for each head: the share of the variance of score differences that a free table over distance explains (``invariant``) and
    that the encoding explains after the fit (``explained``), and the mean KL divergence from the original's attention in nats, without the encoding and with
    it. ``measured`` and ``fitted`` ``[H, N]``: the mean score difference at each distance and what the encoding adds (None where that depends on content)."""

    invariant: list[float]
    explained: list[float]
    divergence_without: list[float]
    divergence: list[float]
    measured: Tensor
    fitted: Tensor | None
    corrected: str | None = None


@dataclass
class FitResult:
    """What a fit did: ``folded`` and ``notes`` in words, each layer, and how near the model came."""

    tokens: int
    length: int
    folded: list[str]
    layers: list[LayerFit] = field(default_factory=list)
    seconds: float = 0.0


def check_fittable(converted: Any) -> None:
    """Raise ValueError with the reasons when the encodings of a model cannot be fitted to the attention of another."""
    base = converted.base_model
    reasons: dict[str, None] = {}
    some = False
    for module in base.modules():
        site: Any = getattr(module, "_relpos_site", None)
        if site is None or site.cross:
            continue
        parts = site.encodings(module)
        reasons.update(dict.fromkeys(objections(parts)))
        some = some or any(has_parameters(part) for part in leaves(parts))
    if not some:
        reasons["it has no parameters"] = None
    if reasons:
        raise ValueError(f"rel_pos={converted.config.rel_pos!r} cannot be fitted: {'; '.join(reasons)}")


@torch.no_grad()
def fit_model(
    original: Any,
    converted: Any,
    texts: FittingTexts,
    *,
    passes: int = PASSES,
    damping: float = DAMPING,
    correct: bool = True,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> FitResult:
    """Fit ``converted``, in place, to ``original``: two models of one checkpoint, the first with relative positions alone, the other with its own.

    ``passes``: how often each layer is measured; ``damping`` of the changes of tables; ``correct``: whether gains and biases take up the mean. Raises ValueError when the encodings
    of ``converted`` cannot be fitted, RuntimeError when the fit fails.
    """
    check_fittable(converted)
    start = time.monotonic()
    spec = architecture(converted.config.model_type)
    for model in (original, converted):
        model.eval().requires_grad_(False)
    folded = fold_positions(original.base_model, converted.base_model, spec, texts.fit)
    fitter = _Fitter(original, converted, texts, passes, damping, correct, seed, progress)
    result = FitResult(texts.tokens, texts.length, folded)
    if fitter.shared:
        fitter.fit_shared()
    result.layers = fitter.walk(fit=not fitter.shared)
    converted.requires_grad_(True)
    result.seconds = time.monotonic() - start
    return result


class _Fitter:
    def __init__(
        self,
        original: Any,
        converted: Any,
        texts: FittingTexts,
        passes: int,
        damping: float,
        correct: bool,
        seed: int,
        progress: Progress,
    ):
        self.original, self.converted = LayeredModel(original, texts.fit), LayeredModel(converted, texts.fit)
        self.passes, self.damping, self.correct, self.seed, self.progress = passes, damping, correct, seed, progress
        self.size = max(ids.shape[1] for ids in texts.fit)
        self.batches = range(len(texts.fit))
        self.count = len(self.converted.layers)
        owners: dict[int, set[int]] = {}
        for layer in range(self.count):
            for part in self.converted.parts(layer):
                for parameter in part.parameters():
                    owners.setdefault(id(parameter), set()).add(layer)
        self.shared = any(len(layers) > 1 for layers in owners.values())

    def walk(self, *, fit: bool) -> list[LayerFit]:
        """Through all layers once, fitting each on the way where that is asked for; then the next one's input is what this one really gives."""
        found = []
        first = correct_layer(self.original, self.converted, -1) if self.correct else None
        if first is not None:
            self.progress(f"before the first layer: {first} corrected")
        for layer in range(self.count):
            content = self._measure(layer, content=True)
            problem = Problem([self.converted.parts(layer)])
            if fit and problem.parameters:
                self._fit(problem, layer, content)
            after = self._measure(layer, near=True, advance=True)
            tables = problem.tables(self.size) if problem.parameters else None
            corrected = correct_layer(self.original, self.converted, layer) if self.correct else None
            rows = content.rows
            explained = 1 - after.variance / content.variance.clamp(min=1e-30)
            found.append(
                LayerFit(
                    _free_share(content, self.damping).tolist(),
                    explained.tolist(),
                    (content.divergence / rows).tolist(),
                    (after.divergence / rows).tolist(),
                    content.mean_table(),
                    None if tables is None else tables[0],
                    corrected,
                )
            )
            self.progress(
                f"layer {layer + 1} of {self.count}: KL of attention {content.divergence.sum() / rows / len(explained):.4f} -> "
                f"{after.divergence.sum() / rows / len(explained):.4f}, explained {_pooled(content, after):.2f}"
            )
        return found

    def fit_shared(self) -> None:
        """Encodings that layers share: measure all layers with the encodings as they are, fit, and begin again."""
        problem = Problem([self.converted.parts(layer) for layer in range(self.count)])
        starts = self.original.hidden, self.converted.hidden
        by_table = problem.tables(self.size) is not None
        if by_table:
            problem.clear(self.size)
        for number in range(self.passes + by_table):
            forms, samples = [], []
            for layer in range(self.count):
                if by_table:
                    forms.append(self._measure(layer, near=number > 0, curvature=True, advance=True))
                else:
                    samples.append(self._sample(layer))
                    self._measure(layer, advance=True)
            self.original.hidden, self.converted.hidden = starts
            if by_table:
                problem.step(forms, damping=self.damping, last=number == self.passes)
            else:
                problem.fit_content(samples, CONTENT_STEPS // self.passes)
            self.progress(f"round {number + 1} for what layers share")

    def _fit(self, problem: Problem, layer: int, content: DistanceForm) -> None:
        if problem.tables(self.size) is None:
            problem.fit_content([self._sample(layer)], CONTENT_STEPS)
            return
        problem.clear(self.size)
        # where the encoding adds nothing yet, what was measured of the content is what is to be known
        nothing = not bool(problem.tables(self.size).any())  # type: ignore[union-attr]
        form = content if nothing else self._measure(layer, curvature=True)
        for _ in range(self.passes):
            problem.step([form], damping=self.damping)
            form = self._measure(layer, near=True, curvature=True)
        problem.step([form], damping=self.damping, last=True)

    def _measure(
        self,
        layer: int,
        *,
        content: bool = False,
        near: bool = False,
        curvature: bool = False,
        advance: bool = False,
    ) -> DistanceForm:
        """One layer's form over all texts: with its encodings, or of the ``content`` alone; ``advance``: its outputs become the next layer's inputs."""
        heads = self.original.attentions[layer].config.num_attention_heads
        form = DistanceForm.empty(heads, self.size, curvature=content or curvature)
        generator = torch.Generator().manual_seed(self.seed)
        for batch in self.batches:
            _, theirs, output = self.original.observe(layer, batch, whole=advance)
            inputs, mine, moved = self.converted.observe(layer, batch, whole=advance)
            if content:
                mine = type(mine)(inputs.query, inputs.key, inputs.scale)
            causal = self.original.causal
            form.add(scores_of(theirs, causal=causal), scores_of(mine, causal=causal), near=near, generator=generator)
            if output is not None and moved is not None:
                # lists are replaced, since a round of shared encodings begins with the old ones
                self.original.hidden = _with(self.original.hidden, batch, output)
                self.converted.hidden = _with(self.converted.hidden, batch, moved)
        return form

    def _sample(self, layer: int) -> list[ContentSample]:
        generator = torch.Generator().manual_seed(self.seed)
        found: list[ContentSample] = []
        every = max(1, len(self.batches) * 4 // CONTENT_TEXTS)
        for batch in self.batches[::every]:
            _, theirs, _ = self.original.observe(layer, batch)
            inputs, _, _ = self.converted.observe(layer, batch)
            length = inputs.query.shape[2]
            first = int(torch.randint(max(1, length - BLOCK + 1), (), generator=generator))
            rows = slice(first, first + BLOCK)
            target = scores_of(theirs, rows, causal=self.original.causal).log_softmax(-1)
            found.append(ContentSample(inputs, rows, target, self.original.causal))
        return found


def _with(hidden: list[Tensor], batch: int, value: Tensor) -> list[Tensor]:
    return [*hidden[:batch], value, *hidden[batch + 1 :]]


def _free_share(form: DistanceForm, damping: float) -> Tensor:
    """The share of the variance that the best table over distance explains, ``[H]``."""
    explained = []
    for head in range(len(form.gradient)):
        gradient = form.slope(head)
        system = form.damped(head, damping)
        system.diagonal().add_(1e-7 * system.diagonal().mean())
        table = torch.linalg.solve(system, gradient)
        explained.append(2 * gradient @ table - table @ form.bend(head) @ table)
    return (torch.stack(explained) / form.spread.clamp(min=1e-30)).clamp(0.0, 1.0)


def _pooled(content: DistanceForm, after: DistanceForm) -> float:
    return float(1 - after.variance.sum() / content.variance.sum().clamp(min=1e-30))
