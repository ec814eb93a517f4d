"""Which slots the queries and the keys of one attention call occupy.

A slot is the place of a token in the row of keys that attention sees, padding and cached tokens included. The distance of a
query ``i`` and a key ``j`` is ``n = slot(i) - slot(j)``: positive when the key lies in the past. Slot differences are right
under left padding, right padding and packing alike, because the tokens of one text always occupy consecutive slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Slots of ``num_queries`` consecutive queries and ``num_keys`` consecutive keys.

    ``query_start`` and ``key_start`` are the slots of the first query and the first key: integers, or 0-dimensional
    tensors where a static cache keeps its length on the device. Everything is derived from the four numbers without
    reading a tensor's value, so that nothing synchronises and ``torch.compile`` sees no data-dependent branch.
    """

    num_queries: int
    num_keys: int
    query_start: int | Tensor
    key_start: int | Tensor
    device: torch.device

    @classmethod
    def consecutive(
        cls,
        num_queries: int,
        num_keys: int,
        *,
        query_offset: int | Tensor = 0,
        key_offset: int | Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> "Positions":
        """Slots counted from ``query_offset``; keys end with the last query unless ``key_offset`` says otherwise.

        ``key_offset=None`` means ``max(query_offset + num_queries - num_keys, 0)``: a growing cache holds every slot from
        0 on, a static one too (its unwritten tail is masked), a sliding one holds the latest slots only.
        """
        if key_offset is None:
            start = query_offset + num_queries - num_keys
            key_offset = start.clamp(min=0) if isinstance(start, Tensor) else max(start, 0)
        return cls(num_queries, num_keys, query_offset, key_offset, torch.device(device))

    @property
    def query(self) -> Tensor:
        """Slots of the queries, ``[1, Tq]`` int64 (one row: all samples agree)."""
        return (torch.arange(self.num_queries, device=self.device) + self.query_start)[None]

    @property
    def key(self) -> Tensor:
        """Slots of the keys, ``[1, Tk]`` int64."""
        return (torch.arange(self.num_keys, device=self.device) + self.key_start)[None]

    @property
    def num_distances(self) -> int:
        """How many different distances occur: ``Tq + Tk - 1``."""
        return self.num_queries + self.num_keys - 1

    def distances(self) -> Tensor:
        """Every distance that occurs, ascending: ``[Tq + Tk - 1]`` int64."""
        first = self.query_start - self.key_start - (self.num_keys - 1)
        return torch.arange(self.num_distances, device=self.device) + first

    def distance_index(self, rows: slice = slice(None), cols: slice = slice(None)) -> Tensor:
        """Where the distance of each pair stands in :meth:`distances`: ``[rows, cols]`` int64."""
        i = torch.arange(self.num_queries, device=self.device)[rows]
        j = torch.arange(self.num_keys, device=self.device)[cols]
        return i[:, None] - j[None, :] + (self.num_keys - 1)
