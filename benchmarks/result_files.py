"""What a run leaves behind: one JSON file with every number, and the table made from it."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from attention_case import Setting
from call_timing import Effort


class Spread(NamedTuple):
    """Median and extremes over the rounds."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One encoding on one backend at one length.

    ``rel_pos``: the options, all of them; None where the encoding does not fit. ``status``: "refused" by the backend or the encoding, or
    "failed" for want of memory; ``reason`` says why. ``milliseconds`` and ``plain_milliseconds``: of each round, for this call and for plain
    SDPA beside it. ``memory`` and ``plain_memory``: bytes at the peak, None where the system cannot tell.
    """

    encoding: str
    backend: str
    length: int
    causal: bool
    backward: bool
    rel_pos: dict[str, Any] | list[dict[str, Any]] | None
    status: Literal["measured", "refused", "failed"]
    reason: str | None = None
    milliseconds: tuple[float, ...] = ()
    plain_milliseconds: tuple[float, ...] = ()
    memory: int | None = None
    plain_memory: int | None = None

    @property
    def ratio(self) -> Spread:
        """Time of this call over the time of plain SDPA in the same round."""
        return Spread.of([mine / plain for mine, plain in zip(self.milliseconds, self.plain_milliseconds, strict=True)])


@dataclass(frozen=True)
class Machine:
    """Where it ran. ``processor``: the CPU, or the GPU when that is the device; ``memory``: its bytes. ``load``: the system's average load over
    the minute before the run, None where the system does not tell; far from 0 it means that the machine was busy with something else."""

    processor: str
    cores: int
    threads: int
    memory: int
    system: str
    load: float | None


@dataclass(frozen=True)
class Results:
    """A run: ``command`` that made it, ``finished`` as a UTC time, ``duration`` in seconds, what it ran on, and its rows."""

    command: str
    finished: str
    duration: float
    machine: Machine
    versions: dict[str, str]
    setting: Setting
    effort: Effort
    rows: tuple[Row, ...]

    @property
    def stem(self) -> str:
        """Name of the files without their ending: kind of device, processor, dtype."""
        device = self.setting.device.split(":")[0]
        slug = re.sub(r"[^a-z0-9]+", "-", self.machine.processor.lower()).strip("-")
        return f"{device}-{slug}-{self.setting.dtype}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """The inverse of :meth:`to_json`; raises KeyError or TypeError where keys are missing or unknown."""
        data = json.loads(text)
        rows: list[dict[str, Any]] = data["rows"]
        for row in rows:
            row |= {name: tuple(row[name]) for name in ("milliseconds", "plain_milliseconds")}
        parts = {"machine": Machine, "setting": Setting, "effort": Effort}
        return cls(
            **{
                **data,
                **{name: part(**data[name]) for name, part in parts.items()},
                "rows": tuple(Row(**row) for row in rows),
            }
        )


def write_atomically(path: Path, text: str) -> None:
    """Write all of ``path`` or none of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
