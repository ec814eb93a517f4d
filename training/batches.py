"""Which rows make which step: a pure function of seed and epoch, by which a resumed run finds its place.

Training data are a sequence of rows in memory, or a :class:`Stream` of rows that need not fit there. A row is a dict that has ``input_ids``.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
# a row as it is in one epoch, such as with tokens masked, and what it may draw from
Vary = Callable[[Row, np.random.Generator], Row]


@dataclass(frozen=True)
class Stream:
    """Rows that are read anew in each epoch, always the same ones in the same order.

    ``read()`` gives them; ``identity`` is a text that is another one for other rows. They are shuffled within stretches of ``shuffle_buffer``
    rows, which is all that is held in memory.
    """

    read: Callable[[], Iterator[Row]]
    identity: str
    shuffle_buffer: int = 10_000


def epoch_batches(
    rows: int, batch_size: int, *, seed: int, epoch: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """Batches of row numbers, each row in one of them.

    With ``lengths``, rows are shuffled, sorted by length within stretches of 50 batches, cut, and the batches shuffled.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(rows, generator=generator).tolist()
    if lengths is not None:
        stretch = 50 * batch_size
        pieces = [order[start : start + stretch] for start in range(0, len(order), stretch)]
        order = [row for piece in pieces for row in sorted(piece, key=lengths.__getitem__, reverse=True)]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if lengths is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


def row_lengths(rows: Iterable[Row]) -> list[int]:
    """The number of tokens of each row."""
    return [len(row["input_ids"]) for row in rows]


def batches_of(
    rows: Sequence[Row] | Stream,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | None,
    grouped: bool,
    vary: Vary | None = None,
) -> Iterator[list[Row]]:
    """The batches of an epoch, read as they are asked for. ``lengths`` are those of rows in memory when they are ``grouped`` by length.

    ``vary`` is given each row with random numbers that follow from seed, epoch and the row's place alone, whatever was drawn before.
    """
    found = _plain_batches(rows, batch_size, seed=seed, epoch=epoch, lengths=lengths, grouped=grouped)
    if vary is None:
        yield from found
        return
    for number, batch in enumerate(found):
        yield [vary(row, np.random.default_rng((seed, epoch, number, place))) for place, row in enumerate(batch)]


def _plain_batches(
    rows: Sequence[Row] | Stream,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    lengths: Sequence[int] | None,
    grouped: bool,
) -> Iterator[list[Row]]:
    if not isinstance(rows, Stream):
        for chosen in epoch_batches(len(rows), batch_size, seed=seed, epoch=epoch, lengths=lengths):
            yield [rows[row] for row in chosen]
        return
    source = rows.read()
    # whole batches, so that only the last of an epoch may be short
    size = max(rows.shuffle_buffer // batch_size, 1) * batch_size
    for number in itertools.count():
        stretch = list(itertools.islice(source, size))
        if not stretch:
            return
        order = epoch_batches(
            len(stretch),
            batch_size,
            # each stretch of each epoch has an order of its own
            seed=seed + 7919 * number,
            epoch=epoch,
            lengths=row_lengths(stretch) if grouped else None,
        )
        for chosen in order:
            yield [stretch[row] for row in chosen]


def steps_of(batches: Iterable[list[Row]], batches_per_step: int, skip: int) -> Iterator[list[list[Row]]]:
    """The batches of each step, after the first ``skip`` steps."""
    batches = iter(batches)
    for _ in itertools.islice(batches, skip * batches_per_step):
        pass
    while step := list(itertools.islice(batches, batches_per_step)):
        yield step
