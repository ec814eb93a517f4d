"""The classification task from files to a saved model, and the ways in which it refuses."""

import json
import random
import sys
from pathlib import Path

import classification
import pytest
import torch
from arguments import parse_arguments
from classification import ClassificationArguments, Features, class_of, classes_of, in_order, prepare, spread
from scores import score
from script import main, run
from sources import DataError, read_rows
from toy_qa import save_tiny_bert, word_tokenizer, write
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(1)

TRAINING = Path(classification.__file__).parent
TINY = ["--config", str(TRAINING / "configs" / "tiny_classification.yaml")]
DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def texts(count, seed=0, words=12):
    """Sorted by class, as data often are: is it of rivers or of houses?"""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = "house" if number < count // 2 else "river"
        chosen = [chance.choice(["where", "does", "lives", "in", "works", "near", "old"]) for _ in range(words)]
        chosen[chance.randrange(4)] = label
        rows.append({"text": " ".join(chosen), "label": label})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    return {
        "model": save_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "train": write(folder / "train.jsonl", texts(64)),
        "dev": write(folder / "dev.jsonl.gz", texts(20, seed=1)),
    }


def words(files, output, *more, **settings):
    settings = {
        "train_file": files["train"],
        "validation_file": files["dev"],
        "output_dir": output,
        "tracker": "none",
        **settings,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(more)


def trained(*flags):
    return run(parse_arguments(ClassificationArguments, list(flags)), prepare)


def saved(folder):
    return json.loads((folder / "predictions.json").read_text()), json.loads((folder / "metrics.json").read_text())


GPT2 = {
    "model": "gpt2",
    "tokenizer": "bpe",
    "model_config": '{"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0}',
}


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_from_files_to_a_pipeline(files, tmp_path, family, capsys):
    """The tiny recipe learns its two classes; what is saved says in a pipeline what was measured."""
    metrics = trained(*TINY, *words(files, tmp_path, **(GPT2 if family == "decoder" else {})))
    assert metrics["accuracy"] > 90
    assert metrics["truncated"] == 0
    assert "2 classes; 20 texts to evaluate, the longest of" in capsys.readouterr().out
    predictions, kept = saved(tmp_path)
    assert kept == metrics
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    rows = texts(20, seed=1)
    for found, said in zip(classify([row["text"] for row in rows]), predictions, strict=True):
        assert found["label"] == said["label"]
        assert found["score"] == pytest.approx(said["score"], abs=1e-4)
    right = sum(said["label"] == row["label"] for said, row in zip(predictions, rows, strict=True))
    assert metrics["accuracy"] == pytest.approx(5 * right)
    assert "text-classification" in (tmp_path / "README.md").read_text()


def test_pretrained_weights_and_a_new_head_for_other_classes(files, tmp_path):
    settings = {"model": files["model"], "max_steps": 2, "max_length": 32}
    trained(*words(files, tmp_path / "two", **settings))
    three = [{**row, "label": number % 3} for number, row in enumerate(texts(60))]
    settings |= {"model": tmp_path / "two", "train_file": write(tmp_path / "three.jsonl", three)}
    settings |= {"validation_file": settings["train_file"]}
    trained(*words(files, tmp_path / "out", "--rel_pos", "t5", "--absolute", "drop", **settings))
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == {0: "0", 1: "1", 2: "2"}


def test_texts_longer_than_the_table_of_positions(files, tmp_path, monkeypatch, capsys):
    """What decides stands at the end: out of reach of the stock model, which says why; in reach of ours."""
    rows = [{"text": "old " * 60 + row["text"], "label": row["label"]} for row in texts(40, words=5)]
    both = {"train_file": write(tmp_path / "long.jsonl", rows), "validation_file": tmp_path / "long.jsonl"}
    flags = words(files, tmp_path / "out", model=files["model"], max_length=80, max_steps=2, **both)
    monkeypatch.setattr(sys, "argv", ["classification.py", *flags])
    with pytest.raises(SystemExit) as caught:
        main(ClassificationArguments, prepare, classification.__doc__)
    assert caught.value.code == 1
    assert "max_length=80 is more than the 48 tokens that the model reads" in capsys.readouterr().err
    assert trained(*flags, "--rel_pos", "t5", "--absolute", "drop")["truncated"] == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 80
    assert trained(*flags, "--max_length", "40", "--overwrite_output_dir", "true")["truncated"] == 100
    assert "40 texts to train on, the longest of 67 tokens, 40 of them (100.0 %) cut to 40" in capsys.readouterr().out


def test_a_stream_learns_the_same_classes(files, tmp_path):
    flags = words(files, tmp_path, max_steps=60, shuffle_buffer=64)
    assert trained(*TINY, *flags, "--streaming", "true", "--classes", "river, house")["accuracy"] > 90
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.id2label == {0: "river", 1: "house"}


def test_features_are_cut_and_counted():
    tokenizer = word_tokenizer()
    features = Features(tokenizer, 8, {"a": 0, "b": 1})
    whole = features("x", "where does old", "b")
    assert whole == {"input_ids": tokenizer("where does old")["input_ids"], "labels": 1}
    cut = features("x", "where does old " * 4, "a")["input_ids"]
    assert (len(cut), cut[0], cut[-1]) == (8, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (features.seen, features.cut, features.longest, features.share_cut) == (2, 1, 14, 50)
    with pytest.raises(DataError, match=r"f, line 3: no training row is of the class 'c'; classes: a, b$"):
        features("f, line 3", "where", "c")


def test_limits_are_spread_and_classes_ordered():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 5) == spread([1, 2], None) == [1, 2]
    assert in_order(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert in_order(["b", "10", "a"]) == ["10", "a", "b"]
    assert [class_of({"y": value}, "y", "") for value in (3, "3", True, "x")] == ["3", "3", "true", "x"]
    for value, message in ((1.0, "is float, not the name"), ([1], "is list"), (None, "is missing"), (" ", "is empty")):
        with pytest.raises(DataError, match=f"f, line 2: the field 'y' {message}"):
            class_of({"y": value}, "y", "f, line 2")


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ([], None, "there are no rows to train on"),
        (["a"] * 3, None, "all 3 rows are of the class 'a'; there is nothing to learn"),
        (list(map(str, range(11))), None, "each of the 11 rows has a class of its own; is label_field the right field"),
        (["a", "b", "b", "c"], ["b", "d"], "rows of classes that classes leaves out: a, c"),
    ],
)
def test_classes_that_cannot_be(labels, given, message):
    with pytest.raises(DataError, match=message):
        classes_of(labels, "f", given)


