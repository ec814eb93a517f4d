"""Precision, recall and F1 of labelled spans (IOB tags), by seqeval."""

from typing import Any

import datasets
import evaluate
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score


class Tagging(evaluate.Metric):
    """predictions, references: a list of tags a sentence, such as ``["B-PER", "O"]``. Gives percentages and the number of sentences ``total``."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="https://github.com/chakki-works/seqeval",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        for number, (found, wanted) in enumerate(zip(predictions, references, strict=True)):
            if len(found) != len(wanted):
                raise ValueError(f"sentence {number} has {len(wanted)} tags but {len(found)} predicted")
        return {
            "accuracy": 100 * float(accuracy_score(references, predictions)),
            "precision": 100 * float(precision_score(references, predictions, zero_division=0)),
            "recall": 100 * float(recall_score(references, predictions, zero_division=0)),
            "f1": 100 * float(f1_score(references, predictions, zero_division=0)),
            "total": len(references),
        }
