"""What an encoding is given for one call, and what it gives back."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .positions import Positions
from .terms import ScoreTerm, ValueTerm

T = TypeVar("T")

# content scores [B, H, Tq, Tk], sum of all score terms or None, visible keys [B|1, 1|H, Tq, Tk] or None, the factor of the content -> content scores
RowMap = Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor]


@dataclass(frozen=True)
class Tokens:
    """What the tokens of a call bring along, for :meth:`Encoding.key_state`: the layer's input ``[B, T, E]``, segment numbers and ids ``[B, T]``, None
    where there is none; ``before``: how many tokens stand before them in a cache."""

    hidden_states: Tensor | None = None
    segment_ids: Tensor | None = None
    input_ids: Tensor | None = None
    before: int | Tensor = 0


class OncePerForward:
    """What the layers of a model compute once in a forward, since none of it differs between them: made at the model's entrance, gone with its last user.

    A layer that is checkpointed keeps nothing for its backward pass, and counts what it would have kept; what it computes here stands outside of that, like
    an input. Where a layer runs without gradients in a forward that has them (reentrant checkpointing), to be run again with them, every layer computes all
    of its own.
    """

    def __init__(self) -> None:
        self._learning = torch.is_grad_enabled()
        self._known: dict[Hashable, Any] = {}
        try:
            with saved_tensors_hooks(_as_it_is, _as_it_is):
                self._apart = False
        except RuntimeError:
            # under transforms of torch.func, which allow no hooks
            self._apart = True

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """``compute()``, or what it gave for the same ``key`` before."""
        self._apart = self._apart or torch.is_grad_enabled() != self._learning
        if self._apart:
            return compute()
        if key not in self._known:
            with saved_tensors_hooks(_as_it_is, _as_it_is):
                self._known[key] = compute()
        return self._known[key]

    def holds(self, thing: object) -> bool:
        """Whether ``thing`` is, or is one of, what was computed here: the same object in every layer."""
        found = self._known.values()
        return any(thing is one for value in found for one in (value if isinstance(value, tuple) else (value,)))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class EncodingInputs:
    """All that an encoding may look at.

    ``query`` ``[B, H, Tq, D]`` and ``key`` ``[B, G, Tk, D]`` (``G`` divides ``H``: grouped keys are not repeated) as the host
    projects them; ``scale`` is the factor of the content score, usually ``1/sqrt(D)``.

    The rest is for encodings whose ``needs`` name it. ``hidden_states`` ``[B, Tq, E]``: the layer's input for the queries, as its attention
    gets it; in pre-norm hosts that is the normalised input. ``relation_ids`` ``[B, Tq, Tk]``. ``query_index`` ``[B|1, Tq]`` and ``key_index`` ``[B|1, Tk]``: the place of each token in its own text, 0 for the first; unlike slots they
    differ by sample under left padding and start anew in each packed document. ``key_state`` ``[B, Tk, S]``: what
    :meth:`Encoding.key_state` gave for each key. ``seed``: a number drawn once for a forward of the whole model. ``projections``: the host's own
    maps of ``[N, E]`` to queries and keys ``[H|G, N, D]``. ``shared``: what :class:`SharedPart` modules hand to the layers. ``keys_are_mapped``: whether ``key`` comes from a
    cache of keys that are mapped already. ``forward``: what layers compute once
    for all of them, for :meth:`once`.
    """

    query: Tensor
    key: Tensor
    positions: Positions
    scale: float
    hidden_states: Tensor | None = None
    relation_ids: Tensor | None = None
    query_index: Tensor | None = None
    key_index: Tensor | None = None
    key_state: Tensor | None = None
    seed: int | None = None
    projections: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    keys_are_mapped: bool = False
    forward: OncePerForward | None = None

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """``compute()``, or what it gave in an earlier layer with the same ``key`` and the same slots, in the same forward of a model.

        What it reads besides must not differ between layers: slots, indices, ``dtype``, and parameters that the key names by their module.
        """
        place = self.positions.identity
        if self.forward is None or place is None:
            return compute()
        return self.forward.get((key, place), compute)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of biases: float32, or float64 when the query is."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def keys_per_head(self) -> Tensor:
        """``key`` with its groups repeated to one for each query head, ``[B, H, Tk, D]``."""
        return per_head(self.query, self.key)

    def indices(self) -> tuple[Tensor, Tensor]:
        """``query_index`` and ``key_index``; slots where nothing else is known."""
        query = self.positions.query if self.query_index is None else self.query_index
        key = self.positions.key if self.key_index is None else self.key_index
        return query, key

    def require(self, name: str, who: str) -> Tensor:
        """The input called ``name``; ValueError says that the encoding ``who`` cannot do without."""
        value = getattr(self, name)
        if value is None:
            raise missing_input(name, who)
        return value


def per_head(query: Tensor, key: Tensor) -> Tensor:
    """``key`` ``[B, G, Tk, D]`` with its groups repeated to one for each head of ``query``, ``[B, H, Tk, D]``."""
    repeats = query.shape[1] // key.shape[1]
    return key if repeats == 1 else key.repeat_interleave(repeats, dim=1)


def missing_input(name: str, who: str) -> ValueError:
    """The error for an encoding ``who`` that is not given the input ``name``."""
    return ValueError(f"the encoding {who!r} needs {name}, which this call does not give")


@dataclass(frozen=True)
class Contribution:
    """What encodings add to one call: mapped queries and keys, the content scale, terms for scores and values, and maps of whole rows of
    content scores, which run after everything else is known."""

    query: Tensor
    key: Tensor
    scale: float
    score_terms: tuple[ScoreTerm, ...] = ()
    value_terms: tuple[ValueTerm, ...] = ()
    row_maps: tuple[RowMap, ...] = ()
    shared: Mapping[str, Tensor] = field(default_factory=dict)
