"""Distilling a fitted model: it comes nearer, a broken run goes on as if unbroken, the best weights stay, and what goes wrong leaves nothing."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from families import save_source, save_text
from transformers import AutoModel, BertTokenizer

import hf_relpos
from hf_relpos.conversion import distillation, distillation_checkpoint, processes
from hf_relpos.conversion.convert import convert_checkpoint
from hf_relpos.conversion.distillation import DistillationOptions, distil, trained_parameters
from hf_relpos.conversion.distillation_targets import student_states, teacher_states
from hf_relpos.conversion.distillation_texts import DistillationTexts
from hf_relpos.conversion.texts import fitting_texts

CONFIGS = Path(__file__).parent.parent / "training" / "accelerate"
LENGTH = 16
REL_POS = {"type": "t5", "num_buckets": 8, "max_distance": 16, "share_layers": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An encoder, a decoder and text."""
    folder = tmp_path_factory.mktemp("files")
    made = {family: str(save_source(folder / family, family)) for family in ("bert", "gpt2")}
    return {**made, "text": str(save_text(folder / "text.txt", 6000))}


@pytest.fixture(scope="module")
def pair(files):
    """A function that makes, for a family, a teacher whose positions are a table over distance, a student that has lost them and moved a little, and the texts."""
    known = {}

    def load(family):
        if family not in known:
            tokenizer = BertTokenizer.from_pretrained(files[family])
            texts = fitting_texts(files["text"], tokenizer, length=LENGTH, tokens=1200)
            known[family] = DistillationTexts(files["text"], tokenizer, texts, LENGTH)
        teacher, student = (families.model(family, REL_POS).float() for _ in range(2))
        generator = torch.Generator().manual_seed(1)
        words = student.get_input_embeddings().weight
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if "relpos" in name:
                    parameter.zero_()
                elif parameter is not words:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
            for name, parameter in teacher.named_parameters():
                if "relpos" in name:
                    parameter.mul_(5)
        return teacher, student, known[family]

    return load


