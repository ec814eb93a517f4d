"""What must be known of another model type to make one of ours of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ForeignModel:
    """One model type of transformers.

    ``model_type``: its name there. ``family(config, head)``: the family of this package that it becomes. ``causal``: whether queries see no later keys.
    ``objections(config, head)``: why a checkpoint is no model of that family, nothing where it is one. ``config_values(config)``: fields of the new
    config. ``absolute(config)``: "keep" where it has a table of absolute positions, else "drop". ``weights(base, head_weights, config)``: the same two
    dicts in the new model's names, without the base model's prefix and without positions. ``other_layout(config, info)``: the config to load again
    with, where the loading ``info`` shows that weights are laid out as another config says; None where they are not.
    """

    model_type: str
    family: Callable[[Any, str], str]
    causal: bool
    objections: Callable[[Any, str], list[str]]
    config_values: Callable[[Any], dict[str, Any]]
    absolute: Callable[[Any], str]
    weights: Callable[[Weights, Weights, Any], tuple[dict[str, Tensor], dict[str, Tensor]]]
    other_layout: Callable[[Any, Any], Any] | None = None


def failing(*checks: tuple[bool, str]) -> list[str]:
    """The reasons whose condition holds."""
    return [reason for holds, reason in checks if holds]


def split_heads(fused: Tensor, heads: int) -> list[Tensor]:
    """Queries', keys' and values' rows of a fused projection ``[heads * 3 * D, ...]`` that holds the three for one head after the other."""
    return [rows.flatten(0, 1) for rows in fused.unflatten(0, (heads, 3, -1)).unbind(1)]
