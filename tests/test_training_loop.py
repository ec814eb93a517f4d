"""The loop that every task shares: batches, parameter groups, accumulation, schedule, best model, checkpoints, resuming, refusing."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_training
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from arguments import as_scalars, parse_arguments
from batches import Stream, batches_of, epoch_batches
from checkpoints import (
    RunError,
    check_folder,
    checkpoints,
    complete,
    fingerprint,
    newest_checkpoint,
    prepare_folder,
)
from loop import LoopArguments, Stopped, next_token_weight, parameter_groups, row_weight, target_weight
from safetensors.torch import load_file
from toy_training import log_of, losses_of, noisy_collate, toy_collate, toy_loop, toy_model, toy_rows, toy_score

import hf_relpos

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
SIGKILLED = -signal.SIGKILL


@pytest.mark.parametrize("lengths", [None, [n * 7 % 13 for n in range(103)]])
@pytest.mark.parametrize("batch_size", [1, 4, 103, 500])
def test_an_epoch_has_each_row_once(lengths, batch_size):
    for epoch in range(3):
        batches = epoch_batches(103, batch_size, seed=5, epoch=epoch, lengths=lengths)
        assert sorted(row for batch in batches for row in batch) == list(range(103))
        assert sorted(map(len, batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("lengths", [None, list(range(50))])
def test_batches_are_a_function_of_seed_and_epoch_alone(lengths):
    def made(seed, epoch):
        return epoch_batches(50, 4, seed=seed, epoch=epoch, lengths=lengths)

    first = made(3, 2)
    torch.rand(1)
    random.random()
    state = torch.get_rng_state()
    assert made(3, 2) == first
    assert torch.equal(torch.get_rng_state(), state)
    different = [made(3, 2), made(3, 3), made(4, 2), made(2, 3)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_batches_of_similar_length_pad_little():
    lengths = torch.randint(10, 400, (2000,), generator=torch.Generator().manual_seed(0)).tolist()

    def padded(grouped):
        batches = epoch_batches(2000, 16, seed=0, epoch=0, lengths=lengths if grouped else None)
        return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) / sum(lengths)

    assert padded(True) < 1.1
    assert padded(False) > 1.5
    # long and short batches alternate over the epoch
    means = [lengths[batch[0]] for batch in epoch_batches(2000, 16, seed=0, epoch=0, lengths=lengths)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def names_by_group(model, **arguments):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, LoopArguments(learning_rate=1e-3, weight_decay=0.1, **arguments))
    return [({names[id(p)] for p in group["params"]}, group["lr"], group["weight_decay"]) for group in groups]


@pytest.mark.parametrize("rel_pos", [{"type": "t5"}, {"type": "shaw", "max_distance": 4}])
@pytest.mark.parametrize(("given", "rate"), [(None, 1e-2), (3e-4, 3e-4)])
def test_encodings_have_their_own_rate_and_no_decay(rel_pos, given, rate):
    model = toy_model(rel_pos=rel_pos)
    decay, plain, encoding = names_by_group(model, encoding_learning_rate=given)
    assert encoding[1:] == (pytest.approx(rate), 0.0)
    assert decay[1:] == (1e-3, 0.1)
    assert plain[1:] == (1e-3, 0.0)
    assert encoding[0] == {name for name, _ in model.named_parameters() if "relpos" in name} != set()
    assert {name.rpartition(".")[2] for name in plain[0]} == {"weight", "bias"}
    assert all("LayerNorm" in name for name in plain[0] if name.endswith("weight"))
    assert decay[0] | plain[0] | encoding[0] == {name for name, _ in model.named_parameters()}


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = toy_model(rel_pos={"type": "none"})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("qa_outputs"))
    assert [group[0] for group in names_by_group(model)] == [{"qa_outputs.weight"}, {"qa_outputs.bias"}]


def test_a_name_that_only_ends_like_an_encoding_is_none():
    model = torch.nn.Module()
    model.norelpos = torch.nn.Linear(2, 2)
    assert [group[1] for group in names_by_group(model)] == [1e-3, 1e-3]


# peft asks for an attribute that transformers renames
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_encodings_are_known_under_the_names_that_peft_gives_them():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = peft.LoraConfig(target_modules=["query"], r=2, modules_to_save=["relpos"])
    groups = names_by_group(peft.get_peft_model(toy_model(), settings))
    encoding = [group for group in groups if group[1] == pytest.approx(1e-2)]
    ((names, _, decay),) = encoding
    assert names
    assert all(".relpos.modules_to_save." in name for name in names)
    assert decay == 0.0
    assert all("lora_" in name for group in groups if group is not encoding[0] for name in group[0])


def weights_after(folder, rows, **arguments):
    loop = toy_loop(folder, model=toy_model(dropout=0.0), rows=rows, group_by_length=False, **arguments)
    loop.run()
    return {name: parameter.detach().clone() for name, parameter in loop.model.named_parameters()}, losses_of(folder)


def test_accumulated_batches_make_the_step_of_one_big_batch(tmp_path):
    rows = toy_rows(32)
    big, big_losses = weights_after(tmp_path / "big", rows, train_batch_size=8, epochs=2)
    small, small_losses = weights_after(
        tmp_path / "small", rows, train_batch_size=2, gradient_accumulation_steps=4, epochs=2
    )
    assert len(big_losses) == 8
    for (_, a), (_, b) in zip(big_losses, small_losses, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    # a shift common to all keys, or to all logits, is lost in the softmax: the gradient of these is rounding alone, and Adam forgets scale
    shifts = ("key.bias", "qa_outputs.bias", "layer.1.output.LayerNorm.bias")
    for name in big:
        if not name.endswith(shifts):
            torch.testing.assert_close(
                small[name], big[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("count", [18, 19, 21, 22, 23])
@pytest.mark.parametrize(("batch_size", "parts"), [(8, 1), (2, 4)])
def test_the_last_step_of_an_epoch_weighs_its_rows_like_any_other(tmp_path, count, batch_size, parts):
    """Of 8 rows a step the last has 2 to 7, in batches of 2: fewer batches than a step has, the last of them perhaps short."""
    rows = toy_rows(count)
    loop = toy_loop(
        tmp_path,
        model=toy_model(dropout=0.0),
        rows=rows,
        group_by_length=False,
        train_batch_size=batch_size,
        gradient_accumulation_steps=parts,
        max_steps=3,
        max_grad_norm=0.0,
    )
    assert loop.steps_per_epoch == 3
    chosen = epoch_batches(count, 8, seed=0, epoch=0)
    assert len(chosen[-1]) == count - 16
    step = loop.optimizer.step
    expected = []

    def compare():
        loss = loop.model(**toy_collate([rows[row] for row in chosen[len(expected)]])).loss
        gradients = torch.autograd.grad(loss, list(loop.model.parameters()))
        for parameter, gradient in zip(loop.model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
        expected.append(float(loss.detach()))
        step()

    loop.optimizer.step = compare
    loop.run()
    assert [loss for _, loss in losses_of(tmp_path)] == pytest.approx(expected, rel=1e-5)


def rates(folder):
    return [line["learning_rate"] for line in log_of(folder) if "loss" in line]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        ("constant_with_warmup", [0.5, *[1] * 9]),
        ("constant", [1] * 10),
        ("cosine", [0.5, *(0.5 + 0.5 * np.cos(np.pi * n / 8) for n in range(9))]),
    ],
)
def test_warmup_and_decay(tmp_path, schedule, expected):
    toy_loop(tmp_path, max_steps=10, warmup_ratio=0.2, schedule=schedule, learning_rate=0.01).run()
    # logged after a step is the rate of the next
    assert rates(tmp_path) == pytest.approx([0.01 * value for value in expected])


def test_each_group_follows_the_schedule_from_its_own_peak(tmp_path):
    loop = toy_loop(tmp_path, max_steps=4, warmup_ratio=0.5, learning_rate=0.01, encoding_learning_rate=0.02)
    peaks = []
    loop.evaluate = lambda model, accelerator: (
        peaks.append([group["lr"] for group in loop.optimizer.param_groups]) or toy_score(model, accelerator)
    )
    loop.arguments.eval_steps = 2
    loop.run()
    assert peaks[0] == pytest.approx([0.01, 0.01, 0.02])
    assert peaks[-1] == pytest.approx([0.0, 0.0, 0.0])


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_gradients_are_clipped(tmp_path, limit):
    loop = toy_loop(tmp_path, max_steps=2, max_grad_norm=limit)
    norms = []
    step = loop.optimizer.step
    loop.optimizer.step = lambda: (
        norms.append(float(torch.stack([p.grad.norm() for p in loop.model.parameters()]).norm())),
        step(),
    )
    loop.run()
    if limit:
        assert norms == pytest.approx([limit, limit], rel=1e-3)
    else:
        assert min(norms) > 0.5


def test_epochs_and_steps(tmp_path):
    rows = toy_rows(22)
    assert toy_loop(tmp_path / "a", rows=rows, epochs=2).max_steps == 12
    assert toy_loop(tmp_path / "b", rows=rows, epochs=0.5).max_steps == 3
    assert toy_loop(tmp_path / "c", rows=rows, epochs=0.01).max_steps == 1
    assert toy_loop(tmp_path / "d", rows=rows, epochs=2, gradient_accumulation_steps=4).max_steps == 4
    assert toy_loop(tmp_path / "e", rows=rows, epochs=2, max_steps=100).max_steps == 100


def test_training_learns(tmp_path):
    loop = toy_loop(tmp_path, model=toy_model(dropout=0.0), rows=toy_rows(64), epochs=12, learning_rate=2e-2)
    loop.run()
    losses = [loss for _, loss in losses_of(tmp_path)]
    assert losses[-1] < 0.3 * losses[0]


def test_gradient_checkpointing_changes_memory_only(tmp_path):
    plain = toy_loop(tmp_path / "a", model=toy_model(dropout=0.0), max_steps=4)
    saving = toy_loop(tmp_path / "b", model=toy_model(dropout=0.0), max_steps=4, gradient_checkpointing=True)
    use_cache = saving.model.config.use_cache
    plain.run()
    saving.run()
    assert [loss for _, loss in losses_of(tmp_path / "a")] == pytest.approx(
        [loss for _, loss in losses_of(tmp_path / "b")]
    )
    assert saving.model.is_activation_checkpointing
    assert saving.model.config.use_cache is use_cache


def test_evaluating_does_not_change_training(tmp_path):
    def noisy(model, accelerator):
        torch.rand(17)
        return toy_score(model, accelerator)

    toy_loop(tmp_path / "a", score=noisy, max_steps=6).run()
    toy_loop(tmp_path / "b", score=noisy, max_steps=6, eval_steps=1).run()
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")


def test_an_accelerator_that_was_left_in_the_middle_of_accumulating_does_no_harm(tmp_path):
    Accelerator().sync_gradients = False
    loop = toy_loop(tmp_path, max_steps=2)
    before = loop.model.qa_outputs.weight.detach().clone()
    loop.run()
    assert not torch.equal(loop.model.qa_outputs.weight, before)


def planned(scores):
    """An evaluation that gives the scores planned, and remembers the weights that it saw."""

    def evaluate(model, accelerator):
        evaluate.seen.append(model.qa_outputs.weight.detach().clone())
        return {"f1": scores[len(evaluate.seen) - 1]}

    evaluate.seen = []
    return evaluate


@pytest.mark.parametrize(
    ("scores", "best"), [((1, 5, 3, 2), 4), ((1, 2, 3, 4), 8), ((4, 3, 2, 1), 2), ((3, 3, 3, 3), 2)]
)
def test_the_best_model_is_kept_and_given_back(tmp_path, scores, best):
    evaluate = planned(scores)
    loop = toy_loop(tmp_path, score=evaluate, max_steps=8, eval_steps=2)
    metrics = loop.run()
    assert metrics == {"f1": max(scores)}
    assert loop.best == {"step": best, "metrics": metrics}
    assert torch.equal(loop.model.qa_outputs.weight, evaluate.seen[best // 2 - 1])
    # all of the model goes back, not the head alone
    stored = load_file(tmp_path / f".best-{best}.safetensors")
    state = loop.model.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in stored)
    assert [path.name for path in tmp_path.glob(".best-*")] == [f".best-{best}.safetensors"]


@pytest.mark.parametrize(
    ("scores", "best"), [((5, 1, 3, 2), 4), ((5, 4, 3, 2), 8), ((1, 2, 3, 4), 2), ((3, 3, 3, 3), 2)]
)
def test_the_best_model_may_be_that_of_the_lowest_score(tmp_path, scores, best):
    loop = toy_loop(tmp_path, score=planned(scores), greater_is_better=False, max_steps=8, eval_steps=2)
    assert loop.run() == {"f1": min(scores)}
    assert loop.best["step"] == best


@pytest.mark.parametrize(
    ("scores", "patience", "last", "best"),
    [
        ((1, 3, 2, 3, 9, 9), 2, 8, 4),
        ((1, 3, 2, 4, 3, 3), 2, 12, 8),
        ((3, 2, 9), 1, 4, 2),
        ((1, 2, 3, 4, 5, 6), 1, 12, 12),
    ],
)
def test_patience(tmp_path, scores, patience, last, best):
    """Evaluated every second of 12 steps: training stops after so many scores in a row that are no better than the best."""
    evaluate = planned(scores)
    loop = toy_loop(tmp_path, score=evaluate, max_steps=12, eval_steps=2, patience=patience)
    assert loop.run() == {"f1": scores[best // 2 - 1]}
    assert (loop.step, loop.best["step"]) == (last, best)
    assert torch.equal(loop.model.qa_outputs.weight, evaluate.seen[best // 2 - 1])


def test_a_resumed_run_has_the_patience_that_was_left(tmp_path):
    settings = {"max_steps": 12, "eval_steps": 2, "save_steps": 1, "patience": 3}
    loop = toy_loop(tmp_path, score=planned([5, 4, 3, 2]), **settings)
    stop_after(loop, 6)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    again = toy_loop(tmp_path, score=planned([2, 9, 9]), resume=True, **settings)
    assert again.run() == {"f1": 5}
    assert again.step == 8
    # and one that had none left takes no further step
    for path in checkpoints(tmp_path)[:-1]:
        shutil.rmtree(path)
    last = toy_loop(tmp_path, score=planned([]), resume=True, **settings)
    assert last.run() == {"f1": 5}
    assert last.step == 8


def target_rows():
    """Rows with 1 to 9 targets; the model learns to repeat each token, padding aside."""
    generator = random.Random(0)
    return [{"input_ids": [generator.randrange(10, 50) for _ in range(n)]} for n in (9, 1, 1, 2, 8, 1, 3, 1, 5, 1)]


def target_collate(batch):
    inputs = {name: torch.zeros(len(batch), 12, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    inputs["labels"] = torch.full((len(batch), 12), -100)
    for number, row in enumerate(batch):
        length = len(row["input_ids"])
        inputs["input_ids"][number, :length] = torch.tensor(row["input_ids"])
        inputs["attention_mask"][number, :length] = 1
        inputs["labels"][number, :length] = inputs["input_ids"][number, :length]
    return inputs


def target_loop(folder, *, collate=target_collate, rows=None, **arguments):
    torch.manual_seed(0)
    config = hf_relpos.RelPosBertConfig(
        **toy_training.SIZES,
        rel_pos={"type": "t5"},
        absolute="drop",
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    settings = {"weigh": target_weight, "group_by_length": False, "max_grad_norm": 0.0, **arguments}
    return toy_loop(
        folder,
        model=hf_relpos.RelPosBertForMaskedLM(config),
        rows=target_rows() if rows is None else rows,
        collate=collate,
        score=lambda model, accelerator: {"f1": 0.0},
        **settings,
    )


@pytest.mark.parametrize(("batch_size", "parts"), [(10, 1), (2, 5), (3, 4), (1, 10)])
def test_each_target_counts_the_same_in_whatever_batch(tmp_path, batch_size, parts):
    """The loss of a step is the mean over all its targets, not the mean of the batches' means, and so is its gradient."""
    loop = target_loop(tmp_path, train_batch_size=batch_size, gradient_accumulation_steps=parts, max_steps=1)
    loss = loop.model(**target_collate(target_rows())).loss
    expected = dict(
        zip(loop.model.state_dict(), torch.autograd.grad(loss, list(loop.model.parameters())), strict=False)
    )
    gradients = {}
    step = loop.optimizer.step
    loop.optimizer.step = lambda: (
        gradients.update({n: p.grad.clone() for n, p in loop.model.named_parameters()}),
        step(),
    )
    loop.run()
    assert losses_of(tmp_path)[0][1] == pytest.approx(float(loss.detach()), rel=1e-6)
    parameters = [name for name, _ in loop.model.named_parameters()]
    for name, gradient in zip(parameters, expected.values(), strict=True):
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_does_no_harm_and_a_step_without_any_is_refused(tmp_path):
    def collate(batch):
        inputs = target_collate(batch)
        if len(batch[0]["input_ids"]) == 1:
            inputs["labels"][:] = -100
        return inputs

    rows = [row for row in target_rows() if len(row["input_ids"]) != 1]
    settings = {"train_batch_size": 1, "gradient_accumulation_steps": 10, "max_steps": 2}
    target_loop(tmp_path / "with", collate=collate, **settings).run()
    target_loop(tmp_path / "without", rows=rows, **settings).run()
    assert [loss for _, loss in losses_of(tmp_path / "with")] == pytest.approx(
        [loss for _, loss in losses_of(tmp_path / "without")], rel=1e-5
    )
    loop = target_loop(tmp_path / "none", collate=collate, rows=[{"input_ids": [1]}] * 4, max_steps=2)
    with pytest.raises(RunError, match="no row of step 1 has a target"):
        loop.run()


