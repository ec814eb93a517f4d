"""A tiny span model, its rows and an evaluation, on which the training loop's tests run.

Run as a program with a file of scenarios it trains each of them three times, in processes of their own that start from the same memory:
to the end, until it is killed, and from there to the end.
"""

import json
import os
import random
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from checkpoints import prepare_folder
from loop import LoopArguments, TrainingLoop, make_accelerator, row_weight
from safetensors.torch import save_model

import hf_relpos

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 16,
}


def toy_model(dropout=0.1, seed=0, **options):
    torch.manual_seed(seed)
    config = hf_relpos.RelPosBertConfig(
        **SIZES,
        rel_pos=options.get("rel_pos", {"type": "t5", "num_buckets": 8}),
        absolute="drop",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return hf_relpos.RelPosBertForQuestionAnswering(config)


def toy_rows(count=22, seed=0):
    """The answer is the token 7."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [generator.randrange(10, 50) for _ in range(generator.randrange(5, 12))]
        start = generator.randrange(len(ids))
        ids[start] = 7
        rows.append({"input_ids": ids, "start_positions": start, "end_positions": start})
    return rows


def toy_collate(batch, length=12):
    """One length for all, for logits of padding count in the loss of spans, which would then depend on a row's company."""
    padded = [row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in batch]
    mask = [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in batch]
    inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    for name in ("start_positions", "end_positions"):
        inputs[name] = torch.tensor([row[name] for row in batch])
    return inputs


def noisy_collate(batch):
    """Draws on all three generators of random numbers, as a task that masks tokens may."""
    inputs = toy_collate(batch)
    ids = inputs["input_ids"]
    for position in (random.randrange(ids.shape[1]), np.random.randint(ids.shape[1]), torch.randint(ids.shape[1], ())):
        ids[:, int(position)] = 9
    return inputs


def toy_score(model, accelerator: Accelerator, rows=None):
    """Minus the loss, so that greater is better."""
    return {"f1": -float(accelerator.unwrap_model(model)(**toy_collate(rows or toy_rows(8, seed=1))).loss)}


def toy_loop(
    folder,
    *,
    model=None,
    rows=None,
    collate=toy_collate,
    score=toy_score,
    weigh=row_weight,
    greater_is_better=True,
    **arguments,
):
    settings = {"train_batch_size": 4, "learning_rate": 1e-2, "tracker": "none", "output_dir": str(folder), **arguments}
    made = LoopArguments(**settings)
    accelerator = make_accelerator(made)
    prepare_folder(made)
    rows = toy_rows() if rows is None else rows
    model = toy_model() if model is None else model
    options = {"eval_rows": toy_rows(8, seed=1), "weigh": weigh, "greater_is_better": greater_is_better}
    return TrainingLoop(model, rows, collate, score, "f1", made, accelerator, **options)


def log_of(folder):
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def losses_of(folder):
    return [(line["step"], line["loss"]) for line in log_of(folder) if "loss" in line]


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_batch(number):
    def collate(batch):
        collate.calls += 1
        if collate.calls == number:
            _die()
        return noisy_collate(batch)

    collate.calls = 0
    return collate


def _kill_in_checkpoint(loop, step):
    """Die when the weights and the optimizer of the checkpoint are on the disk, and the rest is not."""
    save_state = loop.accelerator.save_state

    def save(folder):
        written = save_state(folder)
        if loop.step == step:
            (Path(folder) / "random_states_0.pkl").unlink()
            _die()
        return written

    loop.accelerator.save_state = save


def _train(folder, scenario, *, kill=False, resume=False):
    collate = noisy_collate
    if kill and "kill_at_batch" in scenario:
        collate = _kill_at_batch(scenario["kill_at_batch"])
    loop = toy_loop(folder, collate=collate, resume=resume, **scenario["arguments"])
    if kill and "kill_in_checkpoint" in scenario:
        _kill_in_checkpoint(loop, scenario["kill_in_checkpoint"])
    if kill and "kill_in_evaluation" in scenario:
        loop.evaluate = lambda model, accelerator: _die()
    metrics = loop.run()
    save_model(loop.model, str(Path(folder) / "final.safetensors"))
    (Path(folder) / "final.json").write_text(json.dumps({"metrics": metrics, "best": loop.best["step"]}))


def _in_a_child(function):
    """The signal or exit status with which a child process that calls ``function`` ends."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(path):
    """Train every scenario of a JSON file; how the three runs of each ended, and what was there when one was killed, is written beside it."""
    ended = {}
    # nothing computes here before the children are forked, whose threads would be missing
    for scenario in json.loads(Path(path).read_text()):
        whole, killed = (Path(path).parent / f"{scenario['name']}-{what}" for what in ("whole", "killed"))
        ended[scenario["name"]] = {
            "whole": _in_a_child(partial(_train, whole, scenario)),
            "killed": _in_a_child(partial(_train, killed, scenario, kill=True)),
            "left": sorted(entry.name for entry in killed.iterdir()),
            "resumed": _in_a_child(partial(_train, killed, scenario, resume=True)),
        }
    Path(path).with_name("ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    main(sys.argv[1])
