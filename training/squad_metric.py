"""Exact match and F1 of extractive answers, as SQuAD's official evaluation defines them (Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv
1806.03822): over normalised text, the best of all reference answers counts; with unanswerable questions, an empty prediction is right
exactly when there is no answer."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks, in that order."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, reference: str) -> float:
    """1.0 when both are the same text once normalised, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words of both as bags; without words on one side, 1.0 when there are none on both."""
    left, right = normalise(prediction).split(), normalise(reference).split()
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def squad_scores(
    predictions: Mapping[str, str], examples: Sequence[Any], *, version_2: bool = False
) -> dict[str, float]:
    """Percentages ``exact_match`` and ``f1`` over ``examples`` (with ``id`` and ``answers``), and their number ``total``.

    With ``version_2`` also both for the questions that have an answer (``has_answer_``) and those that have none (``no_answer_``). ValueError
    names questions without a prediction, and an empty set.
    """
    if not examples:
        raise ValueError("there are no examples to score")
    missing = [example.id for example in examples if example.id not in predictions]
    if missing:
        raise ValueError(f"{len(missing)} questions have no prediction, such as {missing[0]!r}")
    rows = []
    for example in examples:
        references = [text for text in example.answers if normalise(text)] or [""]
        prediction = predictions[example.id]
        rows.append(
            (
                bool(example.answers),
                max(exact(prediction, r) for r in references),
                max(f1(prediction, r) for r in references),
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
