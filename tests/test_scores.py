"""The metric modules: values worked out by hand, one process beside another, folders that cannot be written, no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scores
from scores import load_metric, metric_names, score

SCRIPT = "import sys; from scores import score; print(score('classification', [0, 1], [0, 1])['accuracy'])"


def test_what_there_is():
    assert metric_names() == sorted(path.stem for path in scores.FOLDER.glob("*.py"))
    for name in metric_names():
        assert load_metric(name).description
    with pytest.raises(ValueError, match="unknown metric 'bleurt'; valid: classification, dependencies, "):
        score("bleurt", ["a"], ["a"])


@pytest.mark.parametrize("name", metric_names())
def test_nothing_and_unequal_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: there is nothing to score"):
        score(name, [], [])
    with pytest.raises(ValueError, match=f"{name}: 2 predictions for 1 references"):
        score(name, ["a", "b"], ["a"])


def test_classification():
    found = score("classification", [0, 0, 1, 1, 2], [0, 1, 1, 1, 2])
    # F1: 2/3, 4/5 and 1; of the confusion matrix, (4 * 5 - 9) / sqrt((25 - 9) * (25 - 11))
    assert found == {
        "accuracy": pytest.approx(80),
        "macro_f1": pytest.approx(100 * (2 / 3 + 4 / 5 + 1) / 3),
        "mcc": pytest.approx(100 * (4 * 5 - (2 * 1 + 2 * 3 + 1 * 1)) / ((25 - 9) * (25 - 11)) ** 0.5),
        "total": 5,
    }
    assert isinstance(found["total"], int)
    # guessing one class
    assert score("classification", [1, 1], [0, 1])["mcc"] == 0.0


def test_tagging():
    wanted = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    found = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "B-LOC"]]
    # of 3 spans 2 are found, of 3 given 2 are right
    assert score("tagging", found, wanted) == {
        "accuracy": pytest.approx(100 * 4 / 6),
        "precision": pytest.approx(200 / 3),
        "recall": pytest.approx(200 / 3),
        "f1": pytest.approx(200 / 3),
        "total": 2,
    }
    with pytest.raises(ValueError, match="sentence 0 has 4 tags but 3 predicted"):
        score("tagging", [found[0][:3], found[1]], wanted)


def test_translation():
    wanted = [["the cat sat on the mat"], ["it is cold"]]
    right = score("translation", ["the cat sat on the mat", "it is cold"], wanted)
    assert right == {"bleu": pytest.approx(100), "chrf": pytest.approx(100), "exact_match": 100.0, "total": 2}
    # precisions 5/6, 3/5, 1/4 and 1/6 smoothed half of 1/3 matches; sentence of the reference's length
    found = score("translation", ["the cat sat in the mat"], [["the cat sat on the mat"]])
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    assert found["exact_match"] == 0.0
    assert score("translation", ["b"], [["a", "b"]])["exact_match"] == 100.0
    with pytest.raises(ValueError, match=r"the same number of references, at least 1; found \[1, 2\]"):
        score("translation", ["a", "b"], [["a"], ["a", "b"]])


def test_summarisation():
    found = score("summarisation", ["the cats sat"], [["a dog", "the cat sat there"]])
    # stemmed: 3 of 3 and 3 of 4 words, 2 of 2 and 2 of 3 pairs
    assert found["rouge1"] == pytest.approx(100 * 6 / 7)
    assert found["rouge2"] == pytest.approx(80)
    assert found["rougeL"] == pytest.approx(100 * 6 / 7)
    assert score("summarisation", ["the cats sat"], [["the cat sat there"]], stem=False)["rouge1"] == pytest.approx(
        400 / 7
    )
    with pytest.raises(ValueError, match="prediction 0 has no reference"):
        score("summarisation", ["a"], [[]])


def test_exact_match():
    found = score("exact_match", ["jump jump", "walk", ""], ["jump jump", "walk left", ""])
    assert found == {"exact_match": pytest.approx(200 / 3), "word_accuracy": pytest.approx(75), "total": 3}


def test_distinct():
    # words: a b a | a b; pairs: ab ba | ab
    assert score("distinct", ["a b a", "a b"], ["", ""]) == {
        "distinct_1": pytest.approx(40),
        "distinct_2": pytest.approx(200 / 3),
        "words": 2.5,
    }
    assert score("distinct", ["", ""], ["", ""])["distinct_1"] == 0.0


def test_relation():
    wanted = ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)", "Other", "Other"]
    found = ["A(e1,e2)", "A(e1,e2)", "Other", "B(e2,e1)", "Other"]
    # A: 1 right of 2 given and 2 wanted; B: none; Other does not count
    assert score("relation", found, wanted) == {
        "macro_f1": pytest.approx(25),
        "accuracy": pytest.approx(40),
        "total": 5,
    }
    # one never given, one never there
    assert score("relation", ["C(e1,e2)", "A(e1,e2)"], ["D(e1,e2)", "A(e1,e2)"])["macro_f1"] == pytest.approx(100 / 3)
    assert score("relation", ["Other"], ["Other"])["macro_f1"] == 0.0


def test_dependencies():
    wanted = [{"head": [2, 0, 2], "deprel": ["nmod:poss", "root", "obj"]}, {"head": [0], "deprel": ["root"]}]
    found = [{"head": [2, 0, 1], "deprel": ["nmod", "root", "obj"]}, {"head": [0], "deprel": ["obj"]}]
    assert score("dependencies", found, wanted) == {"uas": pytest.approx(75), "las": pytest.approx(50), "words": 4}
    assert score("dependencies", found, wanted, universal=False)["las"] == pytest.approx(25)
    with pytest.raises(ValueError, match="sentence 0 has 3 words but 1 predicted"):
        score("dependencies", found[::-1], wanted)


def test_squad():
    references = [{"id": "a", "answers": ["the house", "home"]}, {"id": "b", "answers": []}]
    found = score("squad", [{"id": "a", "text": "house"}, {"id": "b", "text": ""}], references, version_2=True)
    assert found["exact_match"] == 100.0
    assert found["no_answer_total"] == 1


@pytest.mark.slow
def test_processes_at_once_in_a_folder_that_cannot_be_written(tmp_path):
    """Each starts with nothing cached, and none may meet the network."""
    source = tmp_path / "training"
    shutil.copytree(scores.FOLDER.parent, source, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*source.rglob("*"), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    settings = {
        **os.environ,
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in started:
        output, error = process.communicate(timeout=120)
        assert (process.returncode, output.strip()) == (0, "100.0"), error
    assert not [path for path in source.rglob("*") if path.suffix not in (".py", ".yaml", "")]
    assert Path(tmp_path / "home").exists()
