"""What a fit and a distillation did, for people and programs: ``conversion.md``, ``conversion.json`` and, where matplotlib is installed, pictures."""

import importlib.util
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .distillation import DistillationResult
from .distillation_report import PICTURE, curves, section, sentence
from .fitting import FitResult, LayerFit
from .similarity import Similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKDOWN, JSON, TABLES, SHARES = "conversion.md", "conversion.json", "conversion-tables.png", "conversion-explained.png"


@dataclass
class Candidate:
    """One encoding that was tried: its ``rel_pos``, the share of the variance of score differences that it explains, how near it comes, and the mean of its
    pooled cosines at the trained length and beyond, by which it is ranked."""

    rel_pos: Any
    explained: float
    similarity: Similarity
    rank_value: float


@dataclass
class FitReport:
    """A fit and how near the model came: with positions merely ``dropped``, ``fitted``, and ``distilled`` if it was. ``candidates``: what was tried, best first, if
    anything was."""

    source: str
    text: str
    rel_pos: Any
    fit: FitResult
    dropped: Similarity
    fitted: Similarity
    candidates: list[Candidate] = field(default_factory=list)
    distillation: DistillationResult | None = None
    distilled: Similarity | None = None

    @property
    def found(self) -> Similarity:
        """How near the model is in the end."""
        return self.distilled or self.fitted

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; numbers that are not finite become null."""
        layers = [
            {
                "invariant": layer.invariant,
                "explained": layer.explained,
                "divergence_without": layer.divergence_without,
                "divergence": layer.divergence,
                "corrected": layer.corrected,
            }
            for layer in self.fit.layers
        ]
        values = {
            "source": self.source,
            "text": self.text,
            "rel_pos": self.rel_pos,
            "tokens": self.fit.tokens,
            "length": self.fit.length,
            "seconds": round(self.fit.seconds, 1),
            "folded": self.fit.folded,
            "dropped": self.dropped.to_dict(),
            "fitted": self.fitted.to_dict(),
            "distilled": None if self.distilled is None else self.distilled.to_dict(),
            "distillation": None if self.distillation is None else self.distillation.to_dict(),
            "layers": layers,
            "candidates": [
                {
                    "rel_pos": one.rel_pos,
                    "explained": one.explained,
                    "rank_value": one.rank_value,
                    "similarity": one.similarity.to_dict(),
                }
                for one in self.candidates
            ],
        }
        return _finite(values)

    def summary(self) -> str:
        """A few sentences and one table, as they stand in the model card."""
        how = "dropped, without training: the" if self.distillation is None else "dropped: the"
        lines = [
            f"Made of `{self.source}`, whose own positions were {how} encoding was fitted to the attention of the original on "
            f"{self.fit.tokens:,} tokens of raw text, layer by layer ({self.fit.seconds:.0f} s).{sentence(self.distillation)} Cosine to the original on unseen text, "
            "last hidden states averaged over each text:",
            "",
            _row("tokens", *map(str, self.fitted.pooled)),
            _row(*["---"] * (len(self.fitted.pooled) + 1)),
            _row("positions merely dropped", *map(_three, self.dropped.pooled.values())),
            _row("fitted", *map(_three, self.fitted.pooled.values())),
        ]
        found = self.found
        if self.distilled is not None:
            lines.append(_row("distilled", *map(_three, self.distilled.pooled.values())))
        if found.beyond:
            lines += [
                "",
                f"Beyond, against the original on each stretch of {self.fit.length} tokens by itself: "
                + _pairs(found.beyond)
                + ".",
            ]
        if found.perplexity:
            lines += [
                "",
                f"Perplexity: {_pairs(found.perplexity)}; of the original: {_pairs(found.original_perplexity)}.",
            ]
        return "\n".join(lines)

    def markdown(self, pictures: bool) -> str:
        """The whole report."""
        parts = ["# Conversion", self.summary(), "## Kept, folded and fitted"]
        parts.append("\n".join(f"- {told}" for told in self._told()))
        parts.append("## By layer")
        parts.append(
            "`invariant`: the share of the variance of score differences, with and without absolute positions, that a free table over distance explains; `explained`: the "
            "share that the encoding explains after the fit (below 0: it moves more than it explains; attention counts these differences where it looks). KL: the mean "
            "divergence of a query's attention from the original's, in nats. All are means over heads; the JSON file has each head."
        )
        rows = [_row("layer", "invariant", "explained", "KL without", "KL fitted"), _row(*["---"] * 5)]
        for number, layer in enumerate(self.fit.layers, 1):
            numbers = (layer.invariant, layer.explained, layer.divergence_without, layer.divergence)
            rows.append(_row(str(number), *(_three(_mean(some)) for some in numbers)))
        parts.append("\n".join(rows))
        if pictures:
            parts.append(
                f"![What was measured and fitted over distance]({TABLES})\n\n![Explained share by layer and head]({SHARES})"
            )
        if self.distillation is not None:
            parts += section(self.distillation, pictures)
        if self.candidates:
            parts.append("## Encodings that were tried")
            rows = [_row("encoding", "explained", "pooled cosine", "beyond", "mean"), _row(*["---"] * 5)]
            for one in self.candidates:
                rows.append(
                    _row(
                        f"`{json.dumps(one.rel_pos)}`",
                        _three(one.explained),
                        _pairs(one.similarity.pooled),
                        _pairs(one.similarity.beyond) or "no text",
                        _three(one.rank_value),
                    )
                )
            parts.append("\n".join(rows))
        return "\n\n".join(parts) + "\n"

    def _told(self) -> list[str]:
        corrected = [str(n) for n, layer in enumerate(self.fit.layers, 1) if layer.corrected]
        return [
            "kept: every weight that has nothing to do with positions, but for these:",
            *(f"folded: {told}" for told in self.fit.folded),
            f"corrected, so that the mean of what comes out stays: the end of layers {', '.join(corrected) or 'none'}",
            f"fitted: `{json.dumps(self.rel_pos)}`",
            "dropped: the rest of the absolute positions",
        ]

    def write(self, folder: Path) -> None:
        """Write the report and its pictures to ``folder``."""
        pictures = importlib.util.find_spec("matplotlib") is not None
        if pictures:
            _tables(self.fit.layers).savefig(folder / TABLES)
            _shares(self.fit.layers).savefig(folder / SHARES)
            if self.distillation is not None:
                curves(self.distillation).savefig(folder / PICTURE)
        (folder / MARKDOWN).write_text(self.markdown(pictures), encoding="utf-8")
        (folder / JSON).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _pairs(values: dict[int, float]) -> str:
    return ", ".join(f"{value:.4g} at {length}" for length, value in values.items())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tables(layers: list[LayerFit]) -> "Figure":
    """For each layer the measured mean at each distance (dots) and the fitted table (lines), a colour for each head."""
    from matplotlib.figure import Figure

    columns = min(3, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    for number, (axes, layer) in enumerate(
        zip(figure.subplots(rows, columns, squeeze=False).flat, layers, strict=False)
    ):
        size = (layer.measured.shape[1] + 1) // 2
        distances = torch.arange(1 - size, size)
        near = distances.abs() <= min(64, size)
        for head in range(len(layer.measured)):
            measured = layer.measured[head][near]
            if layer.fitted is not None:
                line = layer.fitted[head][near].double()
                line = line.masked_fill(~line.isfinite(), torch.nan)
                seen = measured.isfinite() & line.isfinite()
                line = line - (line - measured)[seen].mean()
                axes.plot(distances[near].numpy(), line.numpy(), linewidth=1, color=f"C{head % 10}")
            axes.plot(distances[near].numpy(), measured.numpy(), ".", markersize=1.5, color=f"C{head % 10}", alpha=0.6)
        axes.set_title(f"layer {number + 1}", fontsize="small")
        axes.tick_params(labelsize="x-small")
    figure.supxlabel("distance: query slot − key slot", fontsize="small")
    figure.supylabel("score with − without absolute positions", fontsize="small")
    return figure


def _shares(layers: list[LayerFit]) -> "Figure":
    """Explained shares of each layer and head: of a free table over distance, and of the encoding."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(layers) + 1.6), layout="constrained")
    pair = figure.subplots(1, 2)
    for axes, title, values in zip(
        pair,
        ("a free table over distance", "the encoding, after the fit"),
        ([layer.invariant for layer in layers], [layer.explained for layer in layers]),
        strict=True,
    ):
        image = axes.imshow(values, vmin=0.0, vmax=1.0, aspect="auto")
        axes.set(xlabel="head", ylabel="layer", yticks=range(len(layers)), yticklabels=range(1, len(layers) + 1))
        axes.set_title(title, fontsize="small")
    figure.colorbar(image, ax=pair, label="share of variance")
    return figure
