"""The files of a run: its folder, checkpoints that are whole or not there, the best model, and what says that the run is complete.

A run can be killed at any moment: whatever is written has another name until it is complete. What could make a resumed run another run than
the one it goes on from is refused.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import broadcast_object_list, load
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model

# under which a process may hold only a part of the parameters
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED)
METRICS, PROGRESS = "metrics.json", "progress.json"
# what a full disk raises, by the library that writes, and what a damaged file does
UNWRITABLE = (OSError, RuntimeError, SafetensorError)
_UNREADABLE = (*UNWRITABLE, EOFError, KeyError, ValueError, pickle.UnpicklingError)


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why in one line."""


def check_folder(arguments: Any) -> None:
    """Raise :class:`RunError` that says why a run cannot use its output folder; loses nothing in it. On every process alike."""
    on_main_process(lambda: _check(Path(arguments.output_dir), arguments))


def prepare_folder(arguments: Any) -> Path:
    """Make the output folder ready, or raise :class:`RunError` that says why it is not; nothing in it is lost unless told so. On every
    process alike."""
    folder = Path(arguments.output_dir)

    def prepare() -> None:
        _check(folder, arguments)
        patterns = ("*",) if arguments.overwrite_output_dir else (".checkpoint-*", ".best-*.partial")
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    on_main_process(prepare)
    return folder


def on_main_process(action: Callable[[], None]) -> None:
    """Call ``action`` on the main process; where it fails, every process raises its :class:`RunError`."""
    problem: list[str | None] = [None]
    if PartialState().is_main_process:
        try:
            action()
        except RunError as error:
            problem = [str(error)]
        except OSError as error:
            problem = [f"the output folder cannot be written: {error}"]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise RunError(problem[0])


def _check(folder: Path, arguments: Any) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir={folder} is a file")
    if arguments.resume:
        if (folder / METRICS).exists():
            raise RunError(f"the run in output_dir={folder} is complete: there is nothing to resume")
        if newest_checkpoint(folder) is None:
            raise RunError(
                f"output_dir={folder} holds no complete checkpoint to resume from: start with --overwrite_output_dir true instead"
            )
    elif not arguments.overwrite_output_dir and folder.is_dir() and any(folder.iterdir()):
        raise RunError(
            f"output_dir={folder} is not empty: use --resume true to go on there, or --overwrite_output_dir true to empty it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"0" * 65536)
        probe.unlink()
    except OSError as error:
        raise RunError(f"output_dir={folder} cannot be written: {error}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(
        (path for path in found if (path / PROGRESS).is_file()), key=lambda path: int(path.name.rpartition("-")[2])
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    return next(reversed(checkpoints(folder)), None)


def complete(folder: Path, metrics: dict[str, float]) -> None:
    """Write ``metrics.json``, by which a complete run is known, and remove what only a resumed run would need."""
    replace_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    for path in folder.glob(".best-*"):
        path.unlink()


def fingerprint(rows: Iterable[Any]) -> str:
    """A short text that is another one for other rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()[:16]


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, which holds what it held or all of it."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def save_checkpoint(folder: Path, accelerator: Accelerator, progress: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of ``progress["step"]`` and remove all but the newest ``keep``; :class:`RunError` when there is no room."""
    step = progress["step"]
    unfinished, final = folder / f".checkpoint-{step}", folder / f"checkpoint-{step}"
    try:
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        (unfinished / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        os.replace(unfinished, final)
    except UNWRITABLE as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise RunError(
            f"the checkpoint of step {step} could not be written, earlier ones are whole: {one_line(error)}"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        # under another name first, for a run may be killed in the middle of removing it
        shutil.rmtree(old.rename(folder / f".{old.name}"))
    forget_old_best(folder, progress["best"].get("step"))


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, identity: dict[str, Any]) -> dict[str, Any]:
    """Restore model, optimizer, schedule and random numbers from ``checkpoint`` and return its progress.

    Raises :class:`RunError` when a run of another ``identity`` wrote it, or it cannot be read.
    """
    try:
        progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        _refuse_another_run(checkpoint, progress["identity"], identity)
        accelerator.load_state(str(checkpoint))
        # load_state passes over random numbers that it cannot read
        states = load(checkpoint / f"random_states_{accelerator.process_index}.pkl")
        if not torch.equal(torch.get_rng_state(), states["torch_manual_seed"]):
            raise ValueError("the random numbers could not be restored")
        best = progress["best"].get("step")
        if best is not None and not best_path(checkpoint.parent, best).is_file():
            raise ValueError(f"{best_path(checkpoint.parent, best).name}, the best model so far, is missing")
    except RunError:
        raise
    except _UNREADABLE as error:
        raise RunError(
            f"{checkpoint} cannot be read, remove it to resume from an earlier one: {one_line(error)}"
        ) from error
    return progress


def _refuse_another_run(checkpoint: Path, identity: dict[str, Any], mine: dict[str, Any]) -> None:
    # through JSON, as the other one
    mine = json.loads(json.dumps(mine))
    changed = [
        f"{name} was {identity.get(name)!r} and is {mine.get(name)!r}"
        for name in sorted({*identity, *mine})
        if identity.get(name) != mine.get(name)
    ]
    if changed:
        raise RunError(f"{checkpoint} is of another run: {'; '.join(changed)}")


def best_path(folder: Path, step: int) -> Path:
    """Where the model of ``step`` is kept when it is the best."""
    return folder / f".best-{step}.safetensors"


def save_best(folder: Path, model: Any, accelerator: Accelerator, step: int) -> None:
    """Keep the weights of ``model`` as those of the best model; to be called on every process."""
    weights = accelerator.get_state_dict(model) if accelerator.distributed_type in SHARDING else None
    if not accelerator.is_main_process:
        return
    path = best_path(folder, step)
    unfinished = path.with_suffix(".partial")
    try:
        if weights is None:
            save_model(accelerator.unwrap_model(model), str(unfinished))
        else:
            save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, str(unfinished))
        os.replace(unfinished, path)
    except UNWRITABLE as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"the best model, of step {step}, could not be written: {one_line(error)}") from error
    forget_old_best(folder, step)


def take_best(folder: Path, model: Any, accelerator: Accelerator, step: int) -> None:
    """Put the weights kept of ``step`` back into ``model``; to be called on every process."""
    accelerator.wait_for_everyone()
    path = best_path(folder, step)
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0):
            if accelerator.is_main_process:
                load_model(accelerator.unwrap_model(model), path)
        return
    if accelerator.distributed_type != DistributedType.FSDP:
        load_model(accelerator.unwrap_model(model), path)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            # after an evaluation some parameters are still gathered, and would be taken for whole ones
            module.reshard()
    weights: dict[str, Any] = dict(load_file(path)) if accelerator.is_main_process else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, weights, options=options)


def forget_old_best(folder: Path, step: int | None) -> None:
    """Remove all best models but that of ``step`` and those that a run resumed from one of the checkpoints may end with."""
    steps = {step}
    for checkpoint in checkpoints(folder):
        steps.add(json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))["best"].get("step"))
    needed = {best_path(folder, step) for step in steps if step is not None}
    for path in folder.glob(".best-*.safetensors"):
        if path not in needed:
            path.unlink()


def one_line(error: BaseException) -> str:
    """The message of ``error`` in one line."""
    return " ".join(str(error).split()) or type(error).__name__
