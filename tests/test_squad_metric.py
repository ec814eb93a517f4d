"""Exact match and F1, against values worked out by hand from the two official scripts (evaluate-v1.1.py, evaluate-v2.0.py)."""

from types import SimpleNamespace

import pytest
from metrics.squad import exact, f1, normalise, squad_scores


def example(name, *answers):
    return SimpleNamespace(id=name, answers=answers)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat's\tPaw!", "cats paw"),
        ("U.S.A.", "usa"),
        ("a", ""),
        ("The An a", ""),
        ("...", ""),
        ("", ""),
        # articles are words: not parts of words, nor of numbers
        ("another theme, an athlete", "another theme athlete"),
        # a word that punctuation cuts in pieces is joined before articles are looked for
        ("a-b the-end", "ab theend"),
        ("'the' end", "end"),
        # only ASCII punctuation goes
        ("“Quoted” – text…", "“quoted” – text…"),
        ("¿Qué?", "¿qué"),
        # an article beside other punctuation is still a word of its own, for \b stands there
        ("“the” end", "“ ” end"),
        ("ÉCOLE", "école"),
        ("İstanbul", "i̇stanbul"),
        ("x y　z\n", "x y z"),
        ("5,000", "5000"),
        ("$5 + 3", "5 3"),
    ],
)
def test_normalise(text, normalised):
    assert normalise(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "reference", "em", "score"),
    [
        ("Denver Broncos", "The Denver Broncos!", 1.0, 1.0),
        # 1 common word, precision 1/2, recall 1/3
        ("Denver Colts", "Denver Broncos team", 0.0, 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        # bags: one of the two "new" is common, or both
        ("new new york", "new york city", 0.0, 2 / 3),
        ("new new york", "new new city", 0.0, 2 / 3),
        ("york new", "new york", 0.0, 1.0),
        ("Paris", "London", 0.0, 0.0),
        ("", "London", 0.0, 0.0),
        ("the", "London", 0.0, 0.0),
        ("London", "!", 0.0, 0.0),
        ("“Paris”", "Paris", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("version_2", [False, True])
def test_exact_and_f1(prediction, reference, em, score, version_2):
    assert exact(prediction, reference) == em
    assert f1(prediction, reference, version_2=version_2) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(("prediction", "reference"), [("", ""), ("the", "an"), ("?", "")])
def test_nothing_against_nothing_is_where_the_scripts_differ(prediction, reference):
    # v1.1 counts common words and returns 0 when there are none; v2.0 asks first whether one side has no word
    assert exact(prediction, reference) == 1.0
    assert f1(prediction, reference, version_2=False) == 0.0
    assert f1(prediction, reference, version_2=True) == 1.0


def test_the_best_reference_counts_for_each_measure_by_itself():
    examples = [example("a", "Saint Bernadette Soubirous", "the saint"), example("b", "1858")]
    scores = squad_scores({"a": "Bernadette Soubirous", "b": "in 1858"}, examples)
    # a: 2 of 2 and 2 of 3 words, F1 0.8; b: 1 of 2 and 1 of 1, F1 2/3
    assert scores == {"exact_match": 0.0, "f1": pytest.approx(100 * (0.8 + 2 / 3) / 2), "total": 2}
    assert squad_scores({"a": "Saint", "b": "1858."}, examples) == {"exact_match": 100.0, "f1": 100.0, "total": 2}


def test_v1_keeps_references_that_normalise_to_nothing():
    # "A" is a grade here; nothing is common to nothing, so F1 is 0 though the match is exact
    assert squad_scores({"a": "A"}, [example("a", "A")]) == {"exact_match": 100.0, "f1": 0.0, "total": 1}
    assert squad_scores({"a": ""}, [example("a", "A", "grade A")])["exact_match"] == 100.0


def test_v2_by_hand():
    examples = [
        example("right", "the red house", "house"),
        example("empty but answerable", "house"),
        example("no answer, said so"),
        example("no answer, but one given"),
        # the reference that has no word is dropped, the other stays
        example("one reference has no word", "A", "grade"),
        # dropped references leave the empty one, but the question counts as answerable
        example("no reference has a word", "The"),
    ]
    predictions = {
        "right": "red house",
        "empty but answerable": "",
        "no answer, said so": "",
        "no answer, but one given": "house",
        "one reference has no word": "",
        "no reference has a word": "",
    }
    scores = squad_scores(predictions, examples, version_2=True)
    assert scores == {
        "exact_match": pytest.approx(100 * 3 / 6),
        "f1": pytest.approx(100 * 3 / 6),
        "total": 6,
        "has_answer_exact_match": pytest.approx(100 * 2 / 4),
        "has_answer_f1": pytest.approx(100 * 2 / 4),
        "has_answer_total": 4,
        "no_answer_exact_match": pytest.approx(100 * 1 / 2),
        "no_answer_f1": pytest.approx(100 * 1 / 2),
        "no_answer_total": 2,
    }


def test_v2_partial_overlap_and_words_that_normalise_away():
    examples = [example("a", "red house"), example("b")]
    scores = squad_scores({"a": "the old house", "b": "The"}, examples, version_2=True)
    assert scores["has_answer_f1"] == pytest.approx(50.0)
    assert scores["has_answer_exact_match"] == 0.0
    # an article alone is no answer either
    assert scores["no_answer_f1"] == scores["no_answer_exact_match"] == 100.0


def test_v2_names_only_the_kinds_of_question_there_are():
    assert set(squad_scores({"a": ""}, [example("a")], version_2=True)) == {
        "exact_match",
        "f1",
        "total",
        "no_answer_exact_match",
        "no_answer_f1",
        "no_answer_total",
    }


def test_a_prediction_for_another_question_is_ignored():
    assert squad_scores({"a": "x", "other": "y"}, [example("a", "x")])["total"] == 1


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        squad_scores({}, [])
    with pytest.raises(ValueError, match="2 questions have no prediction, such as 'b'"):
        squad_scores({"a": "x"}, [example("a", "x"), example("b", "y"), example("c", "z")])
    with pytest.raises(ValueError, match="1 questions have no answer, such as 'b': use version_2"):
        squad_scores({"a": "x", "b": ""}, [example("a", "x"), example("b")])
