"""The share of texts that are a reference to the last character, and of words that stand at the right place."""

from typing import Any

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """predictions: texts; references: texts. Gives percentages ``exact_match`` and ``word_accuracy`` (of the longer text's words), and ``total``."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        right = words = of = 0
        for found, wanted in zip(predictions, references, strict=True):
            right += found == wanted
            a, b = found.split(), wanted.split()
            words += sum(x == y for x, y in zip(a, b, strict=False))
            of += max(len(a), len(b))
        return {
            "exact_match": 100 * right / len(references),
            "word_accuracy": 100 * words / of if of else 100.0,
            "total": len(references),
        }
