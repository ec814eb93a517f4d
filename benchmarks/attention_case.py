"""What is measured: one call of attention, plain or with an encoding, forward alone or with its backward pass."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import hf_relpos


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
    without autograd.
    """

    setting: Setting
    length: int
    causal: bool
    backward: bool
    encoding: str | None = None
    backend: str | None = None

    def build_encoding(self) -> hf_relpos.Encoding[Any] | None:
        """The encoding with its default options, for a host whose longest text has ``length`` tokens; ValueError where it does not fit."""
        if self.encoding is None:
            return None
        module = hf_relpos.build_encoding(
            {"type": self.encoding},
            num_heads=self.setting.heads,
            head_dim=self.setting.head_dim,
            max_position_embeddings=self.length,
            causal=self.causal,
        )
        assert isinstance(module, hf_relpos.Encoding)
        return module.to(self.setting.device, self.setting.torch_dtype)

    def draw(self) -> Tensor:
        """Normal ``[B, H, length, D]`` in the memory layout of transformers' projections, a transposed ``[B, length, H, D]``."""
        setting = self.setting
        shape = (setting.batch, self.length, setting.heads, setting.head_dim)
        return torch.randn(shape, device=setting.device, dtype=setting.torch_dtype).transpose(1, 2)


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


def prepare(case: Case) -> Callable[[], None]:
    """The call of ``case`` with its tensors drawn; it returns nothing, so that outputs and gradients are freed within it.

    The call raises BackendRefusal where the backend refuses.
    """
    torch.manual_seed(0)
    query, key, value = (case.draw().requires_grad_(case.backward) for _ in range(3))
    inputs = [query, key, value]
    module = case.build_encoding()
    attend: Callable[[], Tensor]
    if module is None or case.backend is None:
        attend = partial(scaled_dot_product_attention, query, key, value, is_causal=case.causal)
    else:
        others = optional_inputs(case, module.needs)
        inputs += [*module.parameters(), *(tensor for tensor in others.values() if tensor.requires_grad)]
        attend = partial(
            hf_relpos.attention, query, key, value, module, is_causal=case.causal, backend=case.backend, **others
        )
    if not case.backward:
        return torch.no_grad()(lambda: _discard(attend()))
    output_gradient = case.draw()
    # a parameter may act elsewhere than in attention
    return lambda: _discard(torch.autograd.grad(attend(), inputs, output_gradient, allow_unused=True))


def _discard(result: object) -> None:
    """Drops what a call has computed."""
