"""The checkpoint of a distillation: one file, whole or not there, and the refusal to go on with another run."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "distillation.pt"


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short text that is another one for other weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_folder(folder: Path) -> None:
    """Raise OSError when no checkpoint can be written to ``folder``, ValueError when it is no folder; makes it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the checkpoint folder {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the checkpoint folder {folder} cannot be written")


def save(folder: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write ``state`` of the run ``identity``; RuntimeError when there is no room, with the checkpoint before it untouched."""
    unfinished = folder / f".{FILE}"
    try:
        torch.save({"identity": json.dumps(identity), **state}, unfinished)
        os.replace(unfinished, folder / FILE)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise RuntimeError(f"the checkpoint in {folder} could not be written: {error}") from error


def load(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the run ``identity``, or None when ``folder`` has no checkpoint.

    Raises ValueError, naming what differs, when another run wrote it, or when it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = json.loads(state.pop("identity"))
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"the checkpoint {path} cannot be read, remove it to begin anew: {str(error).splitlines()[0]}"
        ) from error
    mine = json.loads(json.dumps(identity))
    changed = [
        f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}"
        for name in sorted({*theirs, *mine})
        if theirs.get(name) != mine.get(name)
    ]
    if changed:
        raise ValueError(
            f"the checkpoint {path} is of another run: {'; '.join(changed)}; remove it, or name another folder"
        )
    return state


def remove(folder: Path) -> None:
    """Remove the checkpoint, and the folder where nothing else is in it."""
    (folder / FILE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