def test_weights_count_targets():
    labels = torch.tensor([[5, -100, 7], [-100, -100, 8]])
    inputs = {"input_ids": labels, "labels": labels}
    assert (row_weight(inputs), target_weight(inputs), next_token_weight(inputs)) == (2, 3, 2)


@pytest.fixture
def no_accelerator_yet():
    """All accelerators of a process share a state, which knows the first one's backend for compiling."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_compiling_changes_no_losses(tmp_path, no_accelerator_yet):
    """With the backend that traces and computes as before."""
    settings = {"max_steps": 3, "tracker": "none"}
    toy_loop(tmp_path / "plain", model=toy_model(dropout=0.0), **settings).run()
    AcceleratorState._reset_state(True)
    loop = toy_loop(tmp_path / "traced", model=toy_model(dropout=0.0), compile_backend="aot_eager", **settings)
    assert hasattr(loop.model, "_orig_mod")
    loop.run()
    assert [loss for _, loss in losses_of(tmp_path / "traced")] == pytest.approx(
        [loss for _, loss in losses_of(tmp_path / "plain")], rel=1e-5
    )


def test_finishing_says_so_and_clears_what_only_resuming_needs(tmp_path):
    toy_loop(tmp_path, max_steps=2, save_steps=1).run()
    assert list(tmp_path.glob(".best-*"))
    complete(tmp_path, {"f1": 1.5})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"f1": 1.5}
    assert not list(tmp_path.glob(".*"))
    assert len(checkpoints(tmp_path)) == 2


def test_checkpoints_rotate(tmp_path):
    toy_loop(tmp_path, max_steps=12, save_steps=1, keep_checkpoints=3).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-11", "checkpoint-12"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-12"
    assert not list(tmp_path.glob(".checkpoint*"))
    progress = json.loads((tmp_path / "checkpoint-11" / "progress.json").read_text())
    assert progress["step"] == 11
    assert progress["identity"]["seed"] == 0


def test_only_complete_checkpoints_count(tmp_path):
    for name, whole in (("checkpoint-2", True), ("checkpoint-10", True), ("checkpoint-11", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "progress.json").write_text("{}")
    for name in ("checkpoint-best", "checkpoint-", ".checkpoint-99"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text("{}")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_best_models_of_checkpoints_that_are_kept_stay(tmp_path):
    """A run resumed from the older checkpoint must find the model that was best then."""
    loop = toy_loop(tmp_path, score=planned([5, 4, 6, 1]), max_steps=8, eval_steps=2, save_steps=3)
    loop.run()
    best = {
        path.name: json.loads((path / "progress.json").read_text())["best"]["step"] for path in checkpoints(tmp_path)
    }
    assert best == {"checkpoint-3": 2, "checkpoint-6": 6}
    assert sorted(path.name for path in tmp_path.glob(".best-*")) == [".best-2.safetensors", ".best-6.safetensors"]


DROPOUT = {"epochs": 3, "save_steps": 2, "warmup_ratio": 0.3}
# 22 rows in batches of 4: an epoch has 6 steps, or 3 of two batches
SCENARIOS = [
    {"name": "plain", "arguments": {**DROPOUT, "group_by_length": False}, "kill_at_batch": 10, "resumes_at": 8},
    {"name": "by_length", "arguments": {**DROPOUT, "group_by_length": True}, "kill_at_batch": 10, "resumes_at": 8},
    # the newest checkpoint is the last step of the first epoch
    {"name": "epoch_border", "arguments": DROPOUT, "kill_at_batch": 8, "resumes_at": 6},
    # and one epoch further, whose batches no earlier one has
    {"name": "second_border", "arguments": {**DROPOUT, "save_steps": 12}, "kill_at_batch": 16, "resumes_at": 12},
    {
        "name": "accumulating",
        "arguments": {**DROPOUT, "gradient_accumulation_steps": 2},
        # in the middle of a step
        "kill_at_batch": 10,
        "resumes_at": 4,
    },
    {"name": "in_checkpoint", "arguments": DROPOUT, "kill_in_checkpoint": 10, "resumes_at": 8},
    {
        "name": "evaluating",
        "arguments": {**DROPOUT, "eval_steps": 3, "save_steps": 5, "keep_checkpoints": 1},
        "kill_at_batch": 14,
        "resumes_at": 10,
    },
    {"name": "at_the_end", "arguments": {**DROPOUT, "save_steps": 9}, "kill_in_evaluation": True, "resumes_at": 18},
]


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    (folder / "scenarios.json").write_text(json.dumps(SCENARIOS))
    done = subprocess.run(
        [sys.executable, toy_training.__file__, str(folder / "scenarios.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "training"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "ended.json").read_text()), done


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(killed_runs, scenario):
    folder, ended, done = killed_runs
    name = scenario["name"]
    assert ended[name]["whole"] == 0, done.stderr
    assert ended[name]["killed"] == SIGKILLED, done.stderr
    assert ended[name]["resumed"] == 0, done.stderr
    whole, killed = folder / f"{name}-whole", folder / f"{name}-killed"
    assert f"resuming from {killed}/checkpoint-{scenario['resumes_at']} at step" in done.stdout
    assert (".checkpoint-10" in ended[name]["left"]) == (name == "in_checkpoint")

    # to the last bit: numbers are written so that they read back as they were
    assert log_of(killed) == log_of(whole)
    assert [step for step, _ in losses_of(whole)] == list(range(1, len(losses_of(whole)) + 1))
    weights, expected = (load_file(path / "final.safetensors") for path in (killed, whole))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert (killed / "final.json").read_text() == (whole / "final.json").read_text()
    assert not list(killed.glob(".checkpoint-*"))


@pytest.mark.slow
def test_the_scenarios_differ_and_dropout_matters(killed_runs):
    folder, _, _ = killed_runs
    runs = {name: losses_of(folder / f"{name}-whole") for name in ("plain", "by_length", "accumulating")}
    assert runs["plain"] != runs["by_length"]
    assert len(runs["accumulating"]) == 9
    assert len(runs["plain"]) == 18


def test_a_stream_gives_each_row_once_an_epoch_in_an_order_of_its_own(tmp_path):
    rows = [{"input_ids": [n] * (n % 7 + 1)} for n in range(50)]
    stream = Stream(lambda: iter(rows), "", shuffle_buffer=17)

    def order(seed, epoch, grouped=True):
        batches = list(batches_of(stream, 4, seed=seed, epoch=epoch, lengths=None, grouped=grouped))
        assert [len(batch) for batch in batches[:12]] == [4] * 12
        return [row["input_ids"][0] for batch in batches for row in batch]

    made = [order(0, 0), order(0, 1), order(1, 0), order(0, 0, grouped=False)]
    assert all(sorted(numbers) == list(range(50)) for numbers in made)
    assert all(a != b for i, a in enumerate(made) for b in made[:i])
    assert order(0, 0) == made[0]
    # shuffled within stretches of 16, the whole batches that fit into 17 rows
    assert sorted(made[3][:16]) == list(range(16))


def test_a_stream_reads_no_further_than_it_must(tmp_path):
    seen = []

    def read():
        for row in toy_rows(1000):
            seen.append(1)
            yield row

    loop = toy_loop(tmp_path, rows=Stream(read, "x", shuffle_buffer=8), max_steps=3)
    loop.run()
    assert len(seen) <= 24


def test_a_stream_trains_on_all_rows_and_a_resumed_one_goes_on(tmp_path):
    stream = Stream(lambda: iter(toy_rows(22)), "rows", shuffle_buffer=12)
    whole = toy_loop(tmp_path / "whole", rows=stream, collate=noisy_collate, max_steps=14, save_steps=5)
    whole.run()
    # an epoch has 6 batches
    assert (whole.epoch, whole.epoch_step) == (2, 2)
    broken = toy_loop(tmp_path / "broken", rows=stream, collate=noisy_collate, max_steps=14, save_steps=5)
    stop_after(broken, 10)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    settings = {"collate": noisy_collate, "max_steps": 14, "save_steps": 5, "resume": True}
    with pytest.raises(RunError, match="training data was 'rows' and is 'others'"):
        toy_loop(tmp_path / "broken", rows=Stream(stream.read, "others", 12), **settings).run()
    toy_loop(tmp_path / "broken", rows=stream, **settings).run()
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_streams_that_cannot_be(tmp_path):
    with pytest.raises(RunError, match="how many rows a stream has is not known: say max_steps"):
        toy_loop(tmp_path / "a", rows=Stream(lambda: iter(toy_rows(3)), ""))
    loop = toy_loop(tmp_path / "b", rows=Stream(lambda: iter([]), ""), max_steps=2)
    with pytest.raises(RunError, match="no rows to train on"):
        loop.run()


def test_sigterm_saves_a_checkpoint_and_a_resumed_run_goes_on(tmp_path):
    settings = {"max_steps": 8, "eval_steps": 3}

    def stopping(batch):
        stopping.calls += 1
        if stopping.calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return noisy_collate(batch)

    stopping.calls = 0
    before = signal.getsignal(signal.SIGTERM)
    toy_loop(tmp_path / "whole", collate=noisy_collate, **settings).run()
    loop = toy_loop(tmp_path / "stopped", collate=stopping, **settings)
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 4; --resume true goes on from there"):
        loop.run()
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["checkpoint-4"]
    toy_loop(tmp_path / "stopped", collate=noisy_collate, resume=True, **settings).run()
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


def resumed(folder, **changes):
    return toy_loop(folder, resume=True, **{"max_steps": 6, "save_steps": 2, **changes})


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run of 6 steps that stopped after 4, with checkpoints of steps 2 and 4; copied by each test that resumes it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    loop = toy_loop(folder, collate=noisy_collate, max_steps=6, save_steps=2)
    stop_after(loop, 4)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    return folder


def stop_after(loop, step):
    """Stop when the checkpoint of ``step`` is whole."""
    save = loop._save_checkpoint

    def stop():
        save()
        if loop.step == step:
            raise KeyboardInterrupt

    loop._save_checkpoint = stop


@pytest.fixture
def copied(stopped_run, tmp_path):
    return Path(shutil.copytree(stopped_run, tmp_path / "copy"))


def test_random_numbers_are_restored(copied):
    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))

    loop = resumed(copied)
    draws = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        loop._restore(newest_checkpoint(copied))
        draws.append(drawn())
    assert draws[0] == draws[1]
    fresh = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        fresh.append(drawn())
    for a, b, c in zip(*fresh, draws[0], strict=True):
        assert len({a, b, c}) == 3, "neither the run's first numbers nor the present ones"


def test_optimizer_and_schedule_are_restored(copied):
    loop = resumed(copied)
    assert not loop.optimizer.state_dict()["state"]
    loop._restore(newest_checkpoint(copied))
    assert {int(state["step"]) for state in loop.optimizer.state_dict()["state"].values()} == {4}
    assert loop.schedule.scheduler.last_epoch == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"train_batch_size": 5}, "train_batch_size was 4 and is 5"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
        ({"learning_rate": 0.02}, "learning_rate was 0.01 and is 0.02"),
        ({"max_steps": 8}, "max_steps was 6 and is 8"),
        ({"group_by_length": False}, "group_by_length was True and is False"),
        ({"eval_steps": 1}, "eval_steps was None and is 1"),
        ({"rows": toy_rows(22, seed=5)}, r"training data was '\w{16}' and is '\w{16}'"),
        ({"rows": toy_rows(21)}, r"training data was '\w{16}' and is '\w{16}'"),
        ({"seed": 1, "schedule": "cosine"}, "schedule was 'linear' and is 'cosine'; seed was 0 and is 1"),
    ],
)
def test_another_run_is_not_resumed(copied, changes, message):
    before = (copied / "log.jsonl").read_text()
    with pytest.raises(RunError, match=rf"checkpoint-4 is of another run: .*{message}"):
        resumed(copied, **changes).run()
    assert (copied / "log.jsonl").read_text() == before
    assert len(checkpoints(copied)) == 2


def test_other_evaluation_data_are_another_run(copied):
    loop = resumed(copied)
    loop.eval_rows = toy_rows(3)
    with pytest.raises(RunError, match="evaluation data was"):
        loop.run()


def test_what_does_not_matter_may_change(copied):
    loop = resumed(copied, collate=noisy_collate, save_steps=1, keep_checkpoints=5, eval_batch_size=3)
    loop.run()
    assert [step for step, _ in losses_of(copied)] == [1, 2, 3, 4, 5, 6]
    assert len(checkpoints(copied)) == 4


def test_a_checkpoint_of_another_device_or_number_of_processes_is_refused(copied):
    path = copied / "checkpoint-4" / "progress.json"
    progress = json.loads(path.read_text())
    progress["identity"] |= {"number of processes": 2, "kind of device": "cuda"}
    path.write_text(json.dumps(progress))
    with pytest.raises(RunError, match="kind of device was 'cuda' and is 'cpu'; number of processes was 2 and is 1"):
        resumed(copied).run()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("optimizer.bin", truncate),
        ("optimizer.bin", Path.unlink),
        ("scheduler.bin", lambda path: path.write_bytes(b"")),
        ("random_states_0.pkl", truncate),
        ("random_states_0.pkl", Path.unlink),
        ("progress.json", truncate),
        ("progress.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(copied, name, damage):
    damage(copied / "checkpoint-4" / name)
    with pytest.raises(
        RunError, match="checkpoint-4 cannot be read, remove it to resume from an earlier one: "
    ) as caught:
        resumed(copied).run()
    assert "\n" not in str(caught.value)
    # and that helps
    shutil.rmtree(copied / "checkpoint-4")
    resumed(copied, collate=noisy_collate).run()
    assert [step for step, _ in losses_of(copied)] == [1, 2, 3, 4, 5, 6]


def test_a_best_model_that_is_gone_is_missed_at_once(tmp_path):
    loop = toy_loop(tmp_path, max_steps=6, save_steps=2, eval_steps=1)
    stop_after(loop, 4)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    (tmp_path / f".best-{loop.best['step']}.safetensors").unlink()
    with pytest.raises(RunError, match=r"checkpoint-4 cannot be read, .*the best model so far, is missing"):
        resumed(tmp_path, eval_steps=1).run()


def test_a_half_written_checkpoint_is_cleared_away_and_not_resumed_from(copied):
    unfinished = copied / ".checkpoint-6"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    (copied / ".best-5.partial").write_bytes(b"half")
    loop = resumed(copied, collate=noisy_collate)
    assert not unfinished.exists()
    assert not list(copied.glob("*.partial"))
    assert loop.run()
    assert len(checkpoints(copied)) == 2


def test_the_log_forgets_steps_that_are_taken_again(copied):
    with (copied / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 99.0}) + "\n" + '{"step": 6, "lo')
    resumed(copied, collate=noisy_collate).run()
    assert [step for step, _ in losses_of(copied)] == [1, 2, 3, 4, 5, 6]
    assert 99.0 not in [loss for _, loss in losses_of(copied)]


def test_a_fingerprint_tells_rows_apart():
    rows = toy_rows(5)
    changed = [{**row} for row in rows]
    changed[3]["end_positions"] -= 1
    prints = {fingerprint(rows), fingerprint(changed), fingerprint(rows[::-1]), fingerprint(rows[:4]), fingerprint([])}
    assert len(prints) == 5
    assert fingerprint(rows) == fingerprint(toy_rows(5))


def test_resuming_what_is_complete_or_never_began(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(RunError, match="holds no complete checkpoint to resume from"):
        resumed(tmp_path)
    with pytest.raises(RunError, match="holds no complete checkpoint to resume from"):
        resumed(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    complete(tmp_path, {"f1": 1.0})
    with pytest.raises(RunError, match="is complete: there is nothing to resume"):
        resumed(tmp_path)


def test_resuming_a_loop_whose_checkpoints_went_away(copied):
    loop = resumed(copied)
    for path in checkpoints(copied):
        (path / "progress.json").unlink()
    with pytest.raises(RunError, match="holds no complete checkpoint"):
        loop.run()


def arguments(folder, **changes):
    return LoopArguments(output_dir=str(folder), **changes)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for check in (check_folder, prepare_folder):
        with pytest.raises(RunError, match=r"is not empty: use --resume true .* or --overwrite_output_dir true"):
            check(arguments(tmp_path))
    check_folder(arguments(tmp_path, overwrite_output_dir=True))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwriting_empties_the_folder_and_nothing_else(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("stays")
    folder = tmp_path / "run"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / ".checkpoint-4").mkdir()
    (folder / ".hidden").write_text("")
    (folder / "link").symlink_to(kept)
    prepare_folder(arguments(folder, overwrite_output_dir=True))
    assert list(folder.iterdir()) == []
    assert (kept / "file").read_text() == "stays"
    # through a link too
    (tmp_path / "linked").symlink_to(folder)
    (folder / "old").write_text("")
    prepare_folder(arguments(tmp_path / "linked", overwrite_output_dir=True))
    assert list(folder.iterdir()) == []


def test_folders_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file is a file"):
        prepare_folder(arguments(tmp_path / "file"))
    with pytest.raises(RunError, match=r"cannot be written: .*Not a directory"):
        prepare_folder(arguments(tmp_path / "file" / "below"))

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"cannot be written: .*No space left on device"):
        prepare_folder(arguments(tmp_path / "new"))


class FileSizeLimit:
    """The system's own limit on the size of a file: to the programs that write, it is like a full disk."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("full_in", ["model.safetensors", "optimizer.bin", None])
