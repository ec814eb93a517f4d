"""Encodings that hold another one, named by one of their options."""

from typing import Any, ClassVar

from torch import Tensor

from .encoding import Encoding, OptionsT, Tokens, parse_part


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

    def config(self) -> dict[str, Any]:
        inner = None if self.inner is None else self.inner.config()
        if inner is not None:
            inner.pop("share_layers")
        return {**super().config(), self.inner_option: inner}
