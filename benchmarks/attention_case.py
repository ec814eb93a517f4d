"""One call of attention, plain or with an encoding: forward alone, with its backward pass, or for one new token over a cache."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from later_layer import later_layer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from workload import WARM_UP_LENGTH

import hf_relpos

FORWARD, BACKWARD, DECODE = "forward", "forward+backward", "decode"


@dataclass(frozen=True)
class Setting:
    """What all calls of a run share: device and dtype by their torch names, batch ``B``, heads ``H`` and head width ``D``."""

    device: str
    dtype: str
    batch: int = 1
    heads: int = 12
    head_dim: int = 64

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class Case:
    """Self-attention over ``length`` tokens; without ``encoding`` and ``backend`` it is PyTorch's own, the measure of the others.

    ``backward``: the forward pass with gradients for queries, keys, values and the encoding's parameters, instead of the forward pass
    without autograd. ``options``: of the encoding, as pairs; defaults otherwise. ``dropout``: of attention weights. ``padding``: for each sample of the batch
    the part of the length that is tokens, padding follows them; empty when all is. ``decode``: the last token alone is the query, the keys
    and values of all tokens are a cache. ``later``: a layer of a model after the first, which finds what layers share.
    """

    setting: Setting
    length: int
    causal: bool
    backward: bool
    encoding: str | None = None
    backend: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    dropout: float = 0.0
    padding: tuple[float, ...] = ()
    decode: bool = False
    later: bool = False

    def __post_init__(self) -> None:
        if self.padding and (self.causal or len(self.padding) != self.setting.batch):
            raise ValueError(
                f"padding={self.padding} is not valid: bidirectional attention, one number for each of B={self.setting.batch}"
            )
        if self.later and (self.padding or self.dropout or self.decode):
            raise ValueError("later=True is not valid with padding, dropout or decode")
        if self.decode and (self.backward or not self.causal):
            raise ValueError("decode=True is not valid with backward=True or causal=False")

    @property
    def device(self) -> str:
        return self.setting.device

    @property
    def dtype(self) -> str:
        return self.setting.dtype

    @property
    def work(self) -> str:
        return DECODE if self.decode else BACKWARD if self.backward else FORWARD

    @property
    def plain(self) -> "Case":
        """PyTorch's own attention of the same kind."""
        return replace(self, encoding=None, backend=None, options=())

    def shortened(self) -> "Case":
        return replace(self, length=min(WARM_UP_LENGTH, self.length))

    def build_encoding(self) -> hf_relpos.Encoding[Any] | None:
        """The encoding, for a host whose longest text has ``length`` tokens; ValueError where it does not fit."""
        if self.encoding is None:
            return None
        module = hf_relpos.build_encoding(
            {"type": self.encoding, **dict(self.options)},
            num_heads=self.setting.heads,
            head_dim=self.setting.head_dim,
            max_position_embeddings=self.length,
            causal=self.causal,
        )
        assert isinstance(module, hf_relpos.Encoding)
        return module.to(self.setting.device, self.setting.torch_dtype)

    def draw(self, tokens: int | None = None) -> Tensor:
        """Normal ``[B, H, tokens, D]`` in the memory layout of transformers' projections, a transposed ``[B, tokens, H, D]``; ``length`` tokens unless given."""
        setting = self.setting
        shape = (setting.batch, self.length if tokens is None else tokens, setting.heads, setting.head_dim)
        return torch.randn(shape, device=setting.device, dtype=setting.torch_dtype).transpose(1, 2)

    def key_mask(self) -> Tensor | None:
        """``[B, length]``, true where a key is a token; None without padding."""
        if not self.padding:
            return None
        tokens = torch.tensor([max(1, round(part * self.length)) for part in self.padding], device=self.device)
        return torch.arange(self.length, device=self.device) < tokens[:, None]

    def prepare(self) -> Callable[[], None]:
        """The call with its tensors drawn. It raises BackendRefusal where the backend refuses."""
        torch.manual_seed(0)
        query, key, value = self.draw(1 if self.decode else None), self.draw(), self.draw()
        if self.decode:
            # a cache is kept by head
            key, value = key.contiguous(), value.contiguous()
        inputs = [tensor.requires_grad_(self.backward) for tensor in (query, key, value)]
        module, mask = self.build_encoding(), self.key_mask()
        attend: Callable[[], Tensor]
        if module is None or self.backend is None:
            attend = partial(
                scaled_dot_product_attention,
                query,
                key,
                value,
                attn_mask=None if mask is None else mask[:, None, None],
                dropout_p=self.dropout,
                is_causal=self.causal and not self.decode,
            )
        elif self.later:
            attend, made = later_layer(query, key, value, module, causal=self.causal, backend=self.backend)
            inputs += [*module.parameters(), *made]
        else:
            others = optional_inputs(self, module.needs)
            inputs += [*module.parameters(), *(tensor for tensor in others.values() if tensor.requires_grad)]
            attend = partial(
                hf_relpos.attention,
                query,
                key,
                value,
                module,
                attention_mask=None if mask is None else mask.long(),
                is_causal=self.causal,
                query_offset=self.length - 1 if self.decode else 0,
                dropout_p=self.dropout,
                backend=self.backend,
                **others,
            )
        return call(attend, inputs if self.backward else (), self.draw)


def call(attend: Callable[[], Tensor], inputs: Collection[Tensor], draw: Callable[[], Tensor]) -> Callable[[], None]:
    """``attend`` without autograd, or with the gradients of ``inputs`` where there are some, for an output gradient from ``draw``."""
    if not inputs:
        return torch.no_grad()(lambda: _discard(attend()))
    wanted, output_gradient = list(inputs), draw()
    # a parameter may act elsewhere than in attention
    return lambda: _discard(torch.autograd.grad(attend(), wanted, output_gradient, allow_unused=True))


def optional_inputs(case: Case, needs: Collection[str]) -> dict[str, Any]:
    """Those arguments of ``hf_relpos.attention`` that an encoding reads only if it names them: hidden states, segment and relation ids."""
    setting = case.setting
    batch, length, width = setting.batch, case.length, setting.heads * setting.head_dim
    tensors = {}
    if "hidden_states" in needs:
        tensors["hidden_states"] = torch.randn(
            batch, length, width, device=setting.device, dtype=setting.torch_dtype, requires_grad=case.backward
        )
    if "segment_ids" in needs:
        tensors["segment_ids"] = torch.zeros(batch, length, dtype=torch.int64, device=setting.device)
    if "relation_ids" in needs:
        tensors["relation_ids"] = torch.zeros(batch, length, length, dtype=torch.int64, device=setting.device)
    return tensors


def _discard(result: object) -> None:
    """Drops what a call has computed."""
