"""Exact match and F1 of extractive answers, as SQuAD's two official evaluation scripts define them (Rajpurkar et al. 2016, arXiv 1606.05250;
2018, arXiv 1806.03822): over normalised text, the best of all reference answers counts. Where the scripts differ, ``version_2`` chooses."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import datasets
import evaluate

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and surplus blanks, in that order."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, reference: str) -> float:
    """1.0 when both are the same text once normalised, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def f1(prediction: str, reference: str, *, version_2: bool = False) -> float:
    """Harmonic mean of precision and recall over the words of both as bags.

    When neither has a word, v1.1 finds no common one and gives 0; v2.0 gives 1, for that is how an unanswerable question is answered right.
    """
    left, right = normalise(prediction).split(), normalise(reference).split()
    if not left and not right:
        return float(version_2)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def squad_scores(
    predictions: Mapping[str, str], examples: Sequence[Any], *, version_2: bool = False
) -> dict[str, float]:
    """Percentages ``exact_match`` and ``f1`` over ``examples`` (with ``id`` and ``answers``), and their number ``total``.

    With ``version_2`` also both for the questions that have an answer (``has_answer_``) and those that have none (``no_answer_``), an empty
    prediction being right exactly for the latter. ValueError names questions without a prediction, those without an answer unless
    ``version_2``, and an empty set.
    """
    if not examples:
        raise ValueError("there are no examples to score")
    missing = [example.id for example in examples if example.id not in predictions]
    if missing:
        raise ValueError(f"{len(missing)} questions have no prediction, such as {missing[0]!r}")
    unanswerable = [example.id for example in examples if not example.answers]
    if unanswerable and not version_2:
        raise ValueError(f"{len(unanswerable)} questions have no answer, such as {unanswerable[0]!r}: use version_2")
    rows = []
    for example in examples:
        references = list(example.answers)
        if version_2:
            references = [text for text in references if normalise(text)] or [""]
        prediction = predictions[example.id]
        rows.append(
            (
                bool(example.answers),
                max(exact(prediction, reference) for reference in references),
                max(f1(prediction, reference, version_2=version_2) for reference in references),
            )
        )

    def mean(chosen: list[tuple[bool, float, float]], prefix: str) -> dict[str, float]:
        return {
            f"{prefix}exact_match": 100 * sum(row[1] for row in chosen) / len(chosen),
            f"{prefix}f1": 100 * sum(row[2] for row in chosen) / len(chosen),
            f"{prefix}total": len(chosen),
        }

    scores = mean(rows, "")
    if version_2:
        for answerable, prefix in ((True, "has_answer_"), (False, "no_answer_")):
            if chosen := [row for row in rows if row[0] is answerable]:
                scores |= mean(chosen, prefix)
    return scores


class Squad(evaluate.Metric):
    """predictions: ``{"id", "text"}``; references: ``{"id", "answers"}`` with the texts of the answers; ``version_2``."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation="arXiv 1606.05250, 1806.03822",
            features=datasets.Features(
                {
                    "predictions": {"id": text, "text": text},
                    "references": {"id": text, "answers": datasets.Sequence(text)},
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, version_2: bool = False) -> dict[str, float]:
        examples = [SimpleNamespace(id=one["id"], answers=one["answers"]) for one in references]
        return squad_scores({one["id"]: one["text"] for one in predictions}, examples, version_2=version_2)
