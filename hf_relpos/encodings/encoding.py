"""What a relative positional encoding is: a module that says what position adds to attention.

A method is a subclass that overrides one or two hooks and registers itself. It owns Parameters, never buffers: constants are
computed where they are used, in float32 at least, because loading a checkpoint refills non-persistent buffers with garbage.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from .card import Card
from .options import EncodingOptions, Host
from .positions import Positions
from .terms import OnHeads, ScoreTerm, ValuesOnHeads, ValueTerm

OptionsT = TypeVar("OptionsT", bound=EncodingOptions)

# content scores [B, H, Tq, Tk], sum of all score terms or None, visible keys [B|1, 1|H, Tq, Tk] or None -> content scores
RowMap = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True)
class Tokens:
    """What the tokens of a call bring along, for :meth:`Encoding.key_state`: the layer's input ``[B, T, E]``, segment numbers and ids ``[B, T]``, None
    where there is none; ``before``: how many tokens stand before them in a cache."""

    hidden_states: Tensor | None = None
    segment_ids: Tensor | None = None
    input_ids: Tensor | None = None
    before: int | Tensor = 0


@dataclass(frozen=True)
class EncodingInputs:
    """All that an encoding may look at.

    ``query`` ``[B, H, Tq, D]`` and ``key`` ``[B, G, Tk, D]`` (``G`` divides ``H``: grouped keys are not repeated) as the host
    projects them; ``scale`` is the factor of the content score, usually ``1/sqrt(D)``.

    The rest is for encodings whose ``needs`` name it. ``hidden_states`` ``[B, Tq, E]``: the layer's input for the queries. ``relation_ids`` ``[B, Tq,
    Tk]``. ``query_index`` ``[B|1, Tq]`` and ``key_index`` ``[B|1, Tk]``: the place of each token in its own text, 0 for the first; unlike slots they
    differ by sample under left padding and start anew in each packed document. ``key_state`` ``[B, Tk, S]``: what
    :meth:`Encoding.key_state` gave for each key. ``seed``: a number drawn once for a forward of the whole model. ``projections``: the host's own
    maps of ``[N, E]`` to queries and keys ``[H|G, N, D]``. ``shared``: what :class:`SharedPart` modules hand to the layers.
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

    @property
    def dtype(self) -> torch.dtype:
        """The precision of biases: float32, or float64 when the query is."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def keys_per_head(self) -> Tensor:
        """``key`` with its groups repeated to one for each query head, ``[B, H, Tk, D]``."""
        repeats = self.query.shape[1] // self.key.shape[1]
        return self.key if repeats == 1 else self.key.repeat_interleave(repeats, dim=1)

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


class Part(nn.Module):
    """What attention calls one after the other: ``part(inputs, before) -> Contribution``."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the optional inputs that it reads."""
        return frozenset()

    @property
    def max_length(self) -> int | None:
        """The longest text it is defined for, in tokens; longer ones raise. None: any."""
        return None

    @property
    def changes_with_length(self) -> bool:
        """Whether the score of two tokens changes when the text around them grows, so that decoding with a cache, padding and packing move
        scores a little, whoever computes them."""
        return False

    @property
    def state_width(self) -> int:
        """How many numbers it must remember of each key beyond the key itself."""
        return 0

    def key_state(self, tokens: Tokens) -> Tensor | None:
        """Those numbers for new keys, ``[B, T, state_width]``; they travel with the keys through the host's cache."""
        return None


class SharedPart(Part):
    """Parameters that all layers share of a method whose other parameters belong to one layer, such as DeBERTa's table.

    It stands before the encoding it belongs to and hands it :meth:`tensor` by the encoding's name. Attention called without a model has it
    inside the encoding; a model owns one for all its layers.
    """

    def __init__(self, owner: str, options: Any, host: Host):
        super().__init__()
        self.owner = owner
        self.options = options
        self.host = host
        self.create_parameters()
        self.reset_parameters()

    def create_parameters(self) -> None:
        """Create the Parameters, uninitialised."""

    def reset_parameters(self) -> None:
        """Initialise them; only ``torch.nn.init`` functions may write."""

    def tensor(self, inputs: EncodingInputs) -> Tensor:
        """What the layers get."""
        raise NotImplementedError

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        if self.owner in before.shared:
            raise ValueError(
                f"rel_pos names {self.owner!r} twice; one of them can have parameters shared by all layers"
            )
        return replace(before, shared={**before.shared, self.owner: self.tensor(inputs)})


