"""ROUGE-1, -2 and -L of texts, with stemming, the best of several references counting (rouge-score)."""

from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer


class Summarisation(evaluate.Metric):
    """predictions: texts; references: a list of texts each. Gives percentages ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum`` (F1) and ``total``."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Any, references: Any, stem: bool = True) -> dict[str, float]:
        kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
        scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=stem)
        rows: list[dict[str, Any]] = []
        for found, wanted in zip(predictions, references, strict=True):
            if not wanted:
                raise ValueError(f"prediction {len(rows)} has no reference")
            rows.append(scorer.score_multi(list(wanted), found))
        means = {kind: 100 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in kinds}
        return {**means, "total": len(rows)}
