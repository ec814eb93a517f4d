"""Scores by the metric modules in ``metrics/``: `evaluate` modules that wrap well-kept libraries, loaded by path, so that no network is needed."""

import functools
from pathlib import Path
from typing import Any

import evaluate

FOLDER = Path(__file__).parent / "metrics"


def metric_names() -> list[str]:
    """The metrics that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


@functools.cache
def load_metric(name: str) -> Any:
    """The metric module called ``name``; ValueError lists what there is. Results are kept in memory, so that processes do not meet in files."""
    if name not in metric_names():
        raise ValueError(f"unknown metric {name!r}; valid: {', '.join(metric_names())}")
    return evaluate.load(str(FOLDER / f"{name}.py"), keep_in_memory=True)


def score(name: str, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
    """What the metric ``name`` says of ``predictions`` against ``references``: numbers by name. ``options`` are the metric's own."""
    if not len(references):
        raise ValueError(f"{name}: there is nothing to score")
    if len(predictions) != len(references):
        raise ValueError(f"{name}: {len(predictions)} predictions for {len(references)} references")
    found = load_metric(name).compute(predictions=predictions, references=references, **options)
    return {key: value if isinstance(value, int) else float(value) for key, value in found.items()}
