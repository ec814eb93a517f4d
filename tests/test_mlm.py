"""Masked language modelling from files to a saved model: masks, windows, perplexity by length, and the ways in which it refuses."""

import json
import math
import random
import sys
from pathlib import Path

import mlm
import numpy as np
import pytest
import torch
from arguments import parse_arguments, parse_numbers
from batches import Stream, batches_of
from loop import make_accelerator
from mlm import Masking, MLMArguments, evaluation_rows, found_again, joined, prepare, windows
from perplexity import perplexity
from script import main, run
from sources import DataError
from tokenizing import put_around
from toy_qa import byte_tokenizer, save_tiny_bert, word_tokenizer, write
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

torch.set_num_threads(1)

TRAINING = Path(mlm.__file__).parent
TINY = ["--config", str(TRAINING / "configs" / "tiny_mlm.yaml")]
DATA = Path(__file__).parent.parent.parent / "shared" / "data"


def lines(count, seed=0):
    """Documents with a heading, in which each word decides the next one."""
    chance = random.Random(seed)
    cycle = ["where", "does", "mira", "live", "near", "the", "old", "river", "house"]
    found = []
    for number in range(count):
        start = chance.randrange(9)
        found.append(f" = Title {number} = ")
        found += [" ".join(cycle[(start + i + 9 * j) % 9] for i in range(12)) for j in range(4)] + [""]
    return "\n".join(found)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    return {
        "model": save_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "train": write(folder / "train.txt.gz", lines(40)),
        "dev": write(folder / "dev.txt", lines(8, seed=1)),
    }


