"""What happens once at the entrance of a base model, before its forward."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from .architectures import ArchSpec


@dataclass(frozen=True)
class Given:
    """What the entrance of a model passes on to all its attention modules, for the encodings that need it.

    ``weights``: attention weights are asked for. ``index`` ``[B|1, T]``: the place of each new token in its own text. ``offset``: None where the keys
    are the new tokens alone. ``segment_ids`` ``[B, T]``, ``relation_ids`` ``[B, T, Tk]``; ``marks`` as of ``Encoding.token_marks``; ``seed`` drawn once
    for the forward.
    """

    weights: bool = False
    index: Tensor | None = None
    offset: int | Tensor | None = None
    segment_ids: Tensor | None = None
    relation_ids: Tensor | None = None
    marks: Tensor | None = None
    seed: int | None = None


class Entrance:
    """State of :func:`before_model` on a base model: its family, whether its own table of positions is kept, what its encodings
    need, and its argument names."""

    def __init__(self, base: nn.Module, spec: ArchSpec, *, keep: bool, causal: bool, needs: frozenset[str]):
        self.spec = spec
        self.keep = keep
        self.causal = causal
        self.needs = needs
        self.names = tuple(inspect.signature(type(base).forward).parameters)[1:]


def before_model(
    base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of a base model.

    Refuses sequences longer than a kept table, separates packed sequences (some hosts do so, some do not), adds what
    encodings add to the input, and passes on to attention what encodings need and a wish for attention weights, which not every
    host does. ``segment_ids`` (the host's ``token_type_ids`` unless given) and ``relation_ids`` are arguments of our models.
    """
    entrance: Entrance = base._relpos_entrance  # type: ignore[assignment]
    kwargs = {**dict(zip(entrance.names, args, strict=False)), **kwargs}
    relation_ids, segment_ids = kwargs.pop("relation_ids", None), kwargs.pop("segment_ids", None)
    config: Any = base.config
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        return (), kwargs
    batch, length = tokens.shape[:2]
    past = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    offset = 0 if past is None else past.get_seq_length()
    if entrance.keep and entrance.spec.native == "table" and kwargs.get("position_ids") is None:
        _check_length(config, entrance.spec, length, offset)
    index = _text_index(kwargs, length, offset, tokens.device)
    if past is None and kwargs.get("attention_mask") is None and isinstance(kwargs.get("position_ids"), Tensor):
        documents = _documents(kwargs["position_ids"])
        if documents is not None:
            visible = documents[:, None, :, None] == documents[:, None, None, :]
            kwargs["attention_mask"] = (visible.tril() if entrance.causal else visible).expand(batch, -1, -1, -1)
    if segment_ids is None:
        segment_ids = kwargs.get("token_type_ids")
    kwargs["relpos_given"] = Given(
        weights=bool(kwargs.get("output_attentions", getattr(config, "output_attentions", False))),
        index=index if "index" in entrance.needs else None,
        offset=None if past is None else offset,
        segment_ids=segment_ids,
        relation_ids=_relations(relation_ids, entrance, batch, length),
        seed=int(torch.randint(2**31, ())) if "seed" in entrance.needs and base.training else None,
    )
    _add_input_terms(base, kwargs, entrance, offset, index)
    return (), kwargs


def example_inputs(base: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """The arguments beyond ``input_ids`` ``[B, T]`` without which a model would refuse them, filled with zeros."""
    entrance: Any = next(
        module for module in base.modules() if isinstance(getattr(module, "_relpos_entrance", None), Entrance)
    )
    if "relation_ids" not in entrance._relpos_entrance.needs:
        return {}
    batch, length = input_ids.shape
    return {"relation_ids": torch.zeros(batch, length, length, dtype=torch.long, device=input_ids.device)}


def _relations(relation_ids: Tensor | None, entrance: Entrance, batch: int, length: int) -> Tensor | None:
    if "relation_ids" not in entrance.needs:
        if relation_ids is not None:
            raise ValueError("relation_ids are given, but no encoding of this model reads them")
        return None
    if relation_ids is None:
        raise ValueError(
            f"this model needs relation_ids, an integer for each pair of query and key: [{batch}, {length}, number of keys]"
        )
    if relation_ids.ndim != 3 or relation_ids.shape[:2] != (batch, length):
        raise ValueError(
            f"relation_ids has shape {list(relation_ids.shape)}, but must be [{batch}, {length}, number of keys]"
        )
    return relation_ids


def _text_index(kwargs: dict[str, Any], length: int, offset: int | Tensor, device: torch.device) -> Tensor:
    """The place of each new token in its own text, ``[B|1, T]``: as the caller says, or counted from the end of the padding."""
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(positions, Tensor):
        return positions
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=device) + offset)[None]


def _check_length(config: Any, spec: ArchSpec, length: int, offset: int | Tensor) -> None:
    limit = config.max_position_embeddings
    if spec.reserved_positions is not None:
        limit -= getattr(config, spec.reserved_positions) + 1
    if isinstance(offset, int) and offset + length > limit:
        raise ValueError(
            f"a sequence of {offset + length} tokens is longer than the table of {limit} absolute positions that absolute='keep' "
            "keeps; shorten it, or use a model made with absolute='drop'"
        )


def _documents(position_ids: Tensor) -> Tensor | None:
    """The document of each token where positions restart within a row, else None."""
    if position_ids.ndim != 2 or torch.compiler.is_compiling():
        return None
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if not bool(starts.any()):
        return None
    return torch.nn.functional.pad(starts.long().cumsum(-1), (1, 0))


def _add_input_terms(
    base: nn.Module, kwargs: dict[str, Any], entrance: Entrance, offset: int | Tensor, index: Tensor
) -> None:
    encodings: list[Any] = base._relpos_input_encodings  # type: ignore[assignment]
    if not encodings:
        return
    embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
    if embeds is None:
        embeds = base.get_input_embeddings()(ids)  # type: ignore[operator]
    term = sum(encoding.input_term(index, embeds.shape[-1]) for encoding in encodings)
    if (
        entrance.keep
        and entrance.spec.reserved_positions is not None
        and kwargs.get("position_ids") is None
        and ids is not None
    ):
        # the host derives its padded positions from ids, which it will not see
        embeddings = base.get_submodule(entrance.spec.embeddings or "")
        kwargs["position_ids"] = embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx, offset)  # type: ignore[operator]
    kwargs["inputs_embeds"], kwargs["input_ids"] = embeds + term.to(embeds.dtype), None