class Encoding(Part, Generic[OptionsT]):
    """Base of all encodings.

    Class attributes of a method: ``name`` (its ``rel_pos`` type), ``Options``, ``card``, ``shared`` (one module for all layers, as
    its authors do it), ``Shared`` (a :class:`SharedPart`, where only some of its parameters are shared), ``reads`` (optional inputs it
    needs), ``legacy_position_embedding_type`` and ``legacy_parameter_names`` (how checkpoints of transformers 4 spelled it: the value of that
    config key, and their parameter name for each of ours).
    """

    name: ClassVar[str]
    Options: ClassVar[type[EncodingOptions]] = EncodingOptions
    card: ClassVar[Card]
    shared: ClassVar[bool] = False
    Shared: ClassVar[type[SharedPart] | None] = None
    reads: ClassVar[frozenset[str]] = frozenset()
    legacy_position_embedding_type: ClassVar[str | None] = None
    legacy_parameter_names: ClassVar[dict[str, str]] = {}

    def __init__(self, options: OptionsT, host: Host):
        super().__init__()
        heads, self.attention_heads = options.heads, host.num_heads
        if heads is not None and heads[1] > host.num_heads:
            raise ValueError(
                f"rel_pos type {self.name!r}: heads={heads} is not valid: there are {host.num_heads} heads"
            )
        if heads is not None:
            host = replace(host, num_heads=heads[1] - heads[0], projections=False)
        try:
            self.options: OptionsT = options.resolve(host)
        except ValueError as error:
            raise ValueError(f"rel_pos type {self.name!r}: {error}") from None
        self.host = host
        self.shared_part = None if self.Shared is None else self.Shared(self.name, self.options, host)
        self.create_parameters()
        self.reset_parameters()
        if heads is not None and self.content_scale(2.0) != 2.0:
            raise ValueError(
                f"rel_pos type {self.name!r}: heads={heads} is not valid where the content has a scale of its own"
            )

    @property
    def needs(self) -> frozenset[str]:
        return self.reads

    @property
    def relative(self) -> bool:
        """Whether scores stay as they are when every slot is shifted by the same amount; what the card says unless options change it."""
        return self.card.relative

    @property
    def share_layers(self) -> bool:
        """Whether one module serves all layers of a model."""
        return self.shared if self.options.share_layers is None else self.options.share_layers

    def config(self) -> dict[str, Any]:
        """The resolved ``rel_pos`` value that builds this encoding again."""
        return {"type": self.name, **self.options.to_dict(), "share_layers": self.share_layers}

    def take_shared_part(self) -> SharedPart | None:
        """Give away the part that all layers share, which then must stand before this encoding in every call."""
        part, self.shared_part = self.shared_part, None
        return part

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

    def value_terms(self, inputs: EncodingInputs) -> tuple[ValueTerm, ...]:
        """What is added to the values."""
        return ()

    def row_map(self, inputs: EncodingInputs) -> RowMap | None:
        """A function of whole rows of content scores, for what is not a sum: it is given them, the sum of all score terms (or None) and which
        keys each query sees (or None), and returns other content scores. Backends then need the dense scores."""
        return None

    @property
    def adds_to_input(self) -> bool:
        """Whether :meth:`input_term` is to be added to the model's input embeddings."""
        return False

    @property
    def random_absolute(self) -> Literal["offset", "sorted"] | None:
        """How a model that keeps its absolute positions draws them in training: a random start, sorted random ones, or not at all."""
        return None

    def input_term(self, index: Tensor, width: int, tokens: Tokens, past: Tensor | None) -> Tensor:
        """What is added to the embedding of the token at ``index`` ``[B|1, T]`` of its text, ``[B|1, T, width]``.

        ``tokens`` are the new tokens without hidden states, ``past`` ``[B, P, state_width]`` is what is remembered of those before them. An encoding
        that belongs to one layer can have no parameters for it.
        """
        raise TypeError(f"the encoding {self.name!r} adds nothing to the input")

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        """``before`` with this encoding's part added: maps chain, terms add.

        Attention calls the module, so that wrappers around it (PEFT's, hooks) take part. Raises ValueError when two encodings
        want different content scales.
        """
        if self.shared_part is not None:
            before = self.shared_part(inputs, before)
        inputs = replace(inputs, shared=before.shared)
        if self.options.heads is None:
            return self._contribute(inputs, before)
        first, last = self.options.heads
        return self._on_heads(first, last, inputs, before)

    def _contribute(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
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
            before.row_maps + tuple(row_map for row_map in (self.row_map(inputs),) if row_map is not None),
            before.shared,
        )

    def _on_heads(self, first: int, last: int, inputs: EncodingInputs, before: Contribution) -> Contribution:
        """The same for the query heads ``first .. last - 1``; what is done to the other heads stays as it is.

        Raises ValueError when keys are mapped that a head outside shares, or to another width.
        """
        total = inputs.query.shape[1]
        repeats = total // inputs.key.shape[1]
        aligned = first % repeats == 0 and last % repeats == 0
        keys = slice(first // repeats, last // repeats)

        def of_heads(key: Tensor) -> Tensor:
            return key[:, keys] if aligned else key.repeat_interleave(repeats, dim=1)[:, first:last]

        own = replace(inputs, query=inputs.query[:, first:last], key=of_heads(inputs.key))
        start = Contribution(before.query[:, first:last], of_heads(before.key), before.scale, shared=before.shared)
        part = self._contribute(own, start)
        query, key = before.query, before.key
        if part.query is not start.query or part.key is not start.key:
            if not aligned or part.query.shape != start.query.shape or part.key.shape != start.key.shape:
                raise ValueError(
                    f"the encoding {self.name!r} maps queries and keys, which heads={[first, last]} does not allow here: its heads must share "
                    f"no keys with others ({repeats} query heads for each key head) and keep their width"
                )
            query = torch.cat((query[:, :first], part.query, query[:, last:]), dim=1)
            key = torch.cat((key[:, : keys.start], part.key, key[:, keys.stop :]), dim=1)

        def on_heads(row_map: RowMap) -> RowMap:
            def mapped(content: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
                def some(scores: Tensor | None) -> Tensor | None:
                    return scores if scores is None or scores.shape[1] == 1 else scores[:, first:last]

                inside = row_map(content[:, first:last], some(bias), some(visible))
                return torch.cat((content[:, :first], inside, content[:, last:]), dim=1)

            return mapped

        return Contribution(
            query,
            key,
            before.scale,
            before.score_terms + tuple(OnHeads(term, first, last, total) for term in part.score_terms),
            before.value_terms + tuple(ValuesOnHeads(term, first, last) for term in part.value_terms),
            before.row_maps + tuple(map(on_heads, part.row_maps)),
            before.shared,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.to_dict().items())


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


def contribute(parts: Iterable[nn.Module], inputs: EncodingInputs, before: Contribution) -> Contribution:
    """``before`` with the part of each of ``parts`` added, every one being given its own columns of the keys' state."""
    first = 0
    for part in parts:
        width: int = part.state_width  # type: ignore[assignment]
        state = None if inputs.key_state is None else inputs.key_state[..., first : first + width]
        before = part(replace(inputs, key_state=state), before)
        first += width
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


def encoding_class(name: str) -> type[Encoding]:
    """The registered class of a ``rel_pos`` type; ValueError lists the valid ones."""
    known = registered_encodings()
    if name not in known:
        raise ValueError(f"unknown rel_pos type {name!r}; valid types: {', '.join(known)}")
    return known[name]


def parse_part(part: Any) -> tuple[type[Encoding], EncodingOptions]:
    """Class and options that a name or a dict with a ``type`` stands for; ValueError says what is wrong with it."""
    if isinstance(part, str):
        part = {"type": part}
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(
            f"rel_pos={part!r} is not valid: give a dict such as {{'type': NAME, ...}} or a list of dicts; "
            f"valid types: {', '.join(registered_encodings())}"
        )
    cls = encoding_class(part["type"])
    return cls, cls.Options.from_dict(cls.name, {key: value for key, value in part.items() if key != "type"})
