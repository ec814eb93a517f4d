"""BLEU and chrF of a corpus (sacrebleu), and exact match."""

from typing import Any

import datasets
import evaluate
import sacrebleu


class Translation(evaluate.Metric):
    """predictions: texts; references: a list of texts each, of one number throughout. ``tokenize``: sacrebleu's name of a tokenizer."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="arXiv 1804.08771 (sacrebleu)",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def _compute(self, predictions: Any, references: Any, tokenize: str = "13a") -> dict[str, float]:
        counts = {len(texts) for texts in references}
        if len(counts) != 1 or not counts.isdisjoint({0}):
            raise ValueError(f"each prediction needs the same number of references, at least 1; found {sorted(counts)}")
        streams = list(map(list, zip(*references, strict=True)))
        right = sum(found in wanted for found, wanted in zip(predictions, references, strict=True))
        return {
            "bleu": sacrebleu.corpus_bleu(predictions, streams, tokenize=tokenize).score,
            "chrf": sacrebleu.corpus_chrf(predictions, streams).score,
            "exact_match": 100 * right / len(references),
            "total": len(references),
        }
