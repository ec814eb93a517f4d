"""From a checkpoint to a folder that holds a model with relative positions, with a report of what became of the weights."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.configuration_utils import PreTrainedConfig

from ..encodings.build import fitting_value, legacy_encoding
from ..hub.model_card import write_default_card
from ..models.architectures import architecture
from ..models.families import MODEL_CLASSES, auto_class, host_class
from ..models.model_inputs import table_length
from ..models.placement import host_of
from .advise import AUTO, advise
from .carried import fit_positions, read_positions
from .distillation import DistillationOptions, distil
from .distillation_checkpoint import check_folder, remove
from .distillation_texts import DistillationTexts
from .fit_report import FitReport
from .fitting import check_fittable, fit_model
from .foreign import is_foreign, load_foreign
from .layerwise import Progress
from .new_folder import check_free, new_folder
from .processes import Processes, processes
from .similarity import compare
from .texts import Text, fitting_texts

# tokens and the longest texts that a fit reads unless told otherwise
FIT_TOKENS = 16_000
FIT_LENGTH = 512
_log = logging.getLogger(__name__)


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
    fit: FitReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        values = asdict(replace(self, fit=None))
        return {**values, "fit": None if self.fit is None else self.fit.to_dict()}

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.model_class} with {self.rel_pos}, absolute positions: {self.absolute}",
            f"kept {self.kept} weights",
        ]
        for what, keys in (("dropped", self.dropped), ("created, to be trained", self.created)):
            lines.append(f"{what}: {', '.join(keys) if keys else 'none'}")
        if self.fit is not None:
            lines.append(self.fit.summary())
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
    fit: Text | None = None,
    fit_tokens: int = FIT_TOKENS,
    fit_length: int | None = None,
    distil_steps: int | None = None,
    distil_options: Mapping[str, Any] | None = None,
    distil_checkpoint: str | Path | None = None,
    progress: Progress = _log.info,
) -> ConversionReport:
    """Load ``source`` (folder or Hub id) as a class of this package and save it to ``target`` with its tokenizer.

    ``rel_pos`` and ``absolute`` as for ``from_pretrained``: required for ordinary weights, not for checkpoints that have an encoding, and not
    allowed for models of other types whose positions are a method of this package (``conversion/foreign.py``): they become a model that
    computes the same. ``head`` such as "QuestionAnswering" replaces the checkpoint's own. ``positions_from``, another checkpoint, gives the
    encoding its parameters and, where ``rel_pos`` does not say otherwise, its options.

    ``fit``, raw text (a file, a folder or strings), has the encoding fitted to the attention that the model has with its own positions, which are then
    dropped; without training (``conversion/fitting.py``), on ``fit_tokens`` tokens in texts of up to ``fit_length`` (the model's table, at most 512, unless given).
    Options that ``rel_pos`` leaves open are set so that there is something to fit; ``rel_pos="auto"`` tries several encodings and takes the best. The report is
    written beside the model. ``progress`` is told how far it is.

    ``distil_steps``: then train so many steps on the same text, with the model as it was for a teacher (``conversion/distillation.py``); ``distil_options``: others of
    ``DistillationOptions`` by name. In ``distil_checkpoint``, a folder, stands how far that is, until the model is written: the same call goes on from there. Under
    ``accelerate launch`` the processes share each step.

    Raises ValueError or OSError, with nothing written, when a checkpoint cannot be loaded, is another model than any here, does not fit the
    other, or the arguments are wrong; FileExistsError when ``target`` is a non-empty folder.
    """
    target = Path(target)
    check_free(target)
    distillation = _distillation(fit, distil_steps, distil_options, distil_checkpoint)
    stored, _ = PreTrainedConfig.get_config_dict(source)
    if fit is not None:
        _check_fit_arguments(source, stored, rel_pos, absolute, positions_from)
        return _fitted(source, target, stored, rel_pos, head, fit, fit_tokens, fit_length, distillation, progress)
    if rel_pos == AUTO or rel_pos == {"type": AUTO}:
        raise ValueError(f"rel_pos={AUTO!r} needs text to fit on: give fit (on the command line --fit)")
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
        dropped = _dropped(model, info)
    report = _report(model, created, dropped, carried)
    _write(model, _tokenizer(source), target)
    return report


def _report(model: Any, created: list[str], dropped: list[str], carried: list[str]) -> ConversionReport:
    kept = len(set(model.state_dict()) - {*created, *carried})
    return ConversionReport(
        type(model).__name__, model.config.rel_pos, model.config.absolute, kept, dropped, created, carried
    )


def _dropped(model: Any, info: Any) -> list[str]:
    """The checkpoint's weights without a place in ``model``, and its positions where they are dropped."""
    return ["the model's own positions"] * (model.config.absolute == "drop") + sorted(info["unexpected_keys"])


def _write(model: Any, tokenizer: Any, target: Path, fit: FitReport | None = None) -> None:
    """Write all there is to ``target``, or nothing."""
    with new_folder(target) as folder:
        if fit is not None:
            fit.write(folder)
            write_default_card(model, folder, fit.summary())
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class _Distillation:
    """A distillation that was asked for."""

    options: DistillationOptions
    folder: Path | None

    def check(self, config: Any, fitted: int) -> int:
        """The longest texts that the teacher reads, those of the fit unless told otherwise; ValueError or OSError when something is wrong with the arguments."""
        length = fitted if self.options.length is None else _fit_length(config, self.options.length, "distil_length")
        if self.folder is not None:
            check_folder(self.folder)
        return length


def _distillation(
    fit: Any, steps: int | None, options: Mapping[str, Any] | None, folder: str | Path | None
) -> _Distillation | None:
    """What the arguments say of a distillation; ValueError when they are wrong."""
    if steps is None:
        for name, value in (("distil_options", options), ("distil_checkpoint", folder)):
            if value is not None:
                raise ValueError(f"{name}={value!r} says how to distil, but distil_steps is missing")
        return None
    if fit is None:
        raise ValueError(
            f"distil_steps={steps!r} needs raw text and an encoding fitted to it: give fit (on the command line --fit)"
        )
    known = [one.name for one in fields(DistillationOptions) if one.name != "steps"]
    for name in options or {}:
        if name not in known:
            raise ValueError(f"distil_options has no {name!r}; valid: {', '.join(known)}")
    return _Distillation(DistillationOptions(steps, **(options or {})), None if folder is None else Path(folder))


def _check_fit_arguments(source: str, stored: dict[str, Any], rel_pos: Any, absolute: Any, positions_from: Any) -> None:
    """Raise ValueError when a fit has nothing to do or is told to do something else."""
    if is_foreign(stored.get("model_type")):
        raise ValueError(
            f"{source} holds a model of type {stored['model_type']!r}, whose positions are known and need no fit: convert it without, and the "
            "result again to fit others"
        )
    if rel_pos is None:
        raise ValueError(f"say which encoding is to be fitted: rel_pos is missing; {AUTO!r} tries several")
    if absolute not in (None, "drop"):
        raise ValueError(
            f"absolute={absolute!r} is not valid with fit, which puts the encoding in the place of the model's own positions"
        )
    if positions_from is not None:
        raise ValueError(
            f"positions_from={positions_from!r} is not valid with fit: both would give the encoding its parameters"
        )


def _fitted(
    source: str,
    target: Path,
    stored: dict[str, Any],
    rel_pos: Any,
    head: str | None,
    text: Text,
    tokens: int,
    length: int | None,
    distillation: _Distillation | None,
    progress: Progress,
) -> ConversionReport:
    together = Processes() if distillation is None else processes(distillation.options.precision)
    if together.index:
        progress = _log.debug
    if not isinstance(text, (str, Path)):
        # it may be read more than once
        text = list(text)
    cls = _class_for(source, stored, head)
    tokenizer = _tokenizer(source)
    if tokenizer is None:
        raise ValueError(f"{source} has no tokenizer, so no text can be read for the fit")
    wants_advice = rel_pos == AUTO or rel_pos == {"type": AUTO}
    has_encoding = stored.get("rel_pos") or legacy_encoding(stored.get("position_embedding_type"))
    own: dict[str, Any] = {} if has_encoding else {"rel_pos": {"type": "none"}, "absolute": "keep"}
    original = cls.from_pretrained(source, **own)
    if not wants_advice:
        rel_pos = fitting_value(rel_pos)
        check_fittable(cls.from_pretrained(source, rel_pos=rel_pos, absolute="drop"))
    length = _fit_length(original.config, length, "fit_length")
    longest = None if distillation is None else distillation.check(original.config, length)
    texts = fitting_texts(text, tokenizer, length=length, tokens=tokens)
    reading = None if longest is None else DistillationTexts(text, tokenizer, texts, longest)

    def load(value: Any) -> Any:
        return cls.from_pretrained(source, rel_pos=value, absolute="drop")

    naive = load({"type": "none"})
    dropped = compare(original, naive, texts, beyond=False)
    tried = []
    if wants_advice:
        tried = advise(
            original, load, host_of(original.config, architecture(original.config.model_type)), texts, progress
        )
        rel_pos = tried[0].rel_pos
    converted, info = cls.from_pretrained(source, rel_pos=rel_pos, absolute="drop", output_loading_info=True)
    result = fit_model(original, converted, texts, progress=progress)
    progress("comparing")
    found = compare(original, converted, texts)
    named = str(text) if isinstance(text, (str, Path)) else "given strings"
    fit = FitReport(source, named, converted.config.rel_pos, result, dropped, found, tried)
    if distillation is not None and reading is not None:
        fit.distillation = distil(
            original,
            converted,
            reading,
            distillation.options,
            together=together,
            folder=distillation.folder,
            progress=progress,
        )
        fit.distilled = compare(original, converted, texts)
    report = replace(_report(converted, sorted(info["missing_keys"]), _dropped(converted, info), []), fit=fit)
    if together.index == 0:
        _write(converted, tokenizer, target, fit)
        if distillation is not None and distillation.folder is not None:
            remove(distillation.folder)
    together.wait()
    return report


def _fit_length(config: Any, length: int | None, name: str) -> int:
    """The longest texts that a model reads at its own lengths; ValueError when ``length``, which ``name`` gave, is more than that or next to nothing."""
    spec = architecture(config.model_type)
    has_table = spec.native == "table" and config.absolute == "keep"
    limit = table_length(config, spec)[0] if has_table else config.max_position_embeddings
    length = min(FIT_LENGTH, limit) if length is None else length
    if not 8 <= length <= limit:
        raise ValueError(f"{name}={length} is not valid: it must be between 8 and {limit}, what the model reads")
    return length


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
