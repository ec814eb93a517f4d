"""F1 over the facts of documents, and without those that the training data tell, as DocRED's evaluation has it (Yao et al. 2019)."""

from typing import Any

import datasets
import evaluate


class DocumentRelations(evaluate.Metric):
    """predictions: ``{"h": [...], "t": [...], "r": [...]}`` a document, the facts found; references: the same with ``known``, whether the training data have a fact of that relation
    between entities of these names.

    ``ign_f1`` leaves known facts that were found out of the precision: ``(right - known) / (found - known)``, and takes the recall as it is.
    """

    def _info(self) -> evaluate.MetricInfo:
        number, text = datasets.Sequence(datasets.Value("int64")), datasets.Sequence(datasets.Value("string"))
        facts = {"h": number, "t": number, "r": text}
        references = {**facts, "known": datasets.Sequence(datasets.Value("bool"))}
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="https://aclanthology.org/P19-1074",
            features=datasets.Features({"predictions": facts, "references": references}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        found = wanted = right = known = 0
        for mine, theirs in zip(predictions, references, strict=True):
            given = set(zip(mine["h"], mine["t"], mine["r"], strict=True))
            facts = dict(zip(zip(theirs["h"], theirs["t"], theirs["r"], strict=True), theirs["known"], strict=True))
            hits = given & set(facts)
            found, wanted, right = found + len(given), wanted + len(facts), right + len(hits)
            known += sum(facts[fact] for fact in hits)
        precision, recall = _share(right, found), _share(right, wanted)
        return {
            "f1": 100 * _f1(precision, recall),
            "ign_f1": 100 * _f1(_share(right - known, found - known), recall),
            "precision": 100 * precision,
            "recall": 100 * recall,
            "facts": wanted,
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