@pytest.mark.parametrize(
    ("train", "dev", "more", "message"),
    [
        (None, "", [], "(validation): there are no rows"),
        (None, [{"text": "old", "label": "house"}] * 2, [], "(validation): all 2 rows are of the class 'house'"),
        (None, [{"text": "old", "label": "tree"}], [], "dev.jsonl, line 1: no training row is of the class 'tree'"),
        ([{"text": "old", "label": "house"}] * 2, None, [], "all 2 rows are of the class 'house'"),
        ('{"text": "old", "label": 1}\n{"text": "", "label": 0}\n', None, [], "line 2: the field 'text' is empty"),
        (
            '{"text": "old", "label": 1}\n{"text": "x"}\n',
            None,
            [],
            "line 2: the field 'label' is missing; fields: text",
        ),
        ('{"text": "old", "label": 1}\n{"text"\n', None, [], "line 2: not valid JSON"),
        (None, None, ["--validation_file", "", "--validation_share", "0.2"], "data sorted by class need a file"),
    ],
)
def test_data_that_cannot_be_used_end_with_one_line(files, tmp_path, monkeypatch, capsys, train, dev, more, message):
    chosen = dict(files)
    for name, content in (("train", train), ("dev", dev)):
        if content is not None:
            chosen[name] = write(tmp_path / f"{name}.jsonl", content)
    monkeypatch.setattr(sys, "argv", ["classification.py", *TINY, *words(chosen, tmp_path / "out", *more)])
    with pytest.raises(SystemExit) as caught:
        main(ClassificationArguments, prepare, classification.__doc__)
    assert caught.value.code == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label_feild", "x"], "the flag 'label_feild' is unknown; did you mean 'label_field'?"),
        (["--max_length", "4"], "max_length=4 is not valid: it must be at least 8"),
        (["--best_metric", "f1"], "best_metric='f1' is not valid: it must be one of accuracy, macro_f1, mcc"),
        (["--classes", "a,a"], "classes='a,a' is not valid: give two names or more, each once"),
    ],
)
def test_wrong_usage(capsys, more, message):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(ClassificationArguments, more)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_scores_of_a_known_answer():
    found = score("classification", [0, 1, 1, 2, 2, 2], [0, 1, 2, 2, 2, 1])
    assert found["accuracy"] == pytest.approx(400 / 6)
    assert found["macro_f1"] == pytest.approx(100 * (1 + 1 / 2 + 2 / 3) / 3)
    assert found["total"] == 6


@pytest.mark.parametrize(
    ("train", "dev", "field", "sizes", "classes"),
    [
        ("banking77/train.csv", "banking77/test.csv", "category", (10003, 3080), 77),
        ("sentence_polarity/train.jsonl.gz", "sentence_polarity/validation.jsonl.gz", "label", (8528, 1066), 2),
        ("movie_reviews/train.jsonl.gz", "movie_reviews/validation.jsonl.gz", "label", (1400, 200), 2),
    ],
)
def test_the_real_sets(train, dev, field, sizes, classes):
    if not (DATA / train).exists():
        pytest.skip(f"{DATA / train} is not here")
    found = {}
    for part, name in (("train", train), ("validation", dev)):
        arguments = ClassificationArguments(train_file=str(DATA / name), label_field=field)
        found[part] = list(arguments.texts("train"))
        assert len(found[part]) == len(list(read_rows(str(DATA / name)))) == sizes[part == "validation"]
    names = classes_of((label for _, _, label in found["train"]), train, None)
    assert len(names) == classes
    features = Features(word_tokenizer(), 64, {name: number for number, name in enumerate(names)})
    for one in spread(found["validation"], 40):
        assert 2 < len(features(*one)["input_ids"]) <= 64
