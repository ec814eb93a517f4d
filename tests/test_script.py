"""What every script shares around its task, on the smallest one: models, tokenizers, LoRA, streams, stopping, results."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from arguments import parse_arguments
from checkpoints import RunError, checkpoints
from models import ModelArguments, finished_model, load_model, load_tokenizer
from safetensors.torch import load_file
from script import main, run
from tokenizing import KINDS, end_texts_with, marks, trained_tokenizer
from toy_qa import byte_tokenizer, save_tiny_bert, word_tokenizer, write
from toy_task import ToyArguments, prepare
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

import hf_relpos

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 37,
    },
}
# peft asks for an attribute that transformers renames
renamed = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def texts(count, seed=0):
    generator = random.Random(seed)
    words = ["where", "does", "lives", "in", "works", "near", "house", "old"]
    rows = []
    for _ in range(count):
        chosen = [generator.choice(words) for _ in range(generator.randrange(3, 9))]
        label = generator.randrange(2)
        if label:
            chosen[generator.randrange(len(chosen))] = "river"
        rows.append({"text": " ".join(chosen), "label": label})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    return {
        "model": save_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "train": write(folder / "train.jsonl", texts(64)),
        "dev": write(folder / "dev.jsonl", texts(24, seed=1)),
    }


def words(files, output, *more, **settings):
    settings = {
        "model": files["model"],
        "train_file": files["train"],
        "validation_file": files["dev"],
        "output_dir": output,
        "train_batch_size": 8,
        "learning_rate": 3e-3,
        "max_steps": 48,
        "tracker": "none",
        **settings,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(more)


def trained(files, output, *more, **settings):
    return run(parse_arguments(ToyArguments, words(files, output, *more, **settings)), prepare)


DROP = ["--rel_pos", "t5", "--absolute", "drop"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "arm"), [("bert", DROP), ("gpt2", []), ("gpt2", DROP), ("qwen3", DROP)])
def test_a_model_from_scratch_with_a_tokenizer_of_its_own(files, tmp_path, family, arm, kind):
    """Any family, stock or with an encoding; what is saved loads and classifies as it was measured."""
    settings = {"model": family, "tokenizer": kind, "vocabulary_size": 300, "max_length": 64, "max_steps": 3}
    metrics = trained(
        files, tmp_path / "out", *arm, "--from_scratch", "--model_config", json.dumps(SMALL[family]), **settings
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == (f"relpos_{family}" if arm else family)
    assert (config.hidden_size, config.vocab_size) == (32, len(tokenizer))
    assert config.pad_token_id == tokenizer.pad_token_id
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    rows = texts(24, seed=1)
    found = [int(one["label"].rpartition("_")[2]) for one in classify([row["text"] for row in rows])]
    right = sum(a == row["label"] for a, row in zip(found, rows, strict=True))
    assert metrics["accuracy"] == pytest.approx(100 * right / len(rows))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == found


def test_a_task_is_learned(files, tmp_path):
    assert trained(files, tmp_path, *DROP)["accuracy"] > 90
    assert "text-classification" in (tmp_path / "README.md").read_text()


@renamed
@pytest.mark.parametrize("rel_pos", ["t5", "shaw", "fox"])
def test_lora_trains_encoding_head_and_updates_and_is_merged(files, tmp_path, rel_pos):
    before = load_file(files["model"] / "model.safetensors")
    arm = ["--rel_pos", rel_pos, "--absolute", "drop"]
    trained(files, tmp_path, *arm, lora_rank=2, lora_targets="query,value", max_steps=12, eval_steps=4, save_steps=5)
    after = load_file(tmp_path / "model.safetensors")
    names = {name.replace("bert.", "", 1): name for name in after}
    moved = {name for name in names if name in before and not torch.equal(before[name], after[names[name]])}
    before = {name.removeprefix("bert."): value for name, value in before.items()}
    moved = {name for name in names if name in before and not torch.equal(before[name], after[names[name]])}
    assert moved == {name for name in before if name.endswith(("query.weight", "value.weight"))}
    assert any("relpos" in name for name in after)
    assert not any("lora" in name or "base_layer" in name or "modules_to_save" in name for name in after)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model) is hf_relpos.RelPosBertForSequenceClassification


@renamed
def test_merging_changes_no_logits(files):
    arguments = ModelArguments(model=str(files["model"]), rel_pos="t5", absolute="drop", lora_rank=2)
    torch.manual_seed(0)
    model = load_model(arguments, "SequenceClassification", num_labels=2)
    whole = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert whole
    assert all("relpos" in name or "classifier" in name for name in whole), whole
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = {"input_ids": torch.randint(5, 40, (2, 11))}
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        torch.testing.assert_close(finished_model(model)(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_streamed_rows_train_as_they_come(files, tmp_path):
    metrics = trained(files, tmp_path, *DROP, "--streaming", "true", shuffle_buffer=32)
    assert metrics["accuracy"] > 90
    arguments = parse_arguments(ToyArguments, words(files, tmp_path / "b", *DROP, "--streaming", "true"))
    arguments.max_steps = None
    with pytest.raises(RunError, match="say max_steps"):
        run(arguments, prepare)


@pytest.mark.slow
def test_sigterm_ends_the_program_well_and_it_can_be_resumed(files, tmp_path):
    settings = {"max_steps": 4000, "save_steps": 100000, "learning_rate": 1e-3}
    program = [sys.executable, str(ROOT / "tests" / "toy_task.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "training", ROOT)))}
    started = subprocess.Popen(
        [*program, *words(files, tmp_path / "out", *DROP, **settings)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "out" / "log.jsonl"
    while not log.exists() and started.poll() is None:
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    _, error = started.communicate(timeout=120)
    assert started.returncode == 0, error
    (checkpoint,) = checkpoints(tmp_path / "out")
    step = int(checkpoint.name.rpartition("-")[2])
    assert f"toy_task.py: stopped by SIGTERM at step {step}; --resume true goes on from there" in error
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert len(log.read_text().splitlines()) == step


@pytest.mark.parametrize("kind", KINDS)
def test_trained_tokenizers(kind):
    corpus = ["Über den Fluß\n geht er", "the river the river"]
    tokenizer = trained_tokenizer(kind, iter(corpus), 300)
    assert tokenizer.is_fast
    assert None not in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id)
    ids = tokenizer(corpus[0])["input_ids"]
    if kind == "wordpiece":
        assert ids[0] == tokenizer.cls_token_id
        assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "uber den fluß geht er"
    elif kind == "words":
        assert tokenizer.decode(ids) == "Über den Fluß geht er"
        assert tokenizer.convert_ids_to_tokens([5, 6]) == ["river", "the"]
        assert len(trained_tokenizer(kind, corpus, 6)) == 6
    else:
        assert tokenizer.decode(ids) == corpus[0]
    if kind == "chars":
        assert len(ids) == len(corpus[0])
        assert tokenizer("z")["input_ids"] == [tokenizer.unk_token_id]
    if kind == "bytes":
        assert len(ids) == len(corpus[0].encode())
        assert len(tokenizer) == 261
    if kind in ("bpe", "wordpiece"):
        assert len(tokenizer) <= 300
        assert trained_tokenizer(kind, corpus, 300).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_after_each_text(kind, tmp_path):
    """Put there once, saved, and left out where no marks are wanted."""
    tokenizer = trained_tokenizer(kind, ["the river", "the house"], 300)
    start, end = marks(tokenizer)
    bare = tokenizer("the river", add_special_tokens=False)["input_ids"]
    around = tokenizer("the river")["input_ids"]
    end_texts_with(tokenizer, end)
    end_texts_with(tokenizer, end)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        expected = around if kind == "wordpiece" else [*bare, tokenizer.eos_token_id]
        assert each("the river")["input_ids"] == expected
        assert each("the river", add_special_tokens=False)["input_ids"] == bare
        assert each.decode(expected, skip_special_tokens=True) == "the river"
    end_texts_with(tokenizer, start)
    assert tokenizer("the river")["input_ids"] == [*expected, tokenizer.bos_token_id]
    assert tokenizer("a", "a")["input_ids"][-1] == tokenizer.bos_token_id


def test_marks_of_other_tokenizers():
    assert marks(word_tokenizer()) == ("[CLS]", "[SEP]")
    assert marks(byte_tokenizer()) == ("<s>", "</s>")
    with pytest.raises(ValueError, match="has no token for the end of a text"):
        marks(PreTrainedTokenizerFast(tokenizer_object=word_tokenizer().backend_tokenizer))


def test_more_tokens_than_the_model_has_make_room(files, tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<e1>", "<e2>"])
    tokenizer.save_pretrained(tmp_path)
    arguments = ModelArguments(model=str(files["model"]), tokenizer=str(tmp_path), rel_pos="t5", absolute="drop")
    loaded = load_tokenizer(arguments)
    model = load_model(arguments, "SequenceClassification", loaded, num_labels=3)
    assert model.get_input_embeddings().num_embeddings == len(loaded) == model.config.vocab_size
    assert model.config.num_labels == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_config": '{"n_layer": 2}'}, "model_config needs from_scratch"),
        ({"from_scratch": True, "model_config": "{"}, "is not valid JSON"),
        ({"from_scratch": True, "model_config": "[2]"}, "must be a JSON object"),
        ({"tokenizer": "bpe"}, "tokenizer='bpe' needs from_scratch"),
        ({"lora_rank": 0}, "lora_rank=0 is not valid: it must be at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 is not valid: it must be at least 0 and less than 1"),
        ({"rel_pos": "t5"}, "say keep or drop"),
    ],
)
def test_arguments_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--from_scratch", "--model", "gtp2"], "the model 'gtp2' cannot be loaded"),
        (
            ["--from_scratch", "--model", "gpt2"],
            "the model type 'gpt2' has no tokenizer: give tokenizer, bpe, wordpiece",
        ),
        (["--from_scratch", "--model_config", '{"layers": 2}'], "model_config: BertConfig has no value layers"),
        (
            [
                *("--from_scratch", "--model", "qwen3", "--tokenizer", "bpe"),
                *("--model_config", '{"layer_types": ["full_attention"]}'),
            ],
            "model_config: Class validation error",
        ),
        (["--from_scratch", "--lora_rank", "2"], "lora_rank updates pretrained weights: leave from_scratch out"),
        (["--max_length", "99"], "max_length=99 is more than the 48 tokens that the model reads"),
        (["--text_field", "txt"], "line 1: the field 'txt' is missing; fields: text, label"),
        (["--train_file", "gone.csv"], "gone.csv: there is no such file"),
    ],
)
def test_runs_that_cannot_be_end_with_one_line(files, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setattr(sys, "argv", ["toy_task.py", *words(files, tmp_path / "out", *more)])
    with pytest.raises(SystemExit) as caught:
        main(ToyArguments, prepare, "The toy task.")
    assert caught.value.code == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("toy_task.py: ")
    assert message in error[-1]
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_help_shows_each_argument_once_in_its_group(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy_task.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        main(ToyArguments, prepare, "The toy task.")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    groups = ["task", "data", "model", "encoding", "optimisation", "evaluation", "saving", "hub"]
    assert [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")] == groups
    for name in [field.name for field in fields(ToyArguments)]:
        assert shown.count(f"  --{name} ") == 1, name
    assert "The toy task." in shown
    assert "(default: 16)" in shown
