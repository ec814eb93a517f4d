"""Our attention as a model's layers after the first have it: what layers share is there before the call."""

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_relpos.attention.attend import attend
from hf_relpos.attention.call import Mask
from hf_relpos.encodings.inputs import OncePerForward
from hf_relpos.encodings.positions import Positions


class MadeBefore(OncePerForward):
    """Holds what layers share from call to call; ``leaves``: what of it learns, with gradients that end there, as those of a host's dense bias do."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[Tensor] = []

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = self._cut(compute())
        return self._known[key]

    def _cut(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.requires_grad:
            self.leaves.append(value.detach().requires_grad_())
            return self.leaves[-1]
        if isinstance(value, tuple):
            return tuple(map(self._cut, value))
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: self._cut(getattr(value, field.name)) for field in fields(value)})
        return value


def later_layer(
    query: Tensor, key: Tensor, value: Tensor, module: nn.Module, *, causal: bool, backend: str
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """What attends, giving ``[B, H, L, D]``, and what it shares with other layers that learns."""
    positions = Positions.consecutive(query.shape[2], key.shape[2], device=query.device)
    made, scale = MadeBefore(), query.shape[-1] ** -0.5
    run = partial(
        attend, query, key, value, (module,), Mask(positions, causal), scale=scale, backend=backend, forward=made
    )
    with torch.set_grad_enabled(query.requires_grad):
        run()
    return lambda: run()[0].transpose(1, 2), made.leaves
