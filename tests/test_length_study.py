"""The study of lengths: what each method is, what is kept of an interrupted study, and what is said of the numbers."""

import json
import sys
from pathlib import Path

import length_study
import pytest
import torch
from accelerate import Accelerator
from arguments import parse_arguments
from checkpoints import RunError
from length_study import METHODS, LengthStudyArguments, fix_sinusoids, judge, prepare, study, tables
from loop import TrainingLoop
from script import main
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

import hf_relpos

torch.set_num_threads(1)

RECIPE = Path(__file__).parent.parent / "training" / "configs" / "tiny_length.yaml"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "verse.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log\n" * 40)
    return path


def arguments(text, output, *more, **settings):
    settings = {"train_file": text, "validation_file": text, "output_dir": output, **settings}
    words = ["--config", RECIPE, *(word for name, value in settings.items() for word in (f"--{name}", value)), *more]
    return parse_arguments(LengthStudyArguments, list(map(str, words)))


def read(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def done(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    study(arguments(text, folder), prepare)
    return folder


def test_all_methods_are_measured_on_the_same_tokens(done):
    known = read(done / "length.json")
    names = ["alibi", "kerple_log", "rope", "sinusoidal_absolute", "learned_absolute"]
    assert list(known["methods"]) == names
    for name in names:
        lengths = known["methods"][name]["lengths"]
        assert list(lengths) == (["16"] if name == "learned_absolute" else ["16", "32", "64"])
        assert {entry["tokens"] for entry in lengths.values()} == {1984 // 16 * 15}
        assert known["methods"][name]["seconds"] > 0
    assert known["methods"]["alibi"]["growth"] == pytest.approx(
        known["methods"]["alibi"]["lengths"]["64"]["perplexity"]
        / known["methods"]["alibi"]["lengths"]["16"]["perplexity"]
    )
    assert known["published"] in (done / "length.md").read_text()
    assert "| `learned_absolute` | " in (done / "length.md").read_text()
    assert "| cannot | cannot |" in (done / "length.md").read_text()
    svg = (done / "length.svg").read_text()
    assert all(name in svg for name in names)
    assert (done / "length.png").stat().st_size > 1000


def test_what_each_method_is(done):
    for name, kind, table in (
        ("alibi", "relpos_gpt2", None),
        ("sinusoidal_absolute", "gpt2", 64),
        ("learned_absolute", "gpt2", 16),
    ):
        model = AutoModelForCausalLM.from_pretrained(done / name)
        assert model.config.model_type == kind
        if table is None:
            assert (model.config.rel_pos["type"], model.config.absolute) == (name, "drop")
        else:
            assert model.transformer.wpe.num_embeddings == table
    # training left the sinusoids as they are
    table = AutoModelForCausalLM.from_pretrained(done / "sinusoidal_absolute").transformer.wpe.weight.detach()
    waves = hf_relpos.build_encoding({"type": "sinusoidal", "add_absolute": True}, num_heads=2, head_dim=16)
    expected = 0.02 * waves.input_term(torch.arange(64)[None], 32, None, None)[0]
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=1e-5)


def test_a_long_learned_table_is_trained_only_where_rows_reach(text, tmp_path):
    given = arguments(text, tmp_path, methods="learned_absolute_long", tokenizer="bytes")
    task = prepare(given, Accelerator(cpu=True))
    table = task.model.transformer.wpe.weight
    assert table.shape[0] == 64
    task.model(**task.collate(task.rows[:4])).loss.backward()
    moved = table.grad.abs().sum(1) > 0
    # the last token of a row predicts none
    assert moved[:15].all()
    assert not moved[15:].any()


@pytest.mark.parametrize("name", ["none", "t5", "rope", "sinusoidal_bias", "shaw"])
def test_any_encoding_takes_the_place_of_the_table(text, tmp_path, name):
    task = prepare(arguments(text, tmp_path, methods=name), Accelerator(cpu=True))
    assert (task.model.config.rel_pos["type"], task.model.config.absolute) == (name, "drop")


def test_what_is_done_is_not_trained_again(text, done, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in done.glob("*/model.safetensors")}
    trained = []
    monkeypatch.setattr(length_study, "run", lambda given, prepare: trained.append(given.methods))
    study(arguments(text, done), prepare)
    assert not trained
    assert {path: path.stat().st_mtime_ns for path in done.glob("*/model.safetensors")} == before
    assert "rope: is done" in capsys.readouterr().out
    with pytest.raises(RunError, match="holds another study: max_steps was 4 and is 5"):
        study(arguments(text, done, max_steps=5), prepare)
    (done.parent / "other.txt").write_text("another text\n" * 90)
    with pytest.raises(RunError, match="holds another study: train data was"):
        study(arguments(text, done, train_file=done.parent / "other.txt"), prepare)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    study(arguments(text, folder, methods="alibi,rope", save_steps=2), prepare)
    return folder


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_an_interrupted_study_goes_on(text, whole, tmp_path, monkeypatch, capsys, has_checkpoint):
    """One method is done, and the other stopped after its first checkpoint or before it: the outcome is that of an unbroken study."""
    save = TrainingLoop._save_checkpoint

    def stop(loop):
        if has_checkpoint:
            save(loop)
        if loop.folder.name == "rope":
            raise KeyboardInterrupt

    folder, settings = tmp_path / "out", {"methods": "alibi,rope", "save_steps": 2}
    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            study(arguments(text, folder, **settings), prepare)
    assert list(read(folder / "length.json")["methods"]) == ["alibi"]
    capsys.readouterr()
    study(arguments(text, folder, **settings), prepare)
    shown = capsys.readouterr().out
    assert "alibi: is done" in shown
    assert ("resuming from" in shown) is has_checkpoint
    for name in ("alibi", "rope"):
        assert read(folder / name / "metrics.json") == read(whole / name / "metrics.json")
    # how long a method took is told only when it was not interrupted
    assert (read(folder / "length.json")["methods"]["rope"]["seconds"] is None) is has_checkpoint


def test_the_judgement_follows_from_the_numbers():
    published = {"kerple_log": 0.98, "alibi": 1.0, "rope": 3.0, "sinusoidal_absolute": 40.0}
    assert "is reproduced: kerple_log ×0.98, alibi ×1.00, rope ×3.00, sinusoidal_absolute ×40.00." in judge(published)
    said = judge({**published, "rope": 1.5})
    assert "is not reproduced: rope is rising (×1.50), not exploding" in said
    assert "Its order, the two before the two, holds" in said
    said = judge({**published, "alibi": 3.5})
    assert "is not reproduced: alibi is exploding (×3.50), not flat" in said
    assert "does not hold" in said
    assert "cannot be judged: not measured: rope" in judge({**published, "rope": None})
    del published["alibi"]
    assert "cannot be judged: not measured: alibi" in judge(published)


def test_numbers_too_large_for_a_table_are_short(text, tmp_path):
    entry = {"perplexity": 3.2e18, "tokens": 9, "positions": []}
    methods = {"rope": {"says": "rotary", "lengths": {"16": entry}, "growth": None}}
    assert "| 3.2e+18 |" in tables({"methods": methods, "published": ""}, arguments(text, tmp_path))


def test_sinusoids_need_a_table():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    with pytest.raises(RunError, match="use model=gpt2"):
        fix_sinusoids(BertLMHeadModel(BertConfig(is_decoder=True, **sizes)))


def test_folders_that_hold_something_else_are_left_alone(text, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(RunError, match="is not empty and holds no study"):
        study(arguments(text, tmp_path), prepare)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "alibbi"], "unknown rel_pos type 'alibbi'"),
        (["--methods", ","], "names none; valid: none, sinusoidal_absolute"),
        (["--rel_pos", "t5", "--absolute", "drop"], "rel_pos='t5' is not valid: it must be left out"),
        (["--format", "pairs"], "is not valid"),
        (["--from_scratch", "false", "--tokenizer", "x"], "from_scratch=False is not valid: it must be true"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["length_study.py", *words])
    with pytest.raises(SystemExit) as caught:
        main(LengthStudyArguments, prepare, length_study.__doc__, study)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_nine_methods():
    assert {
        "none",
        "sinusoidal_absolute",
        "learned_absolute",
        "t5",
        "alibi",
        "kerple_log",
        "rope",
        "sinusoidal_bias",
    } <= set(METHODS)
    assert all(method.rel_pos in (None, *hf_relpos.list_encodings()) for method in METHODS.values())
