"""Accuracy, macro F1 and Matthews' correlation coefficient of class numbers, by scikit-learn."""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


class Classification(evaluate.Metric):
    """predictions, references: class numbers. Gives percentages ``accuracy`` and ``macro_f1`` (over the classes that occur), ``mcc`` from -100 to 100, ``total``."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {
            "accuracy": 100 * float(accuracy_score(references, predictions)),
            "macro_f1": 100 * float(f1_score(references, predictions, average="macro", zero_division=0)),
            "mcc": 100 * float(matthews_corrcoef(references, predictions)),
            "total": len(references),
        }
