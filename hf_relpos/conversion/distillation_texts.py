"""What a distillation reads: texts of mixed lengths from all of a text but what is held out, and the texts held out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .texts import FittingTexts, Text, token_chunks

# ids among which the texts of a step are drawn, before the next ones are read
STRETCH = 131_072
# ids held out for texts of each length
HELD_OUT = 4096
# how many times the longest text a step beyond it reads
FACTORS = (2, 4)
# the longest texts of a step, divided
PARTS = (1, 2, 4, 8)
SHORTEST = 8


@dataclass(frozen=True)
class StepTexts:
    """Running ids without special tokens, ``ids`` ``[R, factor * W]``: the student reads each row whole, the teacher each of its ``factor`` parts by itself,
    both with the tokens ``before`` and ``after`` that their tokenizer adds."""

    ids: Tensor
    factor: int
    before: list[int]
    after: list[int]

    def take(self, rows: slice) -> "StepTexts":
        """Some of the rows."""
        return StepTexts(self.ids[rows], self.factor, self.before, self.after)

    def whole(self) -> Tensor:
        """What the student reads, ``[R, T]``."""
        return self._framed(self.ids)

    def parts(self) -> Tensor:
        """What the teacher reads, ``[R * factor, T']``."""
        return self._framed(self.ids.reshape(len(self.ids) * self.factor, -1))

    def _framed(self, ids: Tensor) -> Tensor:
        ends = [torch.tensor(some, dtype=torch.long).expand(len(ids), -1) for some in (self.before, self.after)]
        return torch.cat((ends[0], ids, ends[1]), dim=1)


@dataclass(frozen=True)
class DistillationTexts:
    """All of ``source`` but what ``fitting`` holds out; ``length``: tokens of the longest texts that the teacher reads.

    Raises ValueError when no text of any length is held out.
    """

    source: Text
    tokenizer: Any
    fitting: FittingTexts
    length: int
    before: list[int] = field(init=False)
    after: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "before", self.fitting.long.before)
        object.__setattr__(self, "after", self.fitting.long.after)
        if not self.held_out():
            raise ValueError(
                f"the fit left {len(self.held_out_ids())} tokens to compare on, too few for a text of {self.lengths[-3:][0]}; give more text, or a greater "
                "fit_length"
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of the texts of a step, special ones counted, ascending."""
        least = max(SHORTEST, len(self.before) + len(self.after) + 2)
        return sorted({max(least, self.length // part) for part in PARTS})

    def _bodies(self, batches: list[Tensor]) -> list[int]:
        first, last = len(self.before), len(self.after)
        return [one for ids in batches for row in ids.tolist() for one in row[first : len(row) - last]]

    def held_out_ids(self) -> list[int]:
        """Ids that no step reads."""
        return self._bodies(self.fitting.unseen) + self.fitting.long.ids

    def held_out(self) -> list[StepTexts]:
        """Texts to compare on: of the three greatest lengths, and of twice the longest as far as there is text."""
        ids, found = self.held_out_ids(), []
        for length, factor in [*((length, 1) for length in self.lengths[-3:]), (self.length, 2)]:
            width = self._width(length) * factor
            rows = min(len(ids), HELD_OUT) // width
            if rows:
                table = torch.tensor(ids[: rows * width]).view(rows, width)
                found.append(StepTexts(table, factor, self.before, self.after))
        return found

    def _width(self, length: int) -> int:
        return length - len(self.before) - len(self.after)

    def _stretches(self) -> Iterator[list[int]]:
        """Stretches of the text, over and over: what was fitted on, then what comes after the ids held out."""
        fitted = self._bodies(self.fitting.fit)
        skipped = len(fitted) + len(self.held_out_ids())
        least = max(FACTORS) * self.length
        stretch: list[int] = []
        while True:
            stretch.extend(fitted)
            place = 0
            for chunk in token_chunks(self.source, self.tokenizer):
                stretch.extend(chunk[max(0, skipped - place) :])
                place += len(chunk)
                while len(stretch) >= STRETCH + least:
                    yield stretch[:STRETCH]
                    del stretch[:STRETCH]
            if len(stretch) >= least:
                yield stretch
                stretch = []

    def steps(self, tokens: int, beyond: float, seed: int, first: int = 0) -> Iterator[list[StepTexts]]:
        """Texts of about ``tokens`` tokens for each step from the ``first`` on, a function of ``seed`` and the step, from places drawn anew: an even share for each
        length, since what one length wants of a model that cannot see it moves the others, and in a share ``beyond`` of the steps another for a longer text
        than the teacher reads."""
        step = 0
        for stretch in self._stretches():
            held = torch.tensor(stretch)
            for _ in range(max(1, len(stretch) // tokens)):
                if step >= first:
                    yield self._draw(held, tokens, beyond, torch.Generator().manual_seed(seed * 1_000_003 + step))
                step += 1

    def _draw(self, stretch: Tensor, tokens: int, beyond: float, generator: torch.Generator) -> list[StepTexts]:
        kinds = [(length, 1) for length in self.lengths]
        if float(torch.rand((), generator=generator)) < beyond:
            kinds.append((self.length, FACTORS[int(torch.randint(len(FACTORS), (), generator=generator))]))
        found = []
        for length, factor in kinds:
            width = self._width(length) * factor
            rows = max(1, tokens // len(self.lengths) // (factor * length))
            starts = torch.randint(len(stretch) - width + 1, (rows, 1), generator=generator)
            found.append(StepTexts(stretch[starts + torch.arange(width)], factor, self.before, self.after))
        return found
