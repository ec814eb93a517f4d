"""The translation task: pairs of texts to features, an encoder with a decoder and a decoder alone, what is saved, and what is refused."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import translation
from arguments import parse_arguments
from models import load_tokenizer
from safetensors.torch import load_file
from script import main, run
from seq2seq import load_seq2seq
from sources import DataError
from tokenizing import end_texts_with, trained_tokenizer
from toy_qa import save_tiny_bert, write
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    GPT2LMHeadModel,
)
from translation import TranslationArguments, collate, features_of, pairs_of, prepare, unwritable
from without_package import run_python

import hf_relpos

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "training" / "configs" / "tiny_translation.yaml"
DATA = ROOT.parent / "shared" / "data"
DECODER = {"architecture": "decoder", "model": "gpt2", "model_config": '{"n_embd": 32, "n_layer": 2, "n_head": 4}'}
ARMS = {
    "stock": {},
    "t5": {"rel_pos": "t5", "absolute": "drop"},
    "two encodings": {"rel_pos": "alibi", "absolute": "drop", "decoder_rel_pos": "rope"},
    "stock decoder": DECODER,
    "decoder": {**DECODER, "rel_pos": "t5", "absolute": "drop"},
}


def commands():
    """Invented commands and what they stand for, as SCAN's."""
    verbs, times = {"hop": "HOP", "look": "LOOK", "run": "RUN"}, {"": 1, "twice": 2, "thrice": 3}
    single = [(f"{verb} {time}".strip(), [verbs[verb]] * times[time]) for verb in verbs for time in times]
    rows = [{"commands": text, "actions": " ".join(done)} for text, done in single]
    rows += [
        {"commands": f"{first} and {second}", "actions": " ".join([*done, *then])}
        for (first, done), (second, then) in itertools.product(single, single)
    ]
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rows = commands()
    torch.manual_seed(0)
    return {
        "train": write(folder / "train.jsonl.gz", rows[::2]),
        "dev": write(folder / "dev.jsonl", rows[1::4]),
        "bert": save_tiny_bert(folder / "bert"),
        "folder": folder,
    }


def words(files, output, **settings):
    settings = {
        "config": RECIPE,
        "train_file": files["train"],
        "validation_file": files["dev"],
        "output_dir": output,
        **settings,
    }
    return [str(word) for name, value in settings.items() if value is not None for word in (f"--{name}", value)]


def parsed(files, output="out", **settings):
    return parse_arguments(TranslationArguments, words(files, output, **settings))


def trained(files, output, **settings):
    return run(parsed(files, output, **settings), prepare)


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_saved_writes_as_was_measured(files, tmp_path, arm):
    """Read by transformers' own classes: the source as the saved tokenizer encodes it is all that ``generate`` must be given."""
    metrics = trained(files, tmp_path, **ARMS[arm], max_steps=20, num_beams=2, limit_eval=12)
    told = read(tmp_path / "predictions.json")
    two = "decoder" not in arm
    model = (AutoModelForSeq2SeqLM if two else AutoModelForCausalLM).from_pretrained(tmp_path)
    expected = {
        "stock": EncoderDecoderModel,
        "stock decoder": GPT2LMHeadModel,
        "decoder": hf_relpos.RelPosGPT2ForCausalLM,
    }
    assert type(model) is expected.get(arm, hf_relpos.RelPosEncoderDecoderModel)
    assert model.generation_config.num_beams == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="right" if two else "left")
    inputs = tokenizer([one["source"] for one in told], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model.generate(**inputs)[:, 1 if two else inputs["input_ids"].shape[1] :]
    assert tokenizer.batch_decode(found, skip_special_tokens=True) == [one["prediction"] for one in told]
    right = sum(one["prediction"] == one["target"] for one in told)
    assert metrics == {**metrics, "exact_match": pytest.approx(100 * right / 12), "total": 12}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: translation" in card
    if arm == "two encodings":
        assert (model.config.encoder.rel_pos["type"], model.config.decoder.rel_pos["type"]) == ("alibi", "rope")
        assert "### Encoder\n\n**alibi**" in card
        assert "### Decoder\n\n**rope**" in card


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["t5", "decoder"])
def test_commands_are_learned(files, tmp_path, arm):
    """By heart: how well the rest is guessed differs between encodings."""
    metrics = trained(files, tmp_path, **ARMS[arm], max_steps=300, validation_file=files["train"])
    assert metrics["exact_match"] > 60


