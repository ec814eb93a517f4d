"""What a mask lets be seen, as rectangles of queries and keys: padding at the ends and packed documents become ranges of keys, by sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .call import Mask

ENDLESS = 2**62


@dataclass(frozen=True)
class Region:
    """Samples, queries and keys of which every query sees every key, but for what is causal or out of the window."""

    samples: slice
    rows: slice
    cols: slice


def regions_of(mask: Mask, batch: int) -> list[Region] | None:
    """The regions of a call, one for all samples where they agree; None where padding or documents have holes."""
    rows, cols = slice(0, mask.positions.num_queries), slice(0, mask.positions.num_keys)
    if mask.key_padding is None and mask.key_documents is None:
        return [Region(slice(0, batch), rows, cols)]
    by_sample: list[list[tuple[slice, slice]]] = []
    for b in range(batch):
        inside = cols
        if mask.key_padding is not None:
            shown = mask.key_padding[b].nonzero()[:, 0]
            if not len(shown):
                by_sample.append([])
                continue
            inside = slice(int(shown[0]), int(shown[-1]) + 1)
            if inside.stop - inside.start != len(shown):
                return None
        if mask.key_documents is None or mask.query_documents is None:
            by_sample.append([(rows, inside)])
            continue
        keys, queries = _runs(mask.key_documents[b, inside]), _runs(mask.query_documents[b])
        if any(len({name for name, _, _ in runs}) < len(runs) for runs in (keys, queries)):
            return None
        places = {name: slice(inside.start + first, inside.start + last) for name, first, last in keys}
        by_sample.append([(slice(a, z), places[name]) for name, a, z in queries if name in places])
    if all(parts == by_sample[0] for parts in by_sample):
        return [Region(slice(0, batch), *part) for part in by_sample[0]]
    return [Region(slice(b, b + 1), *part) for b, parts in enumerate(by_sample) for part in parts]


def _runs(ids: Tensor) -> list[tuple[int, int, int]]:
    """Value, start and end of each run of equal numbers."""
    values, counts = torch.unique_consecutive(ids, return_counts=True)
    ends = counts.cumsum(0).tolist()
    return list(zip(values.tolist(), [0, *ends[:-1]], ends, strict=True))


def visible_distances(mask: Mask) -> tuple[int, int]:
    """The smallest and largest distance ``i - j`` that the mask allows."""
    reach = ENDLESS if mask.window is None else mask.window - 1
    return (0 if mask.causal else -reach), reach