def test_a_full_disk_leaves_earlier_checkpoints_whole(copied, full_in):
    loop = resumed(copied, collate=noisy_collate)
    sizes = {path.name: path.stat().st_size for path in (copied / "checkpoint-4").iterdir()}
    assert sizes["model.safetensors"] < sizes["optimizer.bin"]
    room = 2 * max(sizes.values()) if full_in is None else sizes[full_in] - 100
    save = loop._save_checkpoint

    def on_a_full_disk():
        with FileSizeLimit(room):
            save()

    loop._save_checkpoint = on_a_full_disk
    if full_in is None:
        loop.run()
        assert newest_checkpoint(copied).name == "checkpoint-6"
        return
    with pytest.raises(
        RunError, match="the checkpoint of step 6 could not be written, earlier ones are whole: "
    ) as caught:
        loop.run()
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints(copied)] == ["checkpoint-2", "checkpoint-4"]
    assert not (copied / ".checkpoint-6").exists()
    # with room again, it goes on
    resumed(copied, collate=noisy_collate).run()
    assert newest_checkpoint(copied).name == "checkpoint-6"


def test_a_full_disk_when_the_best_model_is_kept(tmp_path):
    loop = toy_loop(tmp_path, max_steps=4, eval_steps=2)
    save = loop._save_best

    def on_a_full_disk():
        with FileSizeLimit(1_000):
            save()

    loop._save_best = on_a_full_disk
    with pytest.raises(RunError, match="the best model, of step 2, could not be written: "):
        loop.run()
    assert not list(tmp_path.glob(".best*"))


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(tmp_path):
    def poisoned(batch):
        poisoned.calls += 1
        inputs = toy_collate(batch)
        if poisoned.calls == 4:
            loop.model.qa_outputs.bias.data.fill_(float("nan"))
        return inputs

    poisoned.calls = 0
    loop = toy_loop(tmp_path, collate=poisoned, max_steps=6, save_steps=1)
    with pytest.raises(RunError, match="the loss became nan at step 4; lower the learning rate"):
        loop.run()
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"
    assert [step for step, _ in losses_of(tmp_path)] == [1, 2, 3]
    assert torch.isfinite(load_file(tmp_path / "checkpoint-3" / "model.safetensors")["qa_outputs.bias"]).all()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_gradient_that_is_no_number_stops_the_run_before_it_reaches_the_weights(tmp_path, limit):
    loop = toy_loop(tmp_path, max_steps=6, save_steps=1, max_grad_norm=limit)
    weight = loop.model.qa_outputs.weight
    weight.register_hook(lambda gradient: gradient * float("inf") if loop.step == 3 else gradient)
    with pytest.raises(RunError, match=r"the norm of the gradient became (nan|inf) at step 4"):
        loop.run()
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"
    assert torch.isfinite(weight).all()


