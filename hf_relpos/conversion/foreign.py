"""Models of other types whose positions are methods of this package, turned into models of this package that compute the same.

Only what is exactly the same model is converted; every other is refused with the reasons. What a type's config and weights mean stands in one
:class:`ForeignModel` for each, how they spell their positions in ``encodings/spellings.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, XLNetConfig

from ..models.families import AUTO_CLASSES, CONFIG_CLASSES, auto_class
from ..models.loading import readable_errors
from .carried import fit_positions, foreign_positions
from .deberta_weights import DEBERTA, DEBERTA_V2
from .decoder_weights import BLOOM, FALCON, MPT
from .foreign_model import ForeignModel
from .mpnet_weights import MPNET

FOREIGN: dict[str, ForeignModel] = {
    foreign.model_type: foreign for foreign in (DEBERTA, DEBERTA_V2, MPNET, BLOOM, MPT, FALCON)
}
# types whose positions are known here and whose models are no model that is
REFUSED: dict[str, str] = {
    XLNetConfig.model_type: "its layers get word vectors as they are, where every bidirectional family here normalises them first, and no weights "
    "undo a LayerNorm; its positions alone can be given to another model (positions_from, on the command line --positions-from)"
}
# config values that belong to no architecture
_COMMON = (
    "id2label",
    "label2id",
    "problem_type",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Loaded:
    """A model made of foreign weights, which of its weights are freshly initialised, and which of theirs have no place in it."""

    model: Any
    created: list[str]
    dropped: list[str]


def is_foreign(model_type: str | None) -> bool:
    """Whether checkpoints of ``model_type`` are models of another type with positions of their own; ValueError for those that are refused as such."""
    if model_type in REFUSED:
        raise ValueError(f"a model of type {model_type!r} is no model of this package: {REFUSED[model_type]}")
    return model_type in FOREIGN


def load_foreign(source: str, head: str | None = None) -> Loaded:
    """Load ``source`` (folder or Hub id), a checkpoint of one of the types in ``FOREIGN``, as a model of this package with equal outputs.

    ``head`` such as "QuestionAnswering" replaces the checkpoint's own. Raises ValueError when it is another model than any here, or has no such
    head; OSError when it cannot be read.
    """
    config = AutoConfig.from_pretrained(source)
    foreign = FOREIGN[config.model_type]
    head = head_key(source, config, head)
    objections = foreign.objections(config, head)
    if objections:
        raise ValueError(f"{source} is no model of this package: {'; '.join(objections)}")
    family = foreign.family(config, head)
    target = auto_class(family, head)
    theirs, info = _load(source, config, foreign, head)
    known = {key: tensor for key, tensor in theirs.state_dict().items() if key not in info["missing_keys"]}
    prefix = "" if theirs.base_model is theirs else f"{theirs.base_model_prefix}."
    base = {key.removeprefix(prefix): tensor for key, tensor in known.items() if key.startswith(prefix)}
    rest = {key: tensor for key, tensor in known.items() if not key.startswith(prefix)}

    try:
        positions = foreign_positions(source, config, base, native=True, causal=foreign.causal)
    except ValueError as error:
        raise ValueError(f"{source} is no model of this package: {error}") from None
    values = {key: getattr(config, key) for key in _COMMON if getattr(config, key, None) is not None}
    made = CONFIG_CLASSES[f"relpos_{family}"](
        **{**values, **foreign.config_values(config)},
        rel_pos=positions.rel_pos,
        absolute=foreign.absolute(config),
    )
    with torch.device("meta"):
        fitted = fit_positions(target(made), positions)
    inner, outer = foreign.weights(base, rest, config)
    model, loaded = target.from_pretrained(
        None,
        config=made,
        state_dict={**_joined(target, inner, outer), **fitted},
        dtype=theirs.dtype,
        output_loading_info=True,
    )
    if model.can_generate() and theirs.can_generate():
        model.generation_config = theirs.generation_config
    return Loaded(model, sorted(loaded["missing_keys"]), sorted({*info["unexpected_keys"], *loaded["unexpected_keys"]}))


def _joined(target: Any, inner: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``target`` class: what belongs to its base model, and what belongs to its head."""
    prefix = "" if target.relpos_base_class is None else f"{target.base_model_prefix}."
    # tensors may be views of fused ones
    return {
        **{f"{prefix}{key}": tensor.clone(memory_format=torch.contiguous_format) for key, tensor in inner.items()},
        **{key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in outer.items()},
    }


def head_key(source: str, config: Any, head: str | None) -> str:
    """The key of ``AUTO_CLASSES`` for a checkpoint's own head or the one asked for; ValueError when the type has no such head."""
    heads = [key for key, auto in AUTO_CLASSES.items() if type(config) in auto._model_mapping]
    if head is None:
        name = (config.architectures or ["Model"])[0]
        found = next((key for key in heads if name.endswith(key)), None)
        if found is None:
            raise ValueError(
                f"{source} holds a {name}, which is not known here; ask for one of the heads "
                f"{', '.join(key.removeprefix('For') for key in heads)}"
            )
        return found
    wanted = head if head in heads else f"For{head}"
    if wanted not in heads:
        raise ValueError(
            f"{config.model_type} has no head {head!r}; heads: {', '.join(key.removeprefix('For') for key in heads)}"
        )
    return wanted


def _load(source: str, config: Any, foreign: ForeignModel, head: str) -> tuple[Any, Any]:
    """transformers' own model of a checkpoint and what it says about loading it."""
    load = AUTO_CLASSES[head].from_pretrained
    with readable_errors(source):
        model, info = load(source, config=config, output_loading_info=True)
        if foreign.other_layout is not None and (other := foreign.other_layout(config, info)) is not None:
            model, info = load(source, config=other, output_loading_info=True)
    return model.eval(), info
