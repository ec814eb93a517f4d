"""Distinct-1 and -2: the share of different words and pairs of words among all that were generated (Li et al. 2016, arXiv 1510.03055)."""

from itertools import pairwise
from typing import Any

import datasets
import evaluate


class Distinct(evaluate.Metric):
    """predictions: texts; references are not looked at. Gives percentages ``distinct_1`` and ``distinct_2``, and the mean number of words ``words``."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="arXiv 1510.03055",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        texts = [text.split() for text in predictions]
        words = [word for text in texts for word in text]
        pairs = [pair for text in texts for pair in pairwise(text)]
        return {
            "distinct_1": 100 * len(set(words)) / len(words) if words else 0.0,
            "distinct_2": 100 * len(set(pairs)) / len(pairs) if pairs else 0.0,
            "words": len(words) / len(texts),
        }
