"""Looking at a checkpoint without loading it: what it is, what would become of it here, and whether its weights are what its config says."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, NotASafetensorsRepoError
from safetensors import safe_open
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from ..encodings.build import legacy_encoding, parse_rel_pos
from ..models.architectures import architecture
from ..models.encoder_decoder import RelPosEncoderDecoderModel, parts_of
from ..models.families import MODEL_CLASSES, auto_class, host_class
from ..models.loading import check_encoding_weights, is_encoding_key, readable_errors
from .foreign import FOREIGN, head_key, is_foreign

Shapes = dict[str, tuple[int, ...]]


@dataclass
class Diagnosis:
    """What ``source`` holds: its ``kind`` ("package", "transformers 4", "ordinary", "convertible" or "unsupported"), what that means (``says``, sentences), and
    what is wrong with it (``problem``, None where nothing is)."""

    source: str
    kind: str
    model_type: str | None
    says: list[str] = field(default_factory=list)
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def examine(source: str) -> Diagnosis:
    """What the checkpoint ``source`` (folder or Hub id) is, from its config and the names and shapes of its weights; OSError when it has no config."""
    with readable_errors(source):
        stored, _ = PreTrainedConfig.get_config_dict(source)
    found = Diagnosis(source, "unsupported", stored.get("model_type"))
    try:
        _diagnose(found, stored)
    except (ValueError, OSError) as error:
        found.problem = str(error)
    return found


def _diagnose(found: Diagnosis, stored: Mapping[str, Any]) -> None:
    """Complete ``found`` by the ``stored`` config; ValueError or OSError with what is wrong."""
    if found.model_type is None:
        raise ValueError(f"{found.source} has no config that names a model_type")
    legacy = legacy_encoding(stored.get("position_embedding_type")) if stored.get("rel_pos") is None else None
    if found.model_type.startswith("relpos_"):
        _of_this_package(found, stored)
    elif is_foreign(found.model_type):
        _of_another_type(found)
    elif architecture(found.model_type) and legacy is not None:
        _of_transformers_4(found, stored, legacy)
    else:
        _ordinary(found, stored)


def _class_of(stored: Mapping[str, Any]) -> Any:
    name = (stored.get("architectures") or [""])[0]
    for cls in (*MODEL_CLASSES.values(), RelPosEncoderDecoderModel):
        if name in (cls.__name__, host_class(cls).__name__):
            return cls
    return auto_class(stored["model_type"], "Model")


def _of_this_package(found: Diagnosis, stored: Mapping[str, Any]) -> None:
    found.kind = "package"
    cls = _class_of(stored)
    config = cls.config_class.from_pretrained(found.source)
    found.says.append(f"A {cls.__name__} of this package; from_pretrained needs no further argument.")
    for side, part in parts_of(config).items():
        if part.rel_pos is None:
            raise ValueError(
                f"the config of {found.source} has no rel_pos, so that no {cls.__name__} can be made of it"
            )
        methods = " and ".join(f"{method.name} ({method.card.title})" for method, _ in parse_rel_pos(part.rel_pos))
        own = "kept beside it" if part.absolute == "keep" else "dropped"
        found.says.append(f"{side.capitalize() or 'Positions'}: {methods}; the host's own positions are {own}.")
    if "auto_map" in stored:
        found.says.append("It carries its code: without this package it loads with trust_remote_code=True.")
    _compare_weights(found, cls, config, {})


def _of_transformers_4(found: Diagnosis, stored: Mapping[str, Any], legacy: Any) -> None:
    found.kind = "transformers 4"
    cls = _class_of(stored)
    found.says += [
        f"Saved by transformers 4 with position_embedding_type={legacy.legacy_position_embedding_type!r} ({legacy.card.title}).",
        f"transformers 5 loads it as {host_class(cls).__name__} without an error and without its distances: its outputs are wrong.",
        f"{cls.__name__}.from_pretrained({found.source!r}) gives transformers 4's outputs and needs no further argument.",
    ]
    _compare_weights(found, cls, cls.config_class.from_pretrained(found.source), legacy.legacy_parameter_names)


def _ordinary(found: Diagnosis, stored: Mapping[str, Any]) -> None:
    found.kind = "ordinary"
    native = architecture(stored["model_type"]).native
    found.says += [
        f"Ordinary weights of type {found.model_type}; their own positions are "
        + ("a table of absolute ones." if native == "table" else "rotations of queries and keys."),
        f"{_class_of(stored).__name__}.from_pretrained({found.source!r}, rel_pos=..., absolute=...) must be told which encoding to add and whether to "
        "'keep' or 'drop' the model's own positions. The encoding starts freshly initialised and must be trained.",
    ]


def _of_another_type(found: Diagnosis) -> None:
    found.kind = "convertible"
    config: Any = AutoConfig.from_pretrained(found.source)
    foreign, head = FOREIGN[config.model_type], head_key(found.source, config, None)
    objections = foreign.objections(config, head)
    if objections:
        raise ValueError(f"{found.source} is no model of this package: {'; '.join(objections)}")
    found.says += [
        f"A model of type {config.model_type} whose positions are a method of this package.",
        f"hf-relpos convert {found.source} FOLDER makes {auto_class(foreign.family(config, head), head).__name__} of it, with the same outputs.",
    ]


def _compare_weights(found: Diagnosis, cls: Any, config: Any, old_names: Mapping[str, str]) -> None:
    """Say whether the encoding weights of the checkpoint are those of ``cls(config)``; ``old_names``: how it calls each of our parameters, if otherwise.

    Raises ValueError when they are not, OSError when they cannot be read.
    """
    with readable_errors(found.source):
        stored = stored_shapes(found.source)
    if stored is None:
        found.says.append("The names of its weights cannot be read without loading them, so they were not compared.")
        return
    with torch.device("meta"):
        model = cls(config)
    prefix = f"{model.base_model_prefix}."
    expected = {
        key.removeprefix(prefix): tuple(value.shape)
        for key, value in model.state_dict().items()
        if is_encoding_key(key)
    }
    held = {}
    for key, shape in stored.items():
        for new, old in old_names.items():
            key = re.sub(rf"(^|\.){re.escape(old)}$", rf"\1relpos.{new}", key)
        if is_encoding_key(key):
            held[key.removeprefix(prefix)] = shape
    differences = {"missing_keys": expected.keys() - held.keys(), "unexpected_keys": held.keys() - expected.keys()}
    check_encoding_weights(found.source, config.to_dict().get("rel_pos", "that of its sides"), differences)
    for key, shape in sorted(expected.items()):
        if held[key] != shape:
            raise ValueError(
                f"the weights in {found.source} disagree with its config: {key} is {list(held[key])}, but must be {list(shape)}"
            )
    found.says.append(
        f"Its {len(expected)} encoding weights are complete." if expected else "Its encoding has no weights."
    )


def stored_shapes(source: str) -> Shapes | None:
    """Names and shapes of the weights of a checkpoint, read from their headers; None when they are neither in safetensors files nor at hand.

    Raises OSError or safetensors' error when a file is missing, incomplete or corrupted.
    """
    try:
        folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source, local_files_only=True))
    except LocalEntryNotFoundError:
        return _remote_shapes(source)
    names = [SAFE_WEIGHTS_NAME] if (folder / SAFE_WEIGHTS_NAME).exists() else []
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    if names:
        found: Shapes = {}
        for name in names:
            with safe_open(folder / name, framework="pt") as file:
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return found
    if (folder / WEIGHTS_NAME).exists():
        weights = torch.load(folder / WEIGHTS_NAME, map_location="meta", weights_only=True)
        return {key: tuple(value.shape) for key, value in weights.items()}
    if Path(source).is_dir():
        raise FileNotFoundError(f"{source} holds no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME} is there")
    return _remote_shapes(source)


def _remote_shapes(source: str) -> Shapes | None:
    try:
        files = get_safetensors_metadata(source).files_metadata.values()
    except (OSError, NotASafetensorsRepoError):
        return None
    return {key: tuple(tensor.shape) for file in files for key, tensor in file.tensors.items()}