def test_no_rows(tmp_path):
    with pytest.raises(RunError, match="no rows to train on"):
        toy_loop(tmp_path, rows=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size": 0}, "train_batch_size=0 is not valid: it must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size=-1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"save_steps": 0}, "save_steps=0"),
        ({"eval_steps": -5}, "eval_steps=-5"),
        ({"epochs": 0.0}, "epochs=0.0 is not valid: it must be a positive number"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"encoding_learning_rate": -1.0}, "encoding_learning_rate=-1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is not valid: it must be a number of at least 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5 is not valid: it must be between 0 and 1"),
        ({"schedule": "liner"}, "schedule='liner' is not valid: it must be one of linear, cosine"),
        ({"mixed_precision": "bf8"}, "mixed_precision='bf8' is not valid: it must be one of no, bf16, fp16"),
        ({"seed": -1}, "seed=-1 is not valid"),
        ({"patience": 0, "eval_steps": 1}, "patience=0 is not valid"),
        ({"patience": 2}, "patience counts evaluations during training, which need eval_steps"),
        ({"compile_backend": "inducter"}, "compile_backend='inducter' is not valid: it must be one of no, "),
        ({"resume": True, "overwrite_output_dir": True}, "resume and overwrite_output_dir exclude each other"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        LoopArguments(**change)


@dataclass
class Toy(LoopArguments):
    name: str | None = field(default=None, metadata={"help": "a text or nothing"})
    limit: int | None = None


def parsed(*flags, config=None, tmp_path=None):
    given = list(flags)
    if config is not None:
        path = tmp_path / "run.yaml"
        path.write_bytes(config if isinstance(config, bytes) else config.encode())
        given = ["--config", str(path), *given]
    return parse_arguments(Toy, given)


def test_flags_have_the_last_word_over_yaml_and_yaml_over_defaults(tmp_path):
    config = "learning_rate: 2e-4\ntrain_batch_size: 3\nmax_steps:\nname: from file\ngroup_by_length: false\n"
    found = parsed("--train_batch_size", "5", "--eval-batch-size=7", "--resume", config=config, tmp_path=tmp_path)
    assert (found.train_batch_size, found.eval_batch_size) == (5, 7)
    assert (found.learning_rate, found.name, found.max_steps) == (2e-4, "from file", None)
    assert found.group_by_length is False
    assert found.resume is True
    assert found.epochs == 1.0


def test_flags_that_turn_off():
    assert parsed("--no_group_by_length").group_by_length is False
    assert parsed("--no-group-by-length").group_by_length is False
    assert parsed("--group_by_length", "false").group_by_length is False
    assert parsed().group_by_length is True


@pytest.mark.parametrize(("word", "value"), [("no", "no"), ("'no'", "no"), ("bf16", "bf16")])
def test_no_is_a_word_in_yaml(tmp_path, word, value):
    assert parsed(config=f"mixed_precision: {word}\n", tmp_path=tmp_path).mixed_precision == value


def test_yaml_values_may_be_mappings_or_begin_with_a_dash(tmp_path):
    found = parsed(config="name: {type: t5, num_buckets: 8}\n", tmp_path=tmp_path)
    assert json.loads(found.name) == {"type": "t5", "num_buckets": 8}
    assert parsed(config="name: --dashes\n", tmp_path=tmp_path).name == "--dashes"
    assert parsed(config="name: truest\n", tmp_path=tmp_path).name == "truest"


def test_an_empty_file_sets_nothing(tmp_path):
    assert parsed(config="# nothing yet\n", tmp_path=tmp_path) == Toy()


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        (["--learning_rat", "1"], None, "the flag 'learning_rat' is unknown; did you mean 'learning_rate'?"),
        (["--learning-rat=1"], None, "the flag 'learning_rat' is unknown; did you mean 'learning_rate'?"),
        (["--zzz"], None, "the flag 'zzz' is unknown; valid: output_dir, overwrite_output_dir"),
        (["--learn", "1"], None, "the flag 'learn' is unknown"),
        (["stray"], None, "unrecognized arguments: stray"),
        (["--max_steps", "many"], None, "argument --max_steps/--max-steps: invalid int value: 'many'"),
        (["--max_steps", "1.5"], None, "invalid int value: '1.5'"),
        (["--learning_rate", "fast"], None, "invalid float value: 'fast'"),
        (["--resume", "perhaps"], None, "Truthy value expected: got perhaps"),
        (["--max_steps"], None, "expected one argument"),
        (["--max_steps", "-3"], None, "max_steps=-3 is not valid: it must be at least 1"),
        (["--config"], None, "argument --config: expected one argument"),
        (["--config", "/nowhere/run.yaml"], None, "/nowhere/run.yaml: it cannot be read: "),
        ([], "learning_rat: 1\n", "run.yaml: the key 'learning_rat' is unknown; did you mean 'learning_rate'?"),
        ([], "config: other.yaml\n", "run.yaml: the key 'config' is unknown"),
        ([], "help: true\n", "run.yaml: the key 'help' is unknown"),
        ([], "3: 4\n", "run.yaml: the key '3' is unknown"),
        ([], "max_steps: many\n", "run.yaml: argument --max_steps/--max-steps: invalid int value: 'many'"),
        ([], "max_steps: [1, 2]\n", "invalid int value: '[1, 2]'"),
        ([], "max_steps: true\n", "invalid int value: 'True'"),
        ([], "resume: 7\n", "run.yaml: argument --resume: Truthy value expected"),
        ([], "seed: -1\n", "seed=-1 is not valid"),
        ([], "- a\n- b\n", "run.yaml: it holds no mapping of arguments"),
        ([], "a: [1\n", "run.yaml: it cannot be read: "),
        ([], b"name: \xff\n", "run.yaml: it cannot be read: "),
    ],
)
def test_wrong_usage_ends_with_status_2_and_one_line(tmp_path, capsys, flags, config, message):
    with pytest.raises(SystemExit) as caught:
        parsed(*flags, config=config, tmp_path=tmp_path)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_help_ends_with_status_0(capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    assert "a text or nothing" in capsys.readouterr().out


def test_scalars_for_trackers():
    values = as_scalars(Toy(name="x"))
    assert values["name"] == "x"
    assert "limit" not in values
    assert all(isinstance(value, (int, float, str, bool)) for value in values.values())