LOADER = """
import json, torch, transformers
kind = transformers.AutoModelForSeq2SeqLM
model = kind.from_pretrained("out", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
tokenizer = transformers.AutoTokenizer.from_pretrained("out")
told = json.load(open("out/predictions.json"))
inputs = tokenizer([one["source"] for one in told], return_tensors="pt", padding=True)
found = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
assert found == [one["prediction"] for one in told], found
"""


@pytest.mark.slow
def test_the_saved_folder_needs_no_package(files, tmp_path):
    trained(files, tmp_path / "out", **ARMS["two encodings"], max_steps=20, limit_eval=8)
    done = run_python(LOADER, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_from_two_checkpoints(files, tmp_path):
    """With the checkpoints' weights and tokenizer; only cross-attention and encodings are new."""
    own = {
        "config": None,
        "source_field": "commands",
        "target_field": "actions",
        "max_source_length": 24,
        "max_target_length": 24,
    }
    settings = {
        **own,
        "model": files["bert"],
        "rel_pos": "t5",
        "absolute": "drop",
        "learning_rate": 1e-9,
        "tracker": "none",
    }
    trained(files, tmp_path, **settings, max_steps=1, limit_eval=2)
    before, after = load_file(files["bert"] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    for side in ("encoder.", "decoder.bert."):
        torch.testing.assert_close(after[side + name], before[f"bert.{name}"], atol=1e-6, rtol=0)
    new = {name for name in after if "crossattention" in name or "relpos" in name}
    assert any(name.startswith("decoder.bert.relpos") for name in new)
    assert not [name for name in after if name.startswith("encoder.") and "crossattention" in name]
    # a decoder of another family, from scratch
    arguments = parsed(files, **ARMS["t5"], decoder_model="gpt2", decoder_model_config=DECODER["model_config"])
    tokenizer = load_tokenizer(arguments, lambda: ["hop"])
    model = load_seq2seq(arguments, tokenizer)
    assert type(model.decoder) is hf_relpos.RelPosGPT2ForCausalLM
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == 2
    # what has no gradient would keep processes waiting
    batch = {"input_ids": torch.tensor([[5, 3]]), "decoder_input_ids": torch.tensor([[2, 5]])}
    model(**batch).logits.sum().backward()
    assert not [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]


def test_features_and_batches(files):
    arguments = parsed(files, max_source_length=4, max_target_length=3, long_rows="cut")
    tokenizer = trained_tokenizer("words", ["a b c d", "X Y Z"], 100)
    ids = tokenizer.get_vocab()
    pad, start, end = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    end_texts_with(tokenizer, end_mark := tokenizer.eos_token)
    assert ids[end_mark] == end
    pairs = [("f, line 1", "a b", "X"), ("f, line 2", "a b c d", "X Y Z")]
    counts = Counter()
    rows = list(features_of(pairs, tokenizer, arguments, training=True, counts=counts))
    a, b, c, x, y, z = (ids[word] for word in "abcXYZ")
    assert rows == [
        {"input_ids": [a, b, end], "labels": [x, end]},
        # a target that is cut does not end
        {"input_ids": [a, b, c, end], "labels": [x, y, z]},
    ]
    assert counts == {"source": 1, "target": 1}
    batch = {name: tensor.tolist() for name, tensor in collate(rows, tokenizer, arguments).items()}
    assert batch == {
        "input_ids": [[a, b, end, pad], [a, b, c, end]],
        "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]],
        "decoder_input_ids": [[start, x, pad], [start, x, y]],
        "decoder_attention_mask": [[1, 1, 0], [1, 1, 1]],
        "labels": [[x, end, -100], [x, y, z]],
    }
    assert [row["input_ids"] for row in features_of(pairs, tokenizer, arguments, training=False)] == [
        row["input_ids"] for row in rows
    ]
    arguments.long_rows = "drop"
    assert list(features_of(pairs, tokenizer, arguments, training=True)) == rows[:1]
    assert len(list(features_of(pairs, tokenizer, arguments, training=False))) == 2
    arguments.long_rows = "refuse"
    with pytest.raises(DataError, match="f, line 2: the source has 5 tokens, more than max_source_length=4"):
        list(features_of(pairs, tokenizer, arguments, training=True))
    arguments.architecture = "decoder"
    (row,) = features_of(pairs[:1], tokenizer, arguments, training=True)
    assert row == {"input_ids": [a, b, end, x, end], "labels": [-100, -100, -100, x, end]}
    assert set(collate([row], tokenizer, arguments)) == {"input_ids", "attention_mask", "labels"}


def test_the_loss_is_that_of_the_targets(files):
    """For both architectures, padding or not, and the decoder alone has none on the source."""
    for arm in ("t5", "decoder"):
        arguments = parsed(files, **ARMS[arm])
        task = prepare(arguments, _Quiet())
        model = task.model.eval()
        rows = sorted(task.rows, key=lambda row: len(row["labels"]))
        chosen = [rows[0], rows[-1]]
        with torch.no_grad():
            alone = [(task.collate([row]), row) for row in chosen]
            losses = [(float(model(**batch).loss), task.weigh(batch)) for batch, _ in alone]
            together = task.collate(chosen)
            loss = float(model(**together).loss)
        assert [weight for _, weight in losses] == [sum(x != -100 for x in row["labels"]) for row in chosen]
        assert task.weigh(together) == sum(weight for _, weight in losses)
        mean = sum(one * weight for one, weight in losses) / sum(weight for _, weight in losses)
        assert loss == pytest.approx(mean, abs=1e-5)


class _Quiet:
    def print(self, *words):
        pass


def test_targets_that_cannot_be_written():
    tokenizer = trained_tokenizer("words", ["a b c"], 100)
    pairs = [("", "a", "b  c"), ("", "a", "b d"), ("", "a", "B")]
    assert unwritable(pairs, tokenizer) == ["b d", "B"]


def test_tables_nested_fields_and_malformed_rows(files, tmp_path):
    table = write(tmp_path / "t.tsv", "en\tde\nHello.\tHallo.\nBye.\tTschüs.\n")
    arguments = parsed(files, train_file=table, source_field="en", target_field="de")
    assert list(pairs_of(arguments, "train")) == [
        (f"{table}, line 2", "Hello.", "Hallo."),
        (f"{table}, line 3", "Bye.", "Tschüs."),
    ]
    nested = write(
        tmp_path / "n.jsonl", [{"translation": {"en": "Hello.", "de": "Hallo."}}, {"translation": {"en": "Bye."}}]
    )
    arguments = parsed(files, train_file=nested, source_field="translation.en", target_field="translation.de")
    with pytest.raises(DataError, match=r"n\.jsonl, line 2: the field 'translation.de' is missing"):
        list(pairs_of(arguments, "train"))


def test_streamed_pairs_train_as_they_come(files, tmp_path):
    metrics = trained(files, tmp_path, **ARMS["t5"], streaming="true", max_steps=3, limit_eval=4, shuffle_buffer=20)
    assert metrics["total"] == 4


@pytest.mark.parametrize(
    ("settings", "status", "message"),
    [
        (
            {"architecture": "encoder"},
            2,
            "architecture='encoder' is not valid: it must be one of encoder_decoder, decoder",
        ),
        ({"best_metric": "bleau"}, 2, "best_metric='bleau' is not valid"),
        ({"bleu_tokenize": "14a"}, 2, "bleu_tokenize='14a' is not valid: it must be one of 13a"),
        ({"long_rows": "keep"}, 2, "long_rows='keep' is not valid"),
        ({"num_beam": 2}, 2, "did you mean 'num_beams'?"),
        ({"decoder_rel_pos": "t5"}, 2, "decoder_rel_pos needs rel_pos"),
        ({**ARMS["t5"], "decoder_rel_pos": "t6"}, 2, "of the decoder: "),
        ({**DECODER, "decoder_model": "bert"}, 2, "decoder_model is for architecture=encoder_decoder"),
        ({"max_target_length": 2}, 1, "more than max_target_length=2: raise it, or choose long_rows drop or cut"),
        ({"max_target_length": 33}, 1, "max_target_length=33 is more than the 32 tokens that the model reads"),
        ({"max_source_length": 33}, 1, "max_source_length=33 is more than the 32 tokens that the model reads"),
        ({"decoder_model": "llama", "decoder_model_config": "{}"}, 1, "'llama', which has no cross-attention"),
        ({"decoder_model": "nowhere"}, 1, "the decoder 'nowhere' cannot be loaded"),
        ({"lora_rank": 2}, 1, "lora_rank is not for an encoder and a decoder"),
        ({"validation_file": "empty.jsonl"}, 1, "empty.jsonl: there are no rows"),
    ],
)
def test_runs_that_cannot_be_end_with_one_line(files, tmp_path, monkeypatch, capsys, settings, status, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "empty.jsonl", "")
    monkeypatch.setattr(sys, "argv", ["translation.py", *words(files, "out", **settings)])
    with pytest.raises(SystemExit) as caught:
        main(TranslationArguments, prepare, translation.__doc__)
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == status, error
    assert error.startswith("translation.py: ")
    assert message in error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("folder", "train", "dev", "recipe", "rows"),
    [
        ("scan", "length_train", "length_test", "scan_length", (16990, 3920)),
        ("scan", "simple_train", "simple_test", "scan_length", (16728, 4182)),
        ("tatoeba_en_de", "train", "validation", "tatoeba", (163005, 3452)),
    ],
)
def test_the_real_sets(folder, train, dev, recipe, rows):
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is not there")
    files = {name: DATA / folder / f"{part}.jsonl.gz" for name, part in (("train", train), ("dev", dev))}
    arguments = parsed(files, config=ROOT / "training" / "configs" / f"{recipe}.yaml", limit_eval=10**6)
    pairs = {part: list(pairs_of(arguments, part)) for part in ("train", "validation")}
    assert tuple(map(len, pairs.values())) == rows
    some = [text for pair in pairs["train"][:2000] for text in pair[1:]]
    tokenizer = load_tokenizer(arguments, lambda: some)
    counts = Counter()
    for part, chosen in pairs.items():
        found = list(features_of(chosen[-2000:], tokenizer, arguments, training=part == "train", counts=counts))
        assert len(found) > 1990
    if folder == "scan":
        assert not counts
        assert not unwritable(pairs["validation"], tokenizer)
        lengths = [len(target.split()) for _, _, target in pairs["validation"]]
        assert "length" not in dev or (min(lengths), max(lengths)) == (24, 48)


@pytest.mark.slow
def test_two_processes_train_and_write_as_one(files, tmp_path):
    """Each is dealt half of a step; both must call the model equally often, also when one has nothing left to write."""
    still = '{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}'
    settings = {**ARMS["t5"], "model_config": still, "max_steps": 5, "limit_eval": 11, "eval_batch_size": 4}
    one = trained(files, tmp_path / "one", **settings, train_batch_size=8, gradient_accumulation_steps=2)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file"),
            *(str(ROOT / "training" / "accelerate" / "ddp_cpu.yaml"), "--main_process_port", "0"),
            str(ROOT / "training" / "translation.py"),
            *words(files, tmp_path / "two", **settings, train_batch_size=8),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "training"))),
            "ACCELERATE_USE_CPU": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert len(losses[1]) == 5
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert read(tmp_path / "two" / "metrics.json") == pytest.approx(one)
