"""Encodings that hold another one, named by one of their options."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from .encoding import Encoding, OptionsT, SharedPart
from .inputs import Tokens
from .registry import parse_part


class NestedEncoding(Encoding[OptionsT]):
    """An encoding around another: ``inner``, or None where the option called ``inner_option`` is null.

    The inner one belongs to this module, and so is shared by layers exactly when this one is.
    """

    inner_option: ClassVar[str]
    inner: Encoding | None

    def create_parameters(self) -> None:
        value = getattr(self.options, self.inner_option)
        self.inner = None
        if value is not None:
            cls, options = parse_part(value)
            self.inner = cls(options, self.host)
            if self.inner.adds_to_input and not self.share_layers and any(True for _ in self.inner.parameters()):
                raise ValueError(
                    f"rel_pos type {self.name!r}: the encoding {cls.name!r} inside it adds learned vectors to the model's input, so "
                    "one module must serve all layers: set share_layers to true"
                )
            wanted = options.share_layers
            if wanted is not None and wanted != self.share_layers:
                raise ValueError(
                    f"rel_pos type {self.name!r}: share_layers={wanted!r} of the encoding inside is not valid: it belongs to this one, whose "
                    f"share_layers is {self.share_layers!r}"
                )

    @property
    def needs(self) -> frozenset[str]:
        return self.reads if self.inner is None else self.reads | self.inner.needs

    @property
    def state_width(self) -> int:
        return 0 if self.inner is None else self.inner.state_width

    def key_state(self, tokens: Tokens) -> Tensor | None:
        return None if self.inner is None else self.inner.key_state(tokens)

    @property
    def relative(self) -> bool:
        return super().relative and (self.inner is None or self.inner.relative)

    @property
    def rescores(self) -> bool:
        return self.inner is not None and self.inner.rescores

    @property
    def random_absolute(self) -> Literal["offset", "sorted"] | None:
        return None if self.inner is None else self.inner.random_absolute

    @property
    def changes_with_length(self) -> bool:
        return self.inner is not None and self.inner.changes_with_length

    @property
    def max_length(self) -> int | None:
        return None if self.inner is None else self.inner.max_length

    @property
    def adds_to_input(self) -> bool:
        return self.inner is not None and self.inner.adds_to_input

    def input_term(self, index: Tensor, width: int, tokens: Tokens, past: Tensor | None) -> Tensor:
        owner = super() if self.inner is None else self.inner
        return owner.input_term(index, width, tokens, past)

    def content_scale(self, scale: float) -> float:
        return scale if self.inner is None else self.inner.content_scale(scale)

    def take_shared_part(self) -> SharedPart | None:
        return None if self.inner is None else self.inner.take_shared_part()

    def config(self) -> dict[str, Any]:
        inner = None if self.inner is None else self.inner.config()
        if inner is not None:
            inner.pop("share_layers")
        return {**super().config(), self.inner_option: inner}
