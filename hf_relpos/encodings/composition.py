"""Several encodings in one call: who comes first, whose columns of the keys' state are whose, and what holds for all of them together."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .encoding import Part
from .inputs import Contribution, EncodingInputs, Tokens


class Composition(Part):
    """Several encodings in one place: terms add up, maps of queries and keys chain in the order given.

    Terms of every member see the queries and keys as the host projects them, not as another member maps them.
    """

    def __init__(self, members: Sequence[Part]):
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(member.needs for member in self.members))  # type: ignore[arg-type]

    @property
    def max_length(self) -> int | None:
        lengths: list[Any] = [member.max_length for member in self.members]
        return min((length for length in lengths if length is not None), default=None)

    @property
    def changes_with_length(self) -> bool:
        return any(member.changes_with_length for member in self.members)

    @property
    def relative(self) -> bool:
        return all(member.relative for member in self.members)

    @property
    def rescores(self) -> bool:
        return any(member.rescores for member in self.members)

    @property
    def state_width(self) -> int:
        return state_width(self.members)

    def key_state(self, tokens: Tokens) -> Tensor | None:
        return key_state(self.members, tokens)

    def config(self) -> list[dict[str, Any]]:
        """The resolved ``rel_pos`` list that builds this composition again."""
        return [member.config() for member in self.members]  # type: ignore[operator, misc]

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        return contribute(self.members, inputs, before)


def state_width(parts: Iterable[nn.Module]) -> int:
    """How many numbers ``parts`` together remember of each key."""
    return sum(part.state_width for part in parts)  # type: ignore[misc]


def key_state(parts: Iterable[nn.Module], tokens: Tokens) -> Tensor | None:
    """What ``parts`` remember of new keys, ``[B, T, S]``, one after the other; None when that is nothing."""
    found = [(part.state_width, part.key_state(tokens)) for part in parts if part.state_width]  # type: ignore[operator]
    some = next((state for _, state in found if state is not None), None)
    if some is None:
        return None
    states = [some.new_zeros(*some.shape[:2], width) if state is None else state for width, state in found]
    return torch.cat(states, dim=-1)


def _name(part: nn.Module) -> str:
    return repr(getattr(part, "name", type(part).__name__))


def contribute(parts: Iterable[nn.Module], inputs: EncodingInputs, before: Contribution) -> Contribution:
    """``before`` with the part of each of ``parts`` added, every one being given its own columns of the keys' state.

    Raises ValueError where one part would compute scores anew that another has changed, or change what such scores come from afterwards.
    """
    first, rescoring = 0, None
    for part in parts:
        if part.rescores and before.row_maps:
            raise ValueError(
                f"rel_pos names {_name(part)} after an encoding that changes content scores, which it would undo: put it first"
            )
        width: int = part.state_width  # type: ignore[assignment]
        state = None if inputs.key_state is None else inputs.key_state[..., first : first + width]
        after = part(replace(inputs, key_state=state), before)
        if rescoring is not None and (after.query is not before.query or after.key is not before.key):
            raise ValueError(
                f"rel_pos names {_name(part)}, which maps queries and keys, after {_name(rescoring)}, which computes scores from them: put it before"
            )
        if part.rescores:
            rescoring = part
        before = after
        first += width
    return before
