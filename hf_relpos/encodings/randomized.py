"""Randomised positions: in training every text gets sorted random positions of a longer range. Ruoss et al. 2023, arXiv 2305.16843.

``score = inner(p_i - p_j)``, ``p`` being ``T`` distinct numbers below ``max_position``, drawn and sorted, the same for queries and keys. So the encoding meets,
in short texts, the distances of long ones. Outside training it is the inner encoding, slots and all.

A model draws one number for each forward and all its layers share it; attention without a model takes the numbers from torch's global
generator. Where the inner encoding asks for the place of a token in its own text, that is its new position counted from the text's first.
``absolute`` is for the model, not for attention: how it draws the absolute positions that it adds to its input in training.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .card import Card
from .inputs import Contribution, EncodingInputs
from .nested import NestedEncoding
from .options import EncodingOptions
from .registry import parse_part, register_encoding


@dataclass(frozen=True, kw_only=True)
class RandomizedOptions(EncodingOptions):
    """``encoding``: whose positions are drawn, as a ``rel_pos`` value; ``max_position``: how many positions there are to draw from; ``absolute``: the
    model's absolute positions in training (none: as always, offset: a random start, sorted: sorted random ones)."""

    encoding: dict | str = field(default_factory=lambda: {"type": "transformer_xl"})
    max_position: int = 2048
    absolute: Literal["none", "offset", "sorted"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.max_position >= 1, "max_position", "at least 1")
        parse_part(self.encoding)


@register_encoding
class Randomized(NestedEncoding[RandomizedOptions]):
    """Parameters of the inner encoding, shared by layers as that has them."""

    name = "randomized"
    Options = RandomizedOptions
    inner_option = "encoding"
    reads = frozenset({"seed"})
    card = Card(
        title="Randomized Positional Encodings Boost Length Generalization of Transformers",
        authors="Ruoss, Anian and Del{\\'e}tang, Gr{\\'e}goire and Genewein, Tim and Grau-Moya, Jordi and Csord{\\'a}s, R{\\'o}bert and "
        "Bennani, Mehdi and Legg, Shane and Veness, Joel",
        year=2023,
        arxiv="2305.16843",
        formula="score = inner(p_i − p_j), p sorted random positions in training",
        depends_on="content",
        directions="both",
        beyond_training="distances up to max_position occur in training",
    )

    @property
    def share_layers(self) -> bool:
        if self.options.share_layers is not None or self.inner is None:
            return super().share_layers
        return self.inner.share_layers

    @property
    def random_absolute(self) -> Literal["offset", "sorted"] | None:
        return super().random_absolute if self.options.absolute == "none" else self.options.absolute

    def _draw(self, inputs: EncodingInputs) -> Tensor:
        count, limit = inputs.positions.num_keys, self.options.max_position
        if count > limit:
            raise ValueError(
                f"a sequence of {count} tokens cannot have distinct random positions below max_position={limit} of {self.name!r}"
            )
        generator = None if inputs.seed is None else torch.Generator().manual_seed(inputs.seed)
        # drawn on the CPU, so that a seed means the same positions everywhere
        drawn = torch.randperm(limit, generator=generator)[:count].sort().values
        return drawn.to(inputs.positions.device)

    def _with_drawn_positions(self, inputs: EncodingInputs) -> EncodingInputs:
        slots = self._draw(inputs)
        positions = inputs.positions.reassigned(slots, self.options.max_position)
        if inputs.key_index is None:
            return replace(inputs, positions=positions)
        place = torch.arange(len(slots), device=slots.device)[None]
        index = slots[place] - slots[(place - inputs.key_index).clamp(min=0)]
        return replace(inputs, positions=positions, key_index=index, query_index=inputs.positions.of_queries(index))

    def _contribute(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        assert self.inner is not None
        # one call of the inner module, so that all of its hooks see the same draw
        return self.inner(self._with_drawn_positions(inputs) if self.training else inputs, before)
