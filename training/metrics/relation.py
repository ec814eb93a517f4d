"""The official score of SemEval-2010 Task 8 (Hendrickx et al. 2010): macro F1 over the nine relations, direction counting, without "Other"."""

from collections import Counter
from typing import Any

import datasets
import evaluate


class Relation(evaluate.Metric):
    """predictions, references: labels such as ``Cause-Effect(e1,e2)`` or ``Other``.

    As in the official scorer's "(9+1)-way evaluation taking directionality into account": the two directions of a relation are one class, but
    a prediction with the wrong direction is right for neither. Relations that neither side has are left out of the mean.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="https://aclanthology.org/S10-1006",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any, other: str = "Other") -> dict[str, float]:
        def relation(label: str) -> str:
            return label.partition("(")[0]

        right = Counter(relation(a) for a, b in zip(predictions, references, strict=True) if a == b)
        given, wanted = Counter(map(relation, predictions)), Counter(map(relation, references))
        names = sorted({*given, *wanted} - {other})
        f1 = {name: 2 * right[name] / (given[name] + wanted[name]) for name in names}
        return {
            "macro_f1": 100 * sum(f1.values()) / len(names) if names else 0.0,
            "accuracy": 100 * sum(right.values()) / len(references),
            "total": len(references),
        }
