"""Encodings that hold another one, named by one of their options."""

from typing import Any, ClassVar

from torch import Tensor

from .encoding import Encoding, OptionsT, SharedPart, Tokens, parse_part


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
