"""What happens once at the entrance of a base model, before its forward."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from .architectures import ArchSpec


class Entrance:
    """State of :func:`before_model` on a base model: its family, whether its own table of positions is kept, and its argument names."""

    def __init__(self, base: nn.Module, spec: ArchSpec, *, keep: bool, causal: bool):
        self.spec = spec
        self.keep = keep
        self.causal = causal
        self.names = tuple(inspect.signature(type(base).forward).parameters)[1:]


def before_model(
    base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pre-hook of a base model.

    Refuses sequences longer than a kept table, separates packed sequences (some hosts do so, some do not), adds what
    encodings add to the input, and passes on a wish for attention weights, which not every host does.
    """
    entrance: Entrance = base._relpos_entrance  # type: ignore[assignment]
    kwargs = {**dict(zip(entrance.names, args, strict=False)), **kwargs}
    config: Any = base.config
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        return (), kwargs
    batch, length = tokens.shape[:2]
    past = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    offset = 0 if past is None else past.get_seq_length()
    if entrance.keep and entrance.spec.native == "table" and kwargs.get("position_ids") is None:
        _check_length(config, entrance.spec, length, offset)
    if past is None and kwargs.get("attention_mask") is None and isinstance(kwargs.get("position_ids"), Tensor):
        documents = _documents(kwargs["position_ids"])
        if documents is not None:
            visible = documents[:, None, :, None] == documents[:, None, None, :]
            kwargs["attention_mask"] = (visible.tril() if entrance.causal else visible).expand(batch, -1, -1, -1)
    _add_input_terms(base, kwargs, entrance, offset, length)
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        kwargs["relpos_weights"] = True
    return (), kwargs


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
    base: nn.Module, kwargs: dict[str, Any], entrance: Entrance, offset: int | Tensor, length: int
) -> None:
    encodings: list[Any] = base._relpos_input_encodings  # type: ignore[assignment]
    if not encodings:
        return
    embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
    if embeds is None:
        embeds = base.get_input_embeddings()(ids)  # type: ignore[operator]
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(positions, Tensor):
        index = positions
    elif isinstance(mask, Tensor) and mask.ndim == 2:
        index = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    else:
        index = (torch.arange(length, device=embeds.device) + offset)[None]
    term = sum(encoding.input_term(index, embeds.shape[-1]) for encoding in encodings)
    if entrance.keep and entrance.spec.reserved_positions is not None and positions is None and ids is not None:
        # the host derives its padded positions from ids, which it will not see
        embeddings = base.get_submodule(entrance.spec.embeddings or "")
        kwargs["position_ids"] = embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx, offset)  # type: ignore[operator]
    kwargs["inputs_embeds"], kwargs["input_ids"] = embeds + term.to(embeds.dtype), None
