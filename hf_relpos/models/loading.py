"""What kind of checkpoint is being loaded, and whether what came out of it is what its config says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from ..encodings.build import legacy_encoding, parse_rel_pos
from ..encodings.encoding import Encoding, SharedPart
from .neutral import check_absolute
from .placement import same_encodings

_ENCODING_KEY = re.compile(r"(^|\.)relpos\.")


def host_class(cls: type) -> type:
    """The transformers class that a model or config class of this package extends."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))


def inherit_weight_conversions(cls: Any) -> None:
    """Let our classes load checkpoints that transformers renames or reshapes for their hosts: it looks that up by name."""
    config_class = cls.config_class
    names = {
        config_class.model_type: host_class(config_class).model_type,  # type: ignore[attr-defined]
        cls.__name__: host_class(cls).__name__,
    }
    for ours, host in names.items():
        mapping = get_checkpoint_conversion_mapping(host)
        if mapping is not None:
            register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


@dataclass
class LoadingPlan:
    """How to load: the config and the arguments for the host; ``has_encoding``: the checkpoint must hold all weights of its encoding; ``replaces``: it
    has another encoding than the one asked for; ``mismatches``: sizes that do not fit are let pass for that reason alone."""

    source: str
    config: Any
    kwargs: dict[str, Any]
    has_encoding: bool
    replaces: bool
    mismatches: bool


def plan_loading(cls: Any, source: Any, rel_pos: Any, absolute: str | None, kwargs: dict[str, Any]) -> LoadingPlan:
    """Decide what ``source`` is by its stored config; ValueError when ``rel_pos`` or ``absolute`` is missing or wrong."""
    if absolute is not None:
        check_absolute(absolute)
    if rel_pos is not None:
        parse_rel_pos(rel_pos)
    kwargs = dict(kwargs)
    config = kwargs.pop("config", None)
    hub = {
        key: kwargs[key]
        for key in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
        if key in kwargs
    }
    state_dict_only = source is None
    stored: dict[str, Any] = {} if state_dict_only else cls.config_class.get_config_dict(source, **hub)[0]
    legacy = legacy_encoding(stored.get("position_embedding_type")) if stored.get("rel_pos") is None else None
    stored_rel_pos = stored.get("rel_pos") or (legacy and {"type": legacy.name})
    if config is None or isinstance(config, (str, bytes)) or hasattr(config, "__fspath__"):
        config, kwargs = cls.config_class.from_pretrained(config or source, return_unused_kwargs=True, **kwargs)
        for key, value in hub.items():
            kwargs.setdefault(key, value)
    config.rel_pos = config.rel_pos if rel_pos is None else ({"type": rel_pos} if isinstance(rel_pos, str) else rel_pos)
    config.absolute = config.absolute if absolute is None else absolute
    if config.rel_pos is None:
        raise ValueError(
            f"{source} holds ordinary weights: say which encoding {cls.__name__} shall have, for example "
            "rel_pos={'type': 'none'}, and absolute='keep' or 'drop' for its own positions"
        )
    if config.absolute is None:
        raise ValueError(f"{source} holds ordinary weights: say absolute='keep' or 'drop' for their own positions")
    kept = stored_rel_pos is not None and same_encodings(stored_rel_pos, config.rel_pos)
    if legacy is not None and kept:
        mapping = {rf"{re.escape(old)}$": f"relpos.{new}" for new, old in legacy.legacy_parameter_names.items()}
        kwargs["key_mapping"] = {**mapping, **(kwargs.get("key_mapping") or {})}
    replaces = stored_rel_pos is not None and not kept
    mismatches = replaces and not kwargs.get("ignore_mismatched_sizes")
    if mismatches:
        kwargs["ignore_mismatched_sizes"] = True
    return LoadingPlan(str(source), config, kwargs, kept and not state_dict_only, replaces, mismatches)


def check_loaded(plan: LoadingPlan, model: Any, info: Any) -> None:
    """Raise ValueError when a checkpoint with an encoding lacks weights of it or holds others, or its other weights have wrong sizes.

    An encoding that replaces another is initialised anew: its parameters may have the names and shapes of the old one's, and mean something else.
    """
    if plan.mismatches:
        wrong = sorted(key for key, *_ in info["mismatched_keys"] if not is_encoding_key(key))
        if wrong:
            raise ValueError(
                f"weights in {plan.source} do not have the model's sizes: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
            )
    if plan.replaces:
        for module in model.modules():
            if isinstance(module, (Encoding, SharedPart)):
                module.reset_parameters()
        fresh = {name for name, _ in model.named_parameters() if is_encoding_key(name)}
        info["missing_keys"] = set(info["missing_keys"]) | fresh
        info["mismatched_keys"] = {found for found in info["mismatched_keys"] if not is_encoding_key(found[0])}
    if plan.has_encoding:
        check_encoding_weights(plan.source, plan.config.rel_pos, info)


def is_encoding_key(key: str) -> bool:
    """Whether a weight called ``key`` belongs to an encoding, in checkpoints of this package or of transformers 4."""
    return bool(_ENCODING_KEY.search(key)) or "distance_embedding" in key


def check_encoding_weights(source: str, rel_pos: Any, info: Any) -> None:
    """Raise ValueError when the loading ``info`` of ``source`` tells of encoding weights that are missing or too many for ``rel_pos``."""
    for what, keys in (("lacks", info["missing_keys"]), ("also holds", info["unexpected_keys"])):
        wrong = sorted(filter(is_encoding_key, keys))
        if wrong:
            raise ValueError(
                f"the weights in {source} disagree with its config, whose rel_pos is {rel_pos}: the checkpoint {what} "
                f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}"
            )


@contextmanager
def readable_errors(source: Any) -> Iterator[None]:
    """Let every failure to read a checkpoint name it."""
    try:
        yield
    except OSError as error:
        if str(source) in str(error):
            raise
        raise OSError(f"{source} cannot be loaded: {error}") from error
    except SafetensorError as error:
        raise OSError(
            f"the weights in {source} cannot be read, the file is corrupted or incomplete: {error}"
        ) from error
