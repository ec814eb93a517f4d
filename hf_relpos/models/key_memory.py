"""What encodings remember of each key, carried through the host's cache as a few more columns of the keys; and keys that enter a cache already mapped.

A host writes keys to its cache before attention sees them, and knows nothing of gates or segments. :class:`KeyMemory` stands in for the cache
during one attention module's forward: its ``update`` appends the columns, lets the real cache store and return the wider keys, and takes the
columns off again. So they follow whatever the cache does with keys: growing, sliding, static buffers, reordering by beam search.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encodings.inputs import EncodingInputs
from ..encodings.positions import Positions


class KeyMemory:
    """A cache (or None) as one attention module sees it, with the ``state`` ``[B, T, S]`` of the module's keys.

    ``state`` first holds what belongs to the new keys; after ``update``, what belongs to all keys that the cache returned.
    """

    def __init__(self, cache: Any, state: Tensor):
        self.cache = cache
        self.state = state

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the cache's own ``update``."""
        width = keys.shape[-1]
        wide = torch.cat((keys, _as_columns(self.state, keys.shape[1]).to(keys.dtype)), dim=-1)
        stored, values = self.cache.update(wide, values, *args, **kwargs)
        self.state = remembered(stored, width, self.state.shape[-1])
        return stored[..., :width], values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


class MappedKeys:
    """A cache as an attention module sees it whose ``encodings`` map each key by its slot alone (``maps_keys_alone``): keys enter it mapped, once, instead
    of being mapped all again for every token that is decoded. New keys stand in the slots from ``first`` on."""

    def __init__(self, cache: Any, encodings: Sequence[nn.Module], first: int | Tensor):
        self.cache = cache
        self.encodings = encodings
        self.first = first

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the cache's own ``update``."""
        length = keys.shape[2]
        positions = Positions.consecutive(
            length, length, query_offset=self.first, key_offset=self.first, device=keys.device
        )
        # the scale has no part in what is done to keys
        inputs = EncodingInputs(keys, keys, positions, scale=1.0)
        for encoding in self.encodings:
            keys = encoding.map_key(keys, inputs)  # type: ignore[operator]
        stored: tuple[Tensor, Tensor] = self.cache.update(keys, values, *args, **kwargs)
        return stored

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def _as_columns(state: Tensor, heads: int) -> Tensor:
    """``[B, T, S]`` spread over the key heads: ``[B, G, T, ceil(S / G)]``, filled up with zeros."""
    width = -(-state.shape[-1] // heads)
    full = torch.nn.functional.pad(state, (0, heads * width - state.shape[-1]))
    return full.unflatten(-1, (heads, width)).transpose(1, 2)


def remembered(stored: Tensor, width: int, count: int) -> Tensor:
    """The state ``[B, T, count]`` in stored keys ``[B, G, T, width + columns]``."""
    return stored[..., width:].transpose(1, 2).flatten(-2)[..., :count]
