"""Which slots the queries and the keys of one attention call occupy.

A slot is the place of a token in the row of keys that attention sees, padding and cached tokens included. The distance of a
query ``i`` and a key ``j`` is ``n = slot(i) - slot(j)``: positive when the key lies in the past. Slot differences are right
under left padding, right padding and packing alike, because the tokens of one text always occupy consecutive slots.

Slots may also be given anew (:meth:`Positions.reassigned`), ascending but with gaps; distances then come from the new ones.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Slots of ``num_queries`` consecutive queries and ``num_keys`` consecutive keys.

    ``query_start`` and ``key_start`` are the slots of the first query and the first key: integers, or 0-dimensional
    tensors where a static cache keeps its length on the device. Slots given anew stand in ``query_slots`` ``[Tq]`` and ``key_slots``
    ``[Tk]``, all below ``limit``; else these are None. Everything is derived from the fields without reading a tensor's value, so that nothing
    synchronises and ``torch.compile`` sees no data-dependent branch.
    """

    num_queries: int
    num_keys: int
    query_start: int | Tensor
    key_start: int | Tensor
    device: torch.device
    query_slots: Tensor | None = None
    key_slots: Tensor | None = None
    limit: int | None = None

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

    def reassigned(self, slots: Tensor, limit: int) -> "Positions":
        """The same tokens with the slot of each key taken from ``slots`` ``[Tk]``, ascending within ``0 .. limit - 1``; queries stand among the keys."""
        return replace(self, query_slots=self.of_queries(slots[None])[0], key_slots=slots, limit=limit)

    @property
    def has_gaps(self) -> bool:
        """Whether slots were reassigned and need not follow each other."""
        return self.limit is not None

    @property
    def identity(self) -> tuple[int, int, int, int, torch.device] | None:
        """What tells these slots from others, without a look at a tensor; None where that is not enough."""
        if self.has_gaps or not isinstance(self.query_start, int) or not isinstance(self.key_start, int):
            return None
        return (self.num_queries, self.num_keys, self.query_start, self.key_start, self.device)

    def of_queries(self, per_key: Tensor) -> Tensor:
        """The rows ``[B, Tq, ...]`` that belong to the queries in what there is for each key ``[B, Tk, ...]``: queries stand among the keys."""
        first = self.query_start - self.key_start
        if isinstance(first, int):
            if first < 0 or first + self.num_queries > self.num_keys:
                raise ValueError(
                    f"queries at slots {self.query_start} to {self.query_start + self.num_queries - 1} must stand among the keys, but "
                    f"there are {self.num_keys} of these, whose first slot is {self.key_start}"
                )
            return per_key[:, first : first + self.num_queries]
        return per_key.index_select(1, torch.arange(self.num_queries, device=self.device) + first)

    @property
    def query(self) -> Tensor:
        """Slots of the queries, ``[1, Tq]`` int64 (one row: all samples agree)."""
        if self.query_slots is not None:
            return self.query_slots[None]
        return (torch.arange(self.num_queries, device=self.device) + self.query_start)[None]

    @property
    def key(self) -> Tensor:
        """Slots of the keys, ``[1, Tk]`` int64."""
        if self.key_slots is not None:
            return self.key_slots[None]
        return (torch.arange(self.num_keys, device=self.device) + self.key_start)[None]

    @property
    def num_distances(self) -> int:
        """How many distances :meth:`distances` lists: ``Tq + Tk - 1``, or all that reassigned slots could have."""
        return self.num_queries + self.num_keys - 1 if self.limit is None else 2 * self.limit - 1

    def distances(self) -> Tensor:
        """Every distance that occurs, ascending without gaps: ``[num_distances]`` int64."""
        if self.limit is not None:
            return torch.arange(1 - self.limit, self.limit, device=self.device)
        first = self.query_start - self.key_start - (self.num_keys - 1)
        return torch.arange(self.num_distances, device=self.device) + first

    def distance_index(self, rows: slice = slice(None), cols: slice = slice(None)) -> Tensor:
        """Where the distance of each pair stands in :meth:`distances`: ``[rows, cols]`` int64."""
        i = torch.arange(self.num_queries, device=self.device)[rows]
        j = torch.arange(self.num_keys, device=self.device)[cols]
        return self.distance_index_at(i[:, None], j[None, :])

    def distance_index_at(self, i: Tensor, j: Tensor) -> Tensor:
        """The same for query number ``i`` and key number ``j``, which broadcast against each other."""
        if self.limit is not None:
            return self.query[0, i] - self.key[0, j] + (self.limit - 1)
        return i - j + (self.num_keys - 1)
