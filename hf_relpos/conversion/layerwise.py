"""Running a model layer by layer on many texts, and looking at what arrives at the attention of each.

Two models that are to be compared in one layer need not run the layers before it again and again: the hidden states of all texts are kept, and one layer
is run on them with the arguments that the model itself gave it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..encodings.composition import contribute
from ..encodings.encoding import Part
from ..encodings.inputs import Contribution, EncodingInputs
from ..models.model_inputs import Given
from ..models.routing import Site
from .carried import attention_modules


class Observed(Exception):
    """Raised to leave a layer's forward where its attention has been seen."""


class Observer(Part):
    """Stands behind the encodings of an attention module and keeps what they are given and what they make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: EncodingInputs | None = None
        self.total: Contribution | None = None
        self.stop = False

    def forward(self, inputs: EncodingInputs, before: Contribution) -> Contribution:
        self.inputs, self.total = inputs, before
        if self.stop:
            raise Observed
        return before


class _ObservedSite(Site):
    """A site with an observer behind its encodings."""

    def __init__(self, site: Site, observer: Observer):
        self.__dict__.update(site.__dict__)
        self.observer = observer

    def encodings(self, module: nn.Module) -> list[nn.Module]:
        return [*super().encodings(module), self.observer]


def scores_of(total: Contribution, rows: slice = slice(None), *, causal: bool) -> Tensor:
    """Scores of the queries ``rows`` before the softmax, ``[B, H, rows, Tk]``; -inf where a causal model or an encoding hides a key."""
    query, key = total.query, total.key
    if total.row_maps:
        query_rows, block = query, slice(None)
    else:
        query_rows, block = query[:, :, rows], rows
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query_rows @ key.transpose(-1, -2) * total.scale
    bias = None
    for term in total.score_terms:
        tile = term.tile(block)
        bias = tile if bias is None else bias + tile
    count = key.shape[2]
    later = torch.ones(query.shape[2], count, dtype=torch.bool, device=key.device).triu(1)
    for row_map in total.row_maps:
        scores = row_map(scores, bias, ~later[None, None] if causal else None, total.scale)
    if bias is not None:
        scores = scores + bias
    if total.row_maps:
        scores = scores[:, :, rows]
    return scores.masked_fill(later[rows], -torch.inf) if causal else scores


@dataclass
class _Call:
    """What a layer was called with besides its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _every_time(value: Any) -> Any:
    """What the entrance of a model passes to its layers, without what they compute once: parameters change between two runs of a layer."""
    return replace(value, forward=None) if isinstance(value, Given) else value


class LayeredModel:
    """A model of this package, seen as its layers; ``hidden``: the input of the next one for each batch, ``[B, T, E]``.

    Texts have no padding. Raises ValueError when the layers of the model cannot be found.
    """

    def __init__(self, model: Any, batches: Sequence[Tensor]):
        self.base: Any = model.base_model
        self.attentions: list[Any] = list(attention_modules(self.base))
        self.causal: bool = self.attentions[0]._relpos_site.causal
        self.layers = [self._layer_of(module) for module in self.attentions]
        self.inlet: nn.Module | None = None
        self._outlets: list[nn.Module | None] = [None] * len(self.layers)
        self._calls: list[list[_Call]] = []
        self.hidden: list[Tensor] = []
        for batch in batches:
            self._record(batch)

    def _layer_of(self, attention: nn.Module) -> nn.Module:
        paths = {id(module): name for name, module in self.base.named_modules()}
        parts = paths[id(attention)].split(".")
        for end in range(len(parts) - 1, 0, -1):
            if isinstance(self.base.get_submodule(".".join(parts[:end])), nn.ModuleList):
                return self.base.get_submodule(".".join(parts[: end + 1]))
        raise ValueError(f"{type(self.base).__name__} keeps its layers in no list; it cannot be fitted layer by layer")

    def _record(self, ids: Tensor) -> None:
        """One run of the whole model, for the arguments of each layer and to see which module with a bias has the last word before and in each."""
        calls: list[_Call] = []
        last: list[nn.Module | None] = [None]
        hooks = []

        def entering(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if not calls:
                self.hidden.append(hidden)
                self.inlet = last[0]
            others = {name: _every_time(value) for name, value in kwargs.items() if name != "hidden_states"}
            calls.append(_Call(args[1:], others))
            last[0] = None

        def leaving(layer: nn.Module, args: Any, output: Any) -> None:
            self._outlets[len(calls) - 1] = last[0]

        def passing(module: nn.Module, args: Any, output: Any) -> None:
            last[0] = module

        for layer in self.layers:
            hooks.append(layer.register_forward_pre_hook(entering, with_kwargs=True))
            hooks.append(layer.register_forward_hook(leaving))
        for module in self.base.modules():
            if isinstance(getattr(module, "bias", None), nn.Parameter) and not isinstance(module, Part):
                hooks.append(module.register_forward_hook(passing))
        try:
            self.base(input_ids=ids, **({"use_cache": False} if self.causal else {}))
        finally:
            for hook in hooks:
                hook.remove()
        self._calls.append(calls)

    def outlet(self, layer: int) -> nn.Module | None:
        """The module with a bias that is the last to run in a layer, if any; -1: before the first."""
        return self.inlet if layer < 0 else self._outlets[layer]

    def parts(self, layer: int) -> list[nn.Module]:
        """The encodings that act in a layer, in order."""
        attention = self.attentions[layer]
        return attention._relpos_site.encodings(attention)

    def run(self, layer: int, batch: int, hidden: Tensor | None = None) -> Tensor:
        """The output of a layer for one batch."""
        call = self._calls[batch][layer]
        output = self.layers[layer](self.hidden[batch] if hidden is None else hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def observe(
        self, layer: int, batch: int, *, whole: bool = False
    ) -> tuple[EncodingInputs, Contribution, Tensor | None]:
        """What the attention of a layer gets and makes of it for one batch, and the layer's output where ``whole`` asks for it."""
        attention = self.attentions[layer]
        observer, site, output = Observer(), attention._relpos_site, None
        observer.stop = not whole
        attention._relpos_site = _ObservedSite(site, observer)
        try:
            output = self.run(layer, batch)
        except Observed:
            pass
        finally:
            attention._relpos_site = site
        if observer.inputs is None or observer.total is None:
            raise RuntimeError(f"layer {layer} of {type(self.base).__name__} never came by its attention")
        return observer.inputs, observer.total, output


def recompute(parts: Sequence[nn.Module], inputs: EncodingInputs) -> Contribution:
    """What ``parts`` make of ``inputs`` with the parameters that they have now."""
    return contribute(parts, inputs, Contribution(inputs.query, inputs.key, inputs.scale))


Progress = Callable[[str], None]
