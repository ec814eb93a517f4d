"""What a relative positional encoding is: a module that says what position adds to attention.

A method is a subclass that overrides one or two hooks and registers itself. It owns Parameters, never buffers: constants are
computed where they are used, in float32 at least, because loading a checkpoint refills non-persistent buffers with garbage.
"""

from dataclasses import replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from .card import Card
from .inputs import Contribution, EncodingInputs, RowMap, Tokens
from .options import EncodingOptions, Host
from .terms import ContentBias, OnHeads, ScoreTerm, ValuesOnHeads, ValueTerm

OptionsT = TypeVar("OptionsT", bound=EncodingOptions)


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
    def relative(self) -> bool:
        """Whether scores stay as they are when every slot is shifted by the same amount."""
        return True

    @property
    def rescores(self) -> bool:
        """Whether its row map computes some content scores anew, from the queries and keys that those before it leave."""
        return False

    @property
    def maps_keys_alone(self) -> bool:
        """Whether all that it does to keys is to map each by its slot, whatever stands around it, so that a cache may hold mapped keys: no other hook of it
        reads them."""
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
        """What the layers get, from its parameters alone."""
        raise NotImplementedError

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        if self.owner in before.shared:
            raise ValueError(
                f"rel_pos names {self.owner!r} twice; one of them can have parameters shared by all layers"
            )
        tensor = inputs.once((self, inputs.dtype), lambda: self.tensor(inputs))
        return replace(before, shared={**before.shared, self.owner: tensor})


class Encoding(Part, Generic[OptionsT]):
    """Base of all encodings.

    Class attributes of a method: ``name`` (its ``rel_pos`` type), ``Options``, ``card``, ``shared`` (one module for all layers, as
    its authors do it), ``Shared`` (a :class:`SharedPart`, where only some of its parameters are shared), ``reads`` (optional inputs it
    needs), ``by_place`` (its score terms read slots, indices, scale and dtype alone, so that layers which share the module compute them once),
    needs), ``fitting_options`` (options that let it be fitted to another model's attention, where its own leave nothing to fit),
    ``legacy_position_embedding_type`` and ``legacy_parameter_names`` (how checkpoints of transformers 4 spelled it: the value of that
    config key, and their parameter name for each of ours).
    """

    name: ClassVar[str]
    Options: ClassVar[type[EncodingOptions]] = EncodingOptions
    card: ClassVar[Card]
    shared: ClassVar[bool] = False
    Shared: ClassVar[type[SharedPart] | None] = None
    reads: ClassVar[frozenset[str]] = frozenset()
    by_place: ClassVar[bool] = False
    legacy_position_embedding_type: ClassVar[str | None] = None
    legacy_parameter_names: ClassVar[dict[str, str]] = {}
    fitting_options: ClassVar[dict[str, Any]] = {}

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

    def row_map(self, inputs: EncodingInputs, before: Contribution) -> RowMap | None:
        """A function of whole rows of content scores, for what is not a sum: it is given them, the sum of all score terms (or None) and which
        keys each query sees (or None) and the factor of the content, and returns other content scores. Backends then need the dense scores. ``before`` has
        the queries and keys that earlier encodings leave."""
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

    def _score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        if not (self.by_place and self.share_layers):
            return self.score_terms(inputs)
        return inputs.once((self, inputs.scale, inputs.dtype), lambda: self.score_terms(inputs))

    def _contribute(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        scale = self.content_scale(inputs.scale)
        if scale == inputs.scale:
            scale = before.scale
        elif before.scale not in (inputs.scale, scale):
            raise ValueError(
                f"rel_pos combines encodings with different content scales ({before.scale:g} and {scale:g}): keep scaling='host' in all but one"
            )
        query = self.map_query(before.query, inputs)
        key = before.key if inputs.keys_are_mapped else self.map_key(before.key, inputs)
        if before.query.shape[-1] != self.host.head_dim and (query is not before.query or key is not before.key):
            raise ValueError(
                f"the encoding {self.name!r} maps queries and keys of width {self.host.head_dim}, but an encoding before it made them "
                f"{before.query.shape[-1]} wide: the two cannot stand together"
            )
        return Contribution(
            query,
            key,
            scale,
            before.score_terms + self._score_terms(inputs),
            before.value_terms + self.value_terms(inputs),
            before.row_maps + tuple(row_map for row_map in (self.row_map(inputs, before),) if row_map is not None),
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
        # the same tensor where nothing has mapped it yet, which some encodings ask
        query = own.query if before.query is inputs.query else before.query[:, first:last]
        key = own.key if before.key is inputs.key else of_heads(before.key)
        start = Contribution(query, key, before.scale, shared=before.shared)
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
            def mapped(content: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
                def some(scores: Tensor | None) -> Tensor | None:
                    return scores if scores is None or scores.shape[1] == 1 else scores[:, first:last]

                inside = row_map(content[:, first:last], some(bias), some(visible), scale)
                return torch.cat((content[:, :first], inside, content[:, last:]), dim=1)

            return mapped

        return Contribution(
            query,
            key,
            before.scale,
            before.score_terms + tuple(OnHeads(_number(term), first, last, total) for term in part.score_terms),
            before.value_terms + tuple(ValuesOnHeads(term, first, last) for term in part.value_terms),
            before.row_maps + tuple(map(on_heads, part.row_maps)),
            before.shared,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.to_dict().items())


def _number(term: ScoreTerm) -> ScoreTerm:
    """A term that does not ask for the queries of all heads."""
    return term.numbers() if isinstance(term, ContentBias) else term
