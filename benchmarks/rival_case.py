"""Another way to compute attention with relative positions, given the same tensors as ours."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from attention_case import BACKWARD, FORWARD, Setting, call
from torch import Tensor
from workload import WARM_UP_LENGTH

# from queries, keys and values to what attends and the tensors that learn; ValueError where it cannot be run
Path = Callable[[Tensor, Tensor, Tensor], tuple[Callable[[], Tensor], list[Tensor]]]


@dataclass(frozen=True)
class RivalCase:
    """``path`` over ``length`` tokens, with gradients for all that learns where ``backward``; same tensors as in ``Case``."""

    setting: Setting
    length: int
    backward: bool
    path: Path

    @property
    def device(self) -> str:
        return self.setting.device

    @property
    def dtype(self) -> str:
        return self.setting.dtype

    @property
    def work(self) -> str:
        return BACKWARD if self.backward else FORWARD

    def shortened(self) -> "RivalCase":
        return replace(self, length=min(WARM_UP_LENGTH, self.length))

    def draw(self) -> Tensor:
        setting = self.setting
        shape = (setting.batch, self.length, setting.heads, setting.head_dim)
        return torch.randn(shape, device=setting.device, dtype=setting.torch_dtype).transpose(1, 2)

    def prepare(self) -> Callable[[], None]:
        torch.manual_seed(0)
        query, key, value = (self.draw().requires_grad_(self.backward) for _ in range(3))
        attend, inputs = self.path(query, key, value)
        return call(attend, inputs if self.backward else (), self.draw)