def options(steps=40, **more):
    return DistillationOptions(
        steps,
        **{"tokens": 256, "learning_rate": 1e-3, "encoding_rate": 1e-2, "patience": 99, "precision": "float32", **more},
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_student_comes_nearer(pair, family):
    original, student, texts = pair(family)
    teacher, words = weights(original), student.get_input_embeddings().weight.clone()
    result = distil(original, student, texts, options(60))
    first, last = result.evaluations[1], result.evaluations[-1]
    assert last.loss < 0.7 * first.loss
    assert 1 - result.best.score < 0.8 * (1 - result.evaluations[0].score)
    assert set(result.evaluations[0].similarity) == {8, 16, 30}
    assert ("logits" in last.losses) == (family == "gpt2")
    assert result.tokens > 60 * 128
    assert same(weights(original), teacher)
    assert torch.equal(student.get_input_embeddings().weight, words)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_matrices_wait(pair):
    original, student, texts = pair("bert")
    before = weights(student)
    distil(original, student, texts, options(6, first=1.0))
    after = weights(student)
    changed = {name for name, _ in student.named_parameters() if not torch.equal(before[name], after[name])}
    assert any("relpos" in name for name in changed)
    assert all("relpos" in name or after[name].ndim == 1 for name in changed)
    trained = {name for name, _ in trained_parameters(student)}
    assert "embeddings.word_embeddings.weight" not in trained


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_matrices_learn_by_products_of_low_rank(pair, family):
    original, student, texts = pair(family)
    before, names = weights(student), {name for name, _ in student.named_parameters()}
    result = distil(original, student, texts, options(40, lora_rank=2, learning_rate=5e-3))
    assert 1 - result.best.score < 0.8 * (1 - result.evaluations[0].score)
    assert {name for name, _ in student.named_parameters()} == names
    changes = {name: value - before[name] for name, value in weights(student).items()}
    ranks = {
        name: int(torch.linalg.matrix_rank(change, tol=1e-5))
        for name, change in changes.items()
        if change.ndim == 2
        and "relpos" not in name
        and "embed" not in name
        and not name.endswith(("wte.weight", "wpe.weight"))
    }
    assert len(ranks) > 3
    assert set(ranks.values()) <= {0, 1, 2}
    assert 2 in ranks.values()
    tables = [change for name, change in changes.items() if "embeddings." in name and change.ndim == 2]
    assert not any(change.any() for change in tables)


def test_products_of_low_rank_go_on_from_a_checkpoint(pair, tmp_path, monkeypatch):
    given = options(8, evaluate_every=4, lora_rank=2)
    original, unbroken, texts = pair("bert")
    distil(original, unbroken, texts, given)
    original, student, texts = pair("bert")
    with monkeypatch.context() as patched:
        patched.setattr(distillation.checkpoint, "save", partial(_then_stop, distillation.checkpoint.save))
        with pytest.raises(KeyboardInterrupt):
            distil(original, student, texts, given, folder=tmp_path)
    original, student, texts = pair("bert")
    distil(original, student, texts, given, folder=tmp_path)
    assert same(weights(student), weights(unbroken))


def _then_stop(save, *given):
    save(*given)
    raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_broken_run_goes_on_to_the_same_weights(pair, family, tmp_path, monkeypatch):
    original, unbroken, texts = pair(family)
    wanted = distil(original, unbroken, texts, options(12, evaluate_every=4, beyond=0.3))
    _, student, _ = pair(family)
    take = distillation._Run._step

    def stop(run, texts):
        if run.result.steps == 6:
            raise KeyboardInterrupt
        return take(run, texts)

    told = []
    with monkeypatch.context() as patched:
        patched.setattr(distillation._Run, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            distil(original, student, texts, options(12, evaluate_every=4, beyond=0.3), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["distillation.pt"]
    _, student, _ = pair(family)
    result = distil(
        original, student, texts, options(12, evaluate_every=4, beyond=0.3), folder=tmp_path, progress=told.append
    )
    assert told[0] == "distilling: going on from step 4 of 12"
    assert same(weights(student), weights(unbroken))
    assert (result.tokens, result.best_step) == (wanted.tokens, wanted.best_step)
    assert result.evaluations == wanted.evaluations


def test_another_run_is_not_gone_on_with(pair, tmp_path):
    original, student, texts = pair("bert")
    distil(original, student, texts, options(2), folder=tmp_path)
    with pytest.raises(ValueError, match=r"of another run: distil_seed was 0 and is 1; distil_steps was 2 and is 3"):
        distil(original, student, texts, options(3, seed=1), folder=tmp_path)
    with torch.no_grad():
        original.base_model.embeddings.word_embeddings.weight[5] += 1
    with pytest.raises(ValueError, match=r"of another run: teacher was '\w+' and is '\w+'"):
        distil(original, student, texts, options(2), folder=tmp_path)
    with torch.no_grad():
        original.base_model.embeddings.word_embeddings.weight[5] -= 1
    (tmp_path / "distillation.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read, remove it"):
        distil(original, student, texts, options(2), folder=tmp_path)


def test_the_best_weights_stay_and_patience_ends(pair):
    """With a rate at which nothing is learned, the fitted weights are the best."""
    original, student, texts = pair("bert")
    before = weights(student)
    result = distil(
        original, student, texts, options(20, learning_rate=3.0, encoding_rate=30.0, evaluate_every=1, patience=3)
    )
    assert result.stopped_early
    assert (result.best_step, result.steps) == (0, 3)
    assert same(weights(student), before)


def test_a_loss_that_is_no_number(pair):
    original, student, texts = pair("bert")
    with torch.no_grad():
        student.base_model.encoder.layer[0].output.LayerNorm.weight.fill_(torch.inf)
    with pytest.raises(RuntimeError, match=r"failed at step 1: its loss is nan"):
        distil(original, student, texts, options(2))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_parts_of_a_long_text(pair, family):
    """The teacher reads each part by itself, the student the whole; what is compared are the same tokens."""
    original, student, texts = pair(family)
    long = next(step[-1] for step in texts.steps(256, 1.0, 0) if step[-1].factor == 2)
    rows, width = len(long.ids), long.ids.shape[1] // 2
    frame = len(long.before) + len(long.after)
    assert long.whole().shape == (rows, 2 * width + frame)
    assert long.parts().shape == (2 * rows, width + frame)
    start, first = len(long.before), width // 2 if family == "gpt2" else 0
    with torch.no_grad():
        theirs, mine = teacher_states(original, long), student_states(student, long)
        alone = original.base_model(long.parts())[0][1, start + first : start + width]
        whole = student.base_model(long.whole())[0][0, start + width + first : start + 2 * width]
    torch.testing.assert_close(theirs.hidden[-1][0, 1], alone)
    torch.testing.assert_close(mine.hidden[-1][0, 1], whole)
    assert (theirs.logits is not None) == (family == "gpt2")


def test_texts_are_drawn_and_held_out(files):
    tokenizer = BertTokenizer.from_pretrained(files["bert"])
    texts = DistillationTexts(
        files["text"], tokenizer, fitting_texts(files["text"], tokenizer, length=24, tokens=900), 24
    )
    assert texts.lengths == [8, 12, 24]
    source = tokenizer(Path(files["text"]).read_text(), add_special_tokens=False)["input_ids"]
    fitted, held_out = texts._bodies(texts.fitting.fit), texts.held_out_ids()
    assert source[: len(fitted) + len(held_out)] == fitted + held_out
    stretch = next(texts._stretches())
    assert stretch == fitted + source[len(fitted) + len(held_out) :]
    steps = texts.steps(288, 0.3, 0)
    drawn = [next(steps) for _ in range(100)]
    usual = [(12, 8, 1), (8, 12, 1), (4, 24, 1)]
    shapes = {tuple((len(one.ids), one.whole().shape[1], one.factor) for one in step) for step in drawn}
    assert shapes == {tuple(usual), (*usual, (2, 46, 2)), (*usual, (1, 90, 4))}
    assert 15 < sum(len(step) == 4 for step in drawn) < 45
    later = next(texts.steps(288, 0.3, 0, first=90))
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(later, drawn[90], strict=True))
    assert not torch.equal(next(texts.steps(288, 0.3, 1))[0].ids, drawn[0][0].ids)


def test_a_text_too_short_to_compare_on(files):
    tokenizer = BertTokenizer.from_pretrained(files["bert"])
    fitting = fitting_texts(["w1 w2 " * 40], tokenizer, length=8, tokens=1000)
    with pytest.raises(ValueError, match=r"the fit left \d+ tokens to compare on, too few for a text of 128"):
        DistillationTexts(files["text"], tokenizer, fitting, 512)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_checkpoint_is_distilled(files, family, tmp_path):
    report = convert_checkpoint(
        files[family],
        tmp_path / "out",
        rel_pos="t5",
        fit=files["text"],
        fit_tokens=1200,
        distil_steps=20,
        distil_options={"tokens": 256, "learning_rate": 1e-3, "patience": 99},
        distil_checkpoint=tmp_path / "way",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    written = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert written["distillation"]["options"]["steps"] == 20
    assert written["distillation"]["steps"] == 20
    assert len(written["distillation"]["evaluations"]) == 21
    assert set(written["distilled"]["pooled"]) == set(written["fitted"]["pooled"])
    assert bool(written["distilled"]["perplexity"]) == (family == "gpt2")
    told = (tmp_path / "out" / "conversion.md").read_text()
    assert "## Distillation" in told
    assert "conversion-distillation.png" in told
    assert (tmp_path / "out" / "conversion-distillation.png").stat().st_size > 1000
    card = (tmp_path / "out" / "README.md").read_text()
    assert "it was distilled: trained 20 steps" in card
    assert "without training" not in card
    assert report.fit.distillation.best_step >= 0
    assert torch.isfinite(AutoModel.from_pretrained(tmp_path / "out")(families.tokens(1, 60))[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": None}, "distil_steps=5 needs raw text and an encoding fitted to it"),
        ({"distil_steps": -1}, "distil_steps=-1 is not valid: it must be a whole number of at least 1"),
        ({"distil_steps": 0}, "distil_steps=0 is not valid"),
        ({"distil_options": {"tokens": 0}}, "distil_tokens=0 is not valid"),
        ({"distil_options": {"learning_rate": 0.0}}, "distil_learning_rate=0.0 is not valid: it must be a positive"),
        ({"distil_options": {"beyond": 2.0}}, "distil_beyond=2.0 is not valid: it must be a share"),
        ({"distil_options": {"precision": "half"}}, "'half' is not valid: it must be one of float32, bfloat16"),
        ({"distil_options": {"seed": -1}}, "distil_seed=-1 is not valid"),
        ({"distil_options": {"length": 25}}, "distil_length=25 is not valid: it must be between 8 and 24"),
        ({"distil_options": {"rate": 1}}, "distil_options has no 'rate'; valid: tokens, length"),
        ({"distil_steps": None, "distil_options": {"tokens": 8}}, "but distil_steps is missing"),
        ({"distil_steps": None, "distil_checkpoint": "way"}, "but distil_steps is missing"),
        ({"fit": ["w1 w2"]}, "has 2 tokens, but at least 192 are needed"),
    ],
)
def test_bad_input_costs_nothing(files, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_relpos.conversion.convert.fit_model", None)
    values = {"rel_pos": "t5", "fit": files["text"], "distil_steps": 5, **arguments}
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(files["bert"], tmp_path / "out", **values)
    assert not any(tmp_path.iterdir())


def test_a_checkpoint_folder_that_is_a_file(files, tmp_path):
    (tmp_path / "way").write_text("x")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        convert_checkpoint(
            files["bert"],
            tmp_path / "out",
            rel_pos="t5",
            fit=files["text"],
            distil_steps=5,
            distil_checkpoint=tmp_path / "way",
        )


def test_a_failure_leaves_the_checkpoint_alone(files, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    arguments = {
        "rel_pos": "t5",
        "fit": files["text"],
        "fit_tokens": 900,
        "distil_steps": 4,
        "distil_options": {"tokens": 128},
        "distil_checkpoint": tmp_path / "way",
    }
    with monkeypatch.context() as patched:
        patched.setattr(hf_relpos.RelPosBertForMaskedLM, "save_pretrained", fail)
        with pytest.raises(OSError, match="disk full"):
            convert_checkpoint(files["bert"], tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["way"]
    told = []
    convert_checkpoint(files["bert"], tmp_path / "out", **arguments, progress=told.append)
    assert "distilling: going on from step 4 of 4" in told
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    distillation_checkpoint.save(tmp_path, {"seed": 0}, {"steps": 1})

    def fail(*args, **kwargs):
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="could not be written: no space left"):
        distillation_checkpoint.save(tmp_path, {"seed": 0}, {"steps": 2})
    assert distillation_checkpoint.load(tmp_path, {"seed": 0}) == {"steps": 1}


def test_bfloat16(pair):
    original, student, texts = pair("bert")
    result = distil(original, student, texts, options(20, precision="bfloat16"))
    assert result.best.score > result.evaluations[0].score
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_what_the_launcher_says(monkeypatch):
    """Its precision counts; half precision that needs a scaled loss is refused."""
    assert not processes.launched()
    assert processes.is_first()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("RANK", "1")
    assert not processes.is_first()
    given = SimpleNamespace(mixed_precision="fp16", process_index=1, num_processes=2, device=torch.device("cpu"))
    monkeypatch.setattr("accelerate.Accelerator", lambda: given)
    with pytest.raises(ValueError, match="mixed_precision=fp16 is not valid for a distillation; use no or bf16"):
        processes.processes(None)
    for said, asked, found in (("no", None, "float32"), ("no", "bfloat16", "bfloat16"), ("bf16", None, "bfloat16")):
        given.mixed_precision = said
        together = processes.processes(asked)
        assert (together.precision, together.index, together.count) == (found, 1, 2)


@pytest.mark.parametrize(("can", "found"), [({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")])
def test_the_precision_of_a_cpu(can, found, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert processes.Processes().precision == found


@pytest.mark.slow
def test_two_processes_distil_the_model_of_one(files, tmp_path):
    """To rounding; only one of them writes and speaks."""
    found = {}
    for count in (1, 2):
        target = tmp_path / str(count)
        config = CONFIGS / f"{'single' if count == 1 else 'ddp_cpu'}.yaml"
        launch = ["accelerate.commands.launch", "--config_file", str(config)]
        flags = {"rel-pos": "t5", "fit": files["text"], "fit-tokens": 900, "distil-steps": 6, "distil-tokens": 96}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = ["convert", files["bert"], str(target), *words, "--json"]
        done = subprocess.run(
            [sys.executable, "-m", *launch, "-m", "hf_relpos.cli", *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = json.loads(done.stdout)["fit"]["distillation"]
        assert (target / "model.safetensors").exists()
    one, two = (found[count]["evaluations"] for count in (1, 2))
    assert [row["loss"] for row in two[1:]] == pytest.approx([row["loss"] for row in one[1:]], rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