def words(files, output, *more, **settings):
    settings = {
        "train_file": files["train"],
        "validation_file": files["dev"],
        "document_start": "^ = ",
        "output_dir": output,
        "tracker": "none",
        **settings,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(more)


def trained(*flags):
    return run(parse_arguments(MLMArguments, list(flags)), prepare)


def test_from_files_to_a_pipeline(files, tmp_path):
    metrics = trained(*TINY, *words(files, tmp_path))
    # each word decides the next; without the neighbours a guess among nine words and the titles is left
    assert metrics["perplexity"] < 8
    assert metrics["perplexity"] == metrics["perplexity_16"] == pytest.approx(math.exp(metrics["loss"]))
    by_length = json.loads((tmp_path / "predictions.json").read_text())
    assert [line["length"] for line in by_length] == [16, 32]
    assert len({line["targets"] for line in by_length}) == 1
    assert by_length[0]["windows"] > by_length[1]["windows"]
    assert by_length[0]["tokens_a_window"] < by_length[1]["tokens_a_window"] <= 32
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    asked = "where does mira live near the [MASK] river house"
    said = fill(asked)
    assert "fill-mask" in (tmp_path / "README.md").read_text()

    arguments = parse_arguments(MLMArguments, [*TINY, *words(files, tmp_path)])
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    inputs = tokenizer(asked, return_tensors="pt")
    hidden = inputs["input_ids"] == tokenizer.mask_token_id
    with torch.no_grad():
        likely = model(**inputs).logits[hidden][0].softmax(-1).topk(5)
    assert [one["token"] for one in said] == likely.indices.tolist()
    assert [one["score"] for one in said] == pytest.approx(likely.values.tolist(), rel=1e-4)
    documents = [
        {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
        for _, text in arguments.documents("validation")
    ]
    rows = evaluation_rows(documents, Masking(tokenizer, 0.15), put_around(tokenizer), [16, 32])
    again = mlm.evaluate(model, make_accelerator(arguments), rows=rows, tokenizer=tokenizer, arguments=arguments)
    assert again.metrics == pytest.approx(metrics, rel=1e-5)
    # the model's own loss over all windows is the same thing
    total = 0.0
    for row in rows[16]:
        inputs = {name: torch.tensor([values]) for name, values in row.items()}
        count = int((inputs["labels"] != -100).sum())
        total += float(model(**inputs).loss.detach()) * count if count else 0.0
    assert total / metrics["targets"] == pytest.approx(metrics["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "more", [["--packing", "true", "--max_length", "64", "--eval_lengths", ""], ["--streaming", "true"]]
)
def test_packed_and_streamed_rows(files, tmp_path, more):
    flags = words(files, tmp_path, max_steps=90, shuffle_buffer=64, train_batch_size=8)
    metrics = trained(*TINY, *flags, *more)
    assert metrics["perplexity"] < 12


def test_pretrained_weights_get_other_positions(files, tmp_path):
    settings = {"model": files["model"], "max_steps": 3, "max_length": 32}
    stock = trained(*words(files, tmp_path / "stock", **settings))
    ours = trained(*words(files, tmp_path / "ours", "--rel_pos", "t5", "--absolute", "drop", **settings))
    assert stock["targets"] == ours["targets"]
    assert stock["perplexity"] != ours["perplexity"]


def test_masking_as_it_is_defined():
    tokenizer = word_tokenizer()
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    ids = [tokenizer.cls_token_id, *range(5, 45), tokenizer.unk_token_id, tokenizer.sep_token_id] * 50
    masking = Masking(tokenizer, 0.15)
    row = masking({"input_ids": ids, "position_ids": [0]}, np.random.default_rng(3))
    assert row == masking({"input_ids": ids, "position_ids": [0]}, np.random.default_rng(3))
    assert row != masking({"input_ids": ids, "position_ids": [0]}, np.random.default_rng(4))
    assert row["position_ids"] == [0]
    targets = [i for i, label in enumerate(row["labels"]) if label != -100]
    assert len(targets) == round(0.15 * 40 * 50)
    assert all(row["labels"][i] == ids[i] and ids[i] not in special | {tokenizer.unk_token_id} for i in targets)
    assert all(row["input_ids"][i] == ids[i] for i in range(len(ids)) if i not in targets)
    hidden = sum(row["input_ids"][i] == tokenizer.mask_token_id for i in targets) / len(targets)
    same = sum(row["input_ids"][i] == ids[i] for i in targets) / len(targets)
    assert hidden == pytest.approx(0.8, abs=0.06)
    assert same == pytest.approx(0.1, abs=0.05)
    assert not any(row["input_ids"][i] in special for i in targets)
    one = masking({"input_ids": ids[:4]}, np.random.default_rng(0))["labels"]
    assert sum(label != -100 for label in one) == 1
    nothing = masking({"input_ids": [tokenizer.cls_token_id]}, np.random.default_rng(0))
    assert nothing == {"input_ids": [tokenizer.cls_token_id], "labels": [-100]}


@pytest.mark.parametrize("streamed", [False, True])
def test_masks_follow_from_seed_and_epoch_alone(streamed):
    masking = Masking(word_tokenizer(), 0.15)
    plain = [{"input_ids": list(range(5, 25 + n))} for n in range(10)]
    rows = Stream(lambda: iter(plain), "x", 8) if streamed else plain

    def batches(epoch, seed=0):
        lengths = None if streamed else list(map(len, plain))
        return list(batches_of(rows, 4, seed=seed, epoch=epoch, lengths=lengths, grouped=False, vary=masking))

    first = batches(0)
    torch.rand(7)
    assert first == batches(0)
    assert {json.dumps(row["labels"]) for batch in first for row in batch}.isdisjoint(
        json.dumps(row["labels"]) for batch in (*batches(1), *batches(0, seed=1)) for row in batch
    )
    assert plain[0] == {"input_ids": list(range(5, 25))}


def test_the_same_tokens_are_found_again_at_each_length():
    tokenizer = word_tokenizer()
    documents = [{"input_ids": list(range(5, 45))}, {"input_ids": list(range(5, 12))}]
    around = put_around(tokenizer)
    assert around == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    rows = evaluation_rows(documents, Masking(tokenizer, 0.15), around, [8, 16, 42])
    assert [len(chosen) for chosen in rows.values()] == [7 + 2, 3 + 1, 2]
    for chosen in rows.values():
        assert [label for row in chosen for label in row["labels"] if label != -100] == [
            label for row in rows[42] for label in row["labels"] if label != -100
        ]
        for row in chosen:
            assert len(row["labels"]) == len(row["input_ids"])
            assert (row["input_ids"][0], row["labels"][0], row["labels"][-1]) == (around[0][0], -100, -100)
    with pytest.raises(ValueError, match="the longest document to evaluate on has 42 tokens: windows of 64 would be"):
        evaluation_rows(documents, Masking(tokenizer, 0.15), around, [8, 42, 64])


def test_windows_and_documents():
    assert list(windows([5, 6, 7], ([1], [2]), 4)) == [[1, 5, 6, 2], [1, 7, 2]]
    assert list(windows([5, 6, 7], ([], []), 3)) == [[5, 6, 7]]
    texts = [("1", "a"), ("2", "= b"), ("3", "c"), ("4", "= d")]
    assert list(joined(texts, "^=", "f")) == [("1", ["a"]), ("2", ["= b", "c"]), ("4", ["= d"])]
    assert list(joined(texts, None, "f")) == [(where, [text]) for where, text in texts]
    with pytest.raises(DataError, match=r"f: no row begins a document by document_start='\^X'"):
        list(joined(texts, "^X", "f"))


def test_losses_of_a_known_answer():
    class Says(torch.nn.Module):
        def forward(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 4)
            logits[..., 2] = math.log(5)
            return type("Output", (), {"logits": logits})

    labels = torch.tensor([[-100, 2, 1], [-100, -100, -100]])
    found = found_again(Says(), {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": labels}, [{}, {}])
    assert found == [(pytest.approx(math.log(8 / 5) + math.log(8), rel=1e-6), 2, 1), (0.0, 0, 0)]
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(1e4) < math.inf
    assert parse_numbers("n", "3,4") == [3, 4]
    assert parse_numbers("n", None) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--packing", "true"], "packing needs rel_pos"),
        (["--max_length", "64"], "max_length=64 is more than the 48 tokens that the model reads"),
        (["--eval_lengths", "64"], "eval_lengths=64 is more than the 48 tokens that the model reads"),
        (["--document_start", "^nothing"], "dev.txt: no row begins a document by document_start='^nothing'"),
        (["--text_field", "body"], "line 1: the field 'body' is missing; fields: text"),
        (["--validation_file", "EMPTY"], "there is no text to evaluate on"),
        (["--train_file", "EMPTY"], "there is no text to train on"),
        (["--tokenizer", "BYTES"], "has no token that hides another"),
        (
            [
                "--from_scratch",
                "true",
                "--model",
                "gpt2",
                "--tokenizer",
                "bpe",
                "--rel_pos",
                "t5",
                "--absolute",
                "drop",
            ],
            "gpt2 has no head 'MaskedLM'",
        ),
    ],
)
def test_runs_that_cannot_be_end_with_one_line(files, tmp_path, monkeypatch, capsys, more, message):
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    stand_ins = {"EMPTY": write(tmp_path / "empty.txt", "\n\n"), "BYTES": tmp_path / "bytes"}
    more = [str(stand_ins.get(word, word)) for word in more]
    if "empty" in "".join(more):
        more += ["--document_start", "^"]
    flags = words(files, tmp_path / "out", model=files["model"], max_length=16)
    monkeypatch.setattr(sys, "argv", ["mlm.py", *flags, *more])
    with pytest.raises(SystemExit) as caught:
        main(MLMArguments, prepare, mlm.__doc__)
    assert caught.value.code == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mask_shere", "1"], "the flag 'mask_shere' is unknown; did you mean 'mask_share'?"),
        (["--mask_share", "1"], "mask_share=1.0 is not valid: it must be between 0 and 1"),
        (["--eval_lengths", "long"], "eval_lengths='long' is not valid: give numbers of tokens, such as"),
        (["--eval_lengths", "4"], "eval_lengths='4' is not valid: it must be of at least 8 each"),
        (["--document_start", "("], "document_start='(' is not valid: no regular expression"),
    ],
)
def test_wrong_usage(capsys, more, message):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(MLMArguments, more)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_real_set():
    if not (DATA / "wikitext2").exists():
        pytest.skip(f"{DATA / 'wikitext2'} is not here")
    flags = {"document_start": "^ = [^=]", "train_file": str(DATA / "wikitext2" / "train.txt.gz")}
    arguments = MLMArguments(validation_file=str(DATA / "wikitext2" / "validation.txt.gz"), **flags)
    assert len(list(arguments.documents("train"))) > 500
    texts = [text for _, text in arguments.documents("validation")]
    assert 50 < len(texts) < 80
    tokenizer = word_tokenizer()
    rows = [{"input_ids": tokenizer(text[:20000], add_special_tokens=False)["input_ids"]} for text in texts[:5]]
    found = evaluation_rows(rows, Masking(tokenizer, 0.15), put_around(tokenizer), [128, 2048])
    assert max(len(row["input_ids"]) for row in found[2048]) == 2048
