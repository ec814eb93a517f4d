"""Unlabelled and labelled attachment score of dependency trees."""

from typing import Any

import datasets
import evaluate


class Dependencies(evaluate.Metric):
    """predictions, references: ``{"head": [...], "deprel": [...]}`` a sentence, head 0 for the root. All words count, punctuation too. ``universal``: compare
    labels up to their subtype (``nmod:poss`` as ``nmod``), as the CoNLL 2018 evaluation does."""

    def _info(self) -> evaluate.MetricInfo:
        tree = {
            "head": datasets.Sequence(datasets.Value("int64")),
            "deprel": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="https://aclanthology.org/K18-2001",
            features=datasets.Features({"predictions": tree, "references": tree}),
        )

    def _compute(self, predictions: Any, references: Any, universal: bool = True) -> dict[str, float]:
        def label(text: str) -> str:
            return text.partition(":")[0] if universal else text

        words = heads = labelled = 0
        for number, (found, wanted) in enumerate(zip(predictions, references, strict=True)):
            if len(found["head"]) != len(wanted["head"]) or len(found["deprel"]) != len(wanted["deprel"]):
                raise ValueError(
                    f"sentence {number} has {len(wanted['head'])} words but {len(found['head'])} predicted"
                )
            for a, b, x, y in zip(found["head"], wanted["head"], found["deprel"], wanted["deprel"], strict=True):
                words += 1
                heads += a == b
                labelled += a == b and label(x) == label(y)
        if not words:
            raise ValueError("the sentences have no words")
        return {"uas": 100 * heads / words, "las": 100 * labelled / words, "words": words}
