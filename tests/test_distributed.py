"""Several processes train the model of one: whole models (DDP), models in parts (FSDP2), and the launcher's configurations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from checkpoints import RunError
from distribution import is_sharded, shard_where_asked, whole_model
from safetensors.torch import load_file
from toy_qa import questions, save_tiny_bert, write
from toy_training import toy_model
from transformers import AutoModelForQuestionAnswering

TRAINING = Path(__file__).parent.parent / "training"
CONFIGS = sorted((TRAINING / "accelerate").glob("*.yaml"))
ARMS = {
    "shared table": ["--rel_pos", '{"type": "t5", "num_buckets": 8}', "--absolute", "drop"],
    "tables in layers": ["--rel_pos", '{"type": "shaw", "max_distance": 8}', "--absolute", "keep"],
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_launcher_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    said = path.read_text(encoding="utf-8")
    assert f"training/accelerate/{path.name}" in said
    assert "run" in said.lower().split("compute_environment")[0], "each says whether it was run"


def test_the_configurations_are_those_that_are_promised():
    names = {"single", "ddp_cpu", "ddp_gpu", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "multi_node"}
    assert {path.stem for path in CONFIGS} == names
    fsdp = load_config_from_file(str(TRAINING / "accelerate" / "fsdp2.yaml"))
    assert fsdp.fsdp_config["fsdp_version"] == 2
    # one file, written by the main process: a checkpoint is whole or not there
    assert fsdp.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    zero = {n: load_config_from_file(str(TRAINING / "accelerate" / f"deepspeed_zero{n}.yaml")) for n in (2, 3)}
    assert {n: config.deepspeed_config["zero_stage"] for n, config in zero.items()} == {2: 2, 3: 3}


def test_sharding_is_refused_where_it_would_be_left_out_silently(monkeypatch):
    accelerator = Accelerator(cpu=True)
    shard_where_asked(accelerator)
    assert not is_sharded(accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RunError, match="FSDP needs several processes"):
        shard_where_asked(accelerator)


def test_a_model_in_one_piece_is_whole():
    model = toy_model()
    assert whole_model(model, Accelerator(cpu=True)) is model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    return {
        "model": save_tiny_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "train": write(folder / "train.jsonl", questions(36, sentences=1)),
        "dev": write(folder / "dev.jsonl", questions(5, seed=1, sentences=1)),
    }


def train(files, output, arm, *more, config, script=TRAINING / "qa.py", **environment):
    """Run qa.py in processes of its own; 20 steps, with evaluations, checkpoints and a last batch for one process only."""
    settings = {
        "model": files["model"],
        "train_file": files["train"],
        "validation_file": files["dev"],
        "output_dir": output,
        "max_length": 24,
        "doc_stride": 5,
        "train_batch_size": 4,
        "eval_batch_size": 2,
        "learning_rate": 3e-3,
        "max_answer_length": 4,
        "max_steps": 20,
        "eval_steps": 8,
        "save_steps": 10,
        "group_by_length": "false",
        "tracker": "none",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(TRAINING / "accelerate" / f"{config}.yaml")]
    command = [*launch, str(script), *words, *ARMS[arm], *more]
    if config == "fsdp2":
        command[4:4] = ["--fsdp_transformer_layer_cls_to_wrap", "BertLayer", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *command],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TRAINING), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    """One process that accumulates the batches of two, for each arm."""
    folder = tmp_path_factory.mktemp("alone")
    for arm in ARMS:
        train(files, folder / arm, arm, "--gradient_accumulation_steps", "2", config="single")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "arm", "stops"),
    [("ddp_cpu", "shared table", True), ("fsdp2", "shared table", True), ("fsdp2", "tables in layers", False)],
)
def test_two_processes_train_the_model_of_one(files, alone, tmp_path, config, arm, stops):
    """To 1e-5 in each of 20 losses, also when they stop in the middle and go on; and one process loads what they save."""
    output = tmp_path / "two"
    resuming = []
    if stops:
        train(files, output, arm, config=config, script=Path(__file__).with_name("stopping_qa.py"), STOP_AFTER="10")
        assert not (output / "metrics.json").exists()
        resuming = ["--resume", "true"]
    done = train(files, output, arm, *resuming, config=config)
    assert (f"resuming from {output}/checkpoint-10 at step 10" in done.stdout) == stops
    assert done.stdout.count("written to") == 1
    one, two = logged(alone / arm), logged(output)
    assert [sorted(line) for line in two] == [sorted(line) for line in one]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert (output / "metrics.json").read_text() == (alone / arm / "metrics.json").read_text()

    model = AutoModelForQuestionAnswering.from_pretrained(output)
    assert type(model) is type(AutoModelForQuestionAnswering.from_pretrained(alone / arm))
    a, b = (load_file(path / "model.safetensors") for path in (output, alone / arm))
    assert a.keys() == b.keys()
    for name, value in a.items():
        # the gradient of what the softmax loses is rounding alone, and Adam forgets scale
        if not name.endswith(("key.bias", "qa_outputs.bias")):
            torch.testing.assert_close(value, b[name], atol=1e-3, rtol=1e-3, msg=lambda t, name=name: f"{name}: {t}")
    encodings = [name for name in a if "relpos" in name]
    assert encodings
    assert all(bool(a[name].any()) for name in encodings)
    identity = json.loads((output / "checkpoint-20" / "progress.json").read_text())["identity"]
    assert identity["number of processes"] == 2
    assert identity["distribution"] == {"ddp_cpu": "MULTI_CPU", "fsdp2": "FSDP"}[config]
