"""What a relative positional encoding is: a module that says what position adds to attention.

A method is a subclass that overrides one or two hooks and registers itself. It owns Parameters, never buffers: constants are
computed where they are used, in float32 at least, because loading a checkpoint refills non-persistent buffers with garbage.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .card import Card
from .options import EncodingOptions, Host
from .positions import Positions
from .terms import ScoreTerm, ValueBuckets

OptionsT = TypeVar("OptionsT", bound=EncodingOptions)


@dataclass(frozen=True)
class EncodingInputs:
    """All that an encoding may look at.

    ``query`` ``[B, H, Tq, D]`` and ``key`` ``[B, G, Tk, D]`` (``G`` divides ``H``: grouped keys are not repeated) as the host
    projects them; ``scale`` is the factor of the content score, usually ``1/sqrt(D)``. The last three are offered to encodings
    whose ``needs`` name them: ``hidden_states`` ``[B, Tk, E]``, ``segment_ids`` ``[B, Tk]``, ``relation_ids`` ``[B, Tq, Tk]``.
    """

    query: Tensor
    key: Tensor
    positions: Positions
    scale: float
    hidden_states: Tensor | None = None
    segment_ids: Tensor | None = None
    relation_ids: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of biases: float32, or float64 when the query is."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def keys_per_head(self) -> Tensor:
        """``key`` with its groups repeated to one for each query head, ``[B, H, Tk, D]``."""
        repeats = self.query.shape[1] // self.key.shape[1]
        return self.key if repeats == 1 else self.key.repeat_interleave(repeats, dim=1)


@dataclass(frozen=True)
class Contribution:
    """What an encoding adds to one call: mapped queries and keys, the content scale, and terms for scores and values."""

    query: Tensor
    key: Tensor
    scale: float
    score_terms: tuple[ScoreTerm, ...] = ()
    value_terms: tuple[ValueBuckets, ...] = ()


class Encoding(nn.Module, Generic[OptionsT]):
    """Base of all encodings.

    Class attributes of a method: ``name`` (its ``rel_pos`` type), ``Options``, ``card``, ``shared`` (one module for all layers, as
    its authors do), ``needs`` (optional inputs it reads), ``legacy_position_embedding_type`` and ``legacy_parameter_names`` (how
    checkpoints of transformers 4 spelled it: the value of that config key, and their parameter name for each of ours).
    """

    name: ClassVar[str]
    Options: ClassVar[type[EncodingOptions]] = EncodingOptions
    card: ClassVar[Card]
    shared: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    legacy_position_embedding_type: ClassVar[str | None] = None
    legacy_parameter_names: ClassVar[dict[str, str]] = {}

    def __init__(self, options: OptionsT, host: Host):
        super().__init__()
        self.options: OptionsT = options.resolve(host)
        self.host = host
        self.create_parameters()
        self.reset_parameters()

    @property
    def share_layers(self) -> bool:
        """Whether one module serves all layers of a model."""
        return self.shared if self.options.share_layers is None else self.options.share_layers

    def config(self) -> dict[str, Any]:
        """The resolved ``rel_pos`` value that builds this encoding again."""
        return {"type": self.name, **self.options.to_dict(), "share_layers": self.share_layers}

    def create_parameters(self) -> None:
        """Create the Parameters, uninitialised."""

    def reset_parameters(self) -> None:
        """Initialise the Parameters as the method's authors do. Only ``torch.nn.init`` functions may write: the host's loading
        code suspends them for parameters that a checkpoint has filled."""

    def content_scale(self, scale: float) -> float:
        """The factor of ``q . k``; the host's unless the method has its own."""
        return scale

    def map_query(self, query: Tensor, inputs: EncodingInputs) -> Tensor:
        """The queries that the content score uses, ``[B, H, Tq, D]``, from what earlier encodings made of them."""
        return query

    def map_key(self, key: Tensor, inputs: EncodingInputs) -> Tensor:
        """The keys that the content score uses, ``[B, G, Tk, D]``, from what earlier encodings made of them."""
        return key

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        """What is added to the scaled content score."""
        return ()

    def value_terms(self, inputs: EncodingInputs) -> tuple[ValueBuckets, ...]:
        """What is added to the values."""
        return ()

    @property
    def adds_to_input(self) -> bool:
        """Whether :meth:`input_term` is to be added to the model's input embeddings."""
        return False

    def input_term(self, index: Tensor, width: int) -> Tensor:
        """What is added to the embedding of the token at ``index`` ``[B|1, T]`` of its text, ``[B|1, T, width]``; without parameters."""
        raise TypeError(f"the encoding {self.name!r} adds nothing to the input")

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        """``before`` with this encoding's part added: maps chain, terms add.

        Attention calls the module, so that wrappers around it (PEFT's, hooks) take part. Raises ValueError when two encodings
        want different content scales.
        """
        scale = self.content_scale(inputs.scale)
        if scale == inputs.scale:
            scale = before.scale
        elif before.scale not in (inputs.scale, scale):
            raise ValueError(
                f"rel_pos combines encodings with different content scales ({before.scale:g} and {scale:g}): keep scaling='host' in all but one"
            )
        return Contribution(
            self.map_query(before.query, inputs),
            self.map_key(before.key, inputs),
            scale,
            before.score_terms + self.score_terms(inputs),
            before.value_terms + self.value_terms(inputs),
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.to_dict().items())


class Composition(nn.Module):
    """Several encodings in one place: terms add up, maps of queries and keys chain in the order given.

    Terms of every member see the queries and keys as the host projects them, not as another member maps them.
    """

    def __init__(self, members: Sequence[Encoding]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def config(self) -> list[dict[str, Any]]:
        """The resolved ``rel_pos`` list that builds this composition again."""
        return [member.config() for member in self.members]  # type: ignore[operator, misc]

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        for member in self.members:
            before = member(inputs, before)
        return before


_REGISTRY: dict[str, type[Encoding]] = {}


def register_encoding(cls: type[Encoding]) -> type[Encoding]:
    """Class decorator: make an encoding available under its ``name``.

    Raises ValueError when the name is taken by another class or is not a lower-case identifier, TypeError when the class lacks
    a card or options.
    """
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{cls.__name__}.name={name!r} is not a lower-case identifier")
    if not isinstance(getattr(cls, "card", None), Card) or not issubclass(cls.Options, EncodingOptions):
        raise TypeError(f"{cls.__name__} needs `card` (a Card) and `Options` (a subclass of EncodingOptions)")
    taken = _REGISTRY.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the encoding name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    _REGISTRY[name] = cls
    return cls


def registered_encodings() -> dict[str, type[Encoding]]:
    """All registered encodings by name, in order of name."""
    return dict(sorted(_REGISTRY.items()))
