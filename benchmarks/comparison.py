"""One call beside another: their times in turns, and their memory in fresh processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Literal, NamedTuple

from call_timing import Effort, interleaved_times
from peak_memory import Alone, OutOfMemory, run_alone
from workload import Workload

from hf_relpos.attention.backends import BackendRefusal


class Spread(NamedTuple):
    """Median and extremes over the rounds."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Comparison:
    """``name`` beside ``reference``, both doing ``work`` over ``length`` tokens.

    ``status``: "refused" by the backend or the encoding, or "failed" for want of memory; ``reason`` says why. ``milliseconds``: of each round.
    ``memory``: bytes at the peak beyond what was held before the call, ``resident``: with it; None where they were not measured.
    """

    name: str
    reference: str
    work: str
    length: int
    dtype: str
    status: Literal["measured", "refused", "failed"] = "measured"
    reason: str | None = None
    milliseconds: tuple[float, ...] = ()
    reference_milliseconds: tuple[float, ...] = ()
    memory: int | None = None
    reference_memory: int | None = None
    resident: int | None = None
    reference_resident: int | None = None

    @property
    def ratio(self) -> Spread | None:
        """Time over the reference's in the same round; None without times of both."""
        if not (self.milliseconds and self.reference_milliseconds):
            return None
        return Spread.of(
            [mine / other for mine, other in zip(self.milliseconds, self.reference_milliseconds, strict=True)]
        )

    @property
    def memory_ratio(self) -> float | None:
        """Memory over the reference's; None without both."""
        return self.memory / self.reference_memory if self.memory is not None and self.reference_memory else None


@cache
def _reference_alone(reference: Workload) -> Alone:
    """A reference is the same for many."""
    return run_alone(reference)


def compare(
    names: tuple[str, str], workload: Workload, reference: Workload, effort: Effort, *, memory: bool
) -> Comparison:
    """The comparison of ``workload`` with ``reference``, called by ``names``; with their memory where ``memory``.

    What a backend or an encoding refuses, and what does not fit in memory, is said in the status.
    """
    row = Comparison(*names, workload.work, workload.length, workload.dtype)
    mine = other = Alone(0.0, None, None)
    try:
        if memory:
            # first: what does not fit there must not be tried in this process
            mine, other = run_alone(workload), _reference_alone(reference)
        calls = (workload.prepare(), reference.prepare())
        times, reference_times = interleaved_times(calls, workload.device, effort)
    except OutOfMemory as error:
        return replace(row, status="failed", reason=str(error))
    except (BackendRefusal, ValueError) as error:
        return replace(row, status="refused", reason=str(error))
    return replace(
        row,
        milliseconds=rounded(times),
        reference_milliseconds=rounded(reference_times),
        memory=mine.memory,
        reference_memory=other.memory,
        resident=mine.resident,
        reference_resident=other.resident,
    )


def compare_alone(names: tuple[str, str], workload: Workload, reference: Workload) -> Comparison:
    """As :func:`compare`, from one call of each in its fresh process; for calls that are too long to be repeated."""
    row = Comparison(*names, workload.work, workload.length, workload.dtype)
    try:
        mine, other = run_alone(workload), _reference_alone(reference)
    except OutOfMemory as error:
        return replace(row, status="failed", reason=str(error))
    except (BackendRefusal, ValueError) as error:
        return replace(row, status="refused", reason=str(error))
    return replace(
        row,
        milliseconds=rounded([mine.milliseconds]),
        reference_milliseconds=rounded([other.milliseconds]),
        memory=mine.memory,
        reference_memory=other.memory,
        resident=mine.resident,
        reference_resident=other.resident,
    )


def rounded(milliseconds: Iterable[float]) -> tuple[float, ...]:
    """Times to a tenth of a microsecond, which no call is short enough to miss."""
    return tuple(round(value, 4) for value in milliseconds)
