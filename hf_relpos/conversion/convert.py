"""From a checkpoint to a folder that holds a model with relative positions, with a report of what became of the weights."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from ..models.architectures import architecture
from ..models.families import MODEL_CLASSES, auto_class, host_class
from ..models.placement import host_of
from .carried import fit_positions, read_positions
from .foreign import is_foreign, load_foreign


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: the class and encoding of the new model, checkpoint keys kept, dropped and created, and the weights ``carried`` over
    from another checkpoint's positions."""

    model_class: str
    rel_pos: Any
    absolute: str
    kept: int
    dropped: list[str]
    created: list[str]
    carried: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.model_class} with {self.rel_pos}, absolute positions: {self.absolute}",
            f"kept {self.kept} weights",
        ]
        for what, keys in (("dropped", self.dropped), ("created, to be trained", self.created)):
            lines.append(f"{what}: {', '.join(keys) if keys else 'none'}")
        if self.carried:
            lines.append(f"carried over: {', '.join(self.carried)}")
        return "\n".join(lines)


def _class_for(source: str, stored: dict[str, Any], head: str | None) -> Any:
    model_type = stored.get("model_type")
    if model_type is None:
        raise ValueError(f"the config of {source} names no model_type")
    if head is not None:
        return auto_class(model_type, head)
    names = stored.get("architectures") or []
    found = [cls for cls in MODEL_CLASSES.values() if names and names[0] in (cls.__name__, host_class(cls).__name__)]
    return found[0] if found else auto_class(model_type, "Model")


def convert_checkpoint(
    source: str,
    target: str | Path,
    *,
    rel_pos: Any = None,
    absolute: str | None = None,
    head: str | None = None,
    positions_from: str | None = None,
) -> ConversionReport:
    """Load ``source`` (folder or Hub id) as a class of this package and save it to ``target`` with its tokenizer.

    ``rel_pos`` and ``absolute`` as for ``from_pretrained``: required for ordinary weights, not for checkpoints that have an encoding, and not
    allowed for models of other types whose positions are a method of this package (``conversion/foreign.py``): they become a model that
    computes the same. ``head`` such as "QuestionAnswering" replaces the checkpoint's own. ``positions_from``, another checkpoint, gives the
    encoding its parameters and, where ``rel_pos`` does not say otherwise, its options.

    Raises ValueError or OSError, with nothing written, when a checkpoint cannot be loaded, is another model than any here, does not fit the
    other, or the arguments are wrong; FileExistsError when ``target`` is a non-empty folder.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; nothing was written")
    stored, _ = PreTrainedConfig.get_config_dict(source)
    carried: list[str] = []
    if is_foreign(stored.get("model_type")):
        if (rel_pos, absolute, positions_from) != (None, None, None):
            raise ValueError(
                f"{source} holds a model of type {stored['model_type']!r}, whose positions are known: leave rel_pos, absolute and positions_from "
                "out, and convert the result again for others"
            )
        loaded = load_foreign(source, head)
        model, created, dropped = loaded.model, loaded.created, list(loaded.dropped)
    else:
        cls = _class_for(source, stored, head)
        positions = None
        if positions_from is not None:
            positions = read_positions(positions_from, causal=_is_causal(cls, source))
            rel_pos = positions.merged(rel_pos)
        model, info = cls.from_pretrained(source, rel_pos=rel_pos, absolute=absolute, output_loading_info=True)
        if positions is not None:
            weights = fit_positions(model, positions)
            model.load_state_dict(weights, strict=False)
            carried = sorted(weights)
        created = sorted(set(info["missing_keys"]) - set(carried))
        dropped = sorted(info["unexpected_keys"])
        if model.config.absolute == "drop":
            dropped.insert(0, "the model's own positions")
    tokenizer = _tokenizer(source)
    model.save_pretrained(target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)
    return ConversionReport(
        type(model).__name__,
        model.config.rel_pos,
        model.config.absolute,
        len(set(model.state_dict()) - {*created, *carried}),
        dropped,
        created,
        carried,
    )


def _is_causal(cls: Any, source: str) -> bool:
    """Whether queries of the model that ``cls`` makes of ``source`` see no later keys."""
    config = cls.config_class.from_pretrained(source)
    return host_of(config, architecture(config.model_type)).causal


def export_checkpoint(source: str, target: str | Path) -> list[str]:
    """Write a model of this package and its code to ``target``; returns the names of the files written.

    Raises ValueError when ``source`` has no relative positions, OSError when it cannot be read or ``target`` cannot be written.
    """
    config = AutoConfig.from_pretrained(source)
    if not config.model_type.startswith("relpos_"):
        raise ValueError(
            f"{source} holds a model of type {config.model_type!r} without relative positions; use convert"
        )
    convert_checkpoint(source, target)
    return sorted(path.name for path in Path(target).iterdir())


def _tokenizer(source: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        # a checkpoint without a tokenizer is complete without one
        return None
