"""The invented questions of the demonstration: valid rows, the same for the same seed, and not answerable without order."""

import json
import re

import pytest
from qa_data import read_examples
from synthetic_qa import make_rows

SHAPES = ((1, 0), (3, 2), (8, 0), (26, 30))


def names_in(context):
    people = re.findall(r"\b(?!The )[A-Z][a-z]+ (?!House)[A-Z][a-z]+\b", context)
    things = re.findall(r"\b[Tt]he ([A-Z][a-z]+(?: House)? of [A-Z][a-z]+)", context)
    return set(people) | set(things)


def test_rows_are_valid_squad(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(200, seed=0, shapes=SHAPES)))
    examples = read_examples(str(path), split="train")
    assert len({example.id for example in examples}) == 200
    assert len({example.question for example in examples}) > 150
    assert len({example.answers for example in examples}) > 80


def test_equal_arguments_give_equal_rows():
    assert make_rows(30, seed=3, shapes=SHAPES) == make_rows(30, seed=3, shapes=SHAPES)
    assert make_rows(30, seed=3, shapes=SHAPES) != make_rows(30, seed=4, shapes=SHAPES)


def test_held_out_names_occur_nowhere_else():
    def surnames(held_out):
        rows = make_rows(400, seed=0, shapes=SHAPES, held_out=held_out)
        return {name.split()[-1] for row in rows for name in names_in(row["context"])}

    trained, held_out = surnames(False), surnames(True)
    assert trained
    assert held_out
    assert not trained & held_out


@pytest.mark.parametrize("seed", range(3))
def test_the_subject_was_named_last_before_the_answer(seed):
    """Whoever reads "she" knows who that is only from the order of the sentences."""
    pronouns = 0
    for row in make_rows(200, seed=seed, shapes=SHAPES):
        before = row["context"][: row["answers"]["answer_start"][0]]
        sentence = before.rpartition(". ")[2]
        subjects = sorted(names_in(row["context"]), key=before.rfind)
        asked = next(name for name in subjects if name in row["question"])
        last = max(names_in(row["context"]), key=before.rfind)
        # a sentence may name its subject after the answer's place: "The launch of X took place in ..." never does
        assert last == asked, row
        pronouns += asked not in sentence
    assert pronouns > 40
