"""A host's attention mask that is not yet ``[B, 1, Tq, Tk]`` numbers.

transformers makes a mask once for a forward and hands it to every layer, as a 4-D tensor. :class:`CompactMask` has the shape of one and holds what it
would be made of: padding, causality, a window, documents. Our attention reads these; whoever else touches it (a host that slices it, a checkpoint that detaches it)
gets the dense tensor, so that nothing is ever lost on the way.
"""

from typing import Any

import torch
from torch import Tensor

from ..attention.call import Mask
from ..encodings.positions import Positions


class CompactMask(Tensor):
    """Visibility ``[B, 1, Tq, Tk]`` bool (True = attend) without storage: of keys ``padding`` ``[B, Tk]`` bool, no later than the query if ``causal``, nearer
    than ``window``, of its document in ``documents`` ``[B, Tk]``; ``offset`` is the slot of the first query minus that of the first key."""

    causal: bool
    window: int | None
    padding: Tensor | None
    documents: Tensor | None
    offset: int | Tensor

    @staticmethod
    def __new__(
        cls,
        batch: int,
        queries: int,
        keys: int,
        *,
        causal: bool,
        window: int | None = None,
        offset: int | Tensor = 0,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> "CompactMask":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, (batch, 1, queries, keys), dtype=torch.bool, device=torch.device(device)
        )
        made.causal, made.window, made.offset = causal, window, offset
        made.padding, made.documents = padding, documents
        return made

    def conditions(self, positions: Positions) -> Mask:
        """The mask of an attention call at ``positions``, whose keys are the first of this mask's."""
        padding, documents = (
            None if ids is None else ids[:, : positions.num_keys] for ids in (self.padding, self.documents)
        )
        queries = None if documents is None else positions.of_queries(documents)
        return Mask(positions, self.causal, self.window, padding, queries, documents)

    def dense(self) -> Tensor:
        """The numbers, ``[B, 1, Tq, Tk]`` bool."""
        batch, _, queries, keys = self.shape
        positions = Positions(queries, keys, self.offset, 0, self.device)
        tile = self.conditions(positions).tile()
        if tile is None:
            return torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=self.device)
        return tile.expand(batch, 1, queries, keys)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        def numbers(value: Any) -> Any:
            return value.dense() if isinstance(value, CompactMask) else value

        args, kwargs = torch.utils._pytree.tree_map(numbers, (args, kwargs or {}))
        return function(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CompactMask({list(self.shape)}, causal={self.causal}, window={self.window}, offset={self.offset})"
