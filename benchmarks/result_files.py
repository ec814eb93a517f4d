"""What a run leaves behind: one JSON file with every number, and the table made from it."""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from attention_case import Setting
from call_timing import Effort
from comparison import Comparison, Spread


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
class Run:
    """What every file says of the run that made it: ``command``, the UTC time when it had ``finished``, ``duration`` in seconds, and what it ran on."""

    command: str
    finished: str
    duration: float
    machine: Machine
    versions: dict[str, str]

    @property
    def processor(self) -> str:
        """The processor's name as a part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.machine.processor.lower()).strip("-")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Results(Run):
    """A run of ``attention.py`` over one dtype."""

    setting: Setting
    effort: Effort
    rows: tuple[Row, ...]

    @property
    def stem(self) -> str:
        """Name of the files without their ending: kind of device, processor, dtype."""
        return f"{self.setting.device.split(':')[0]}-{self.processor}-{self.setting.dtype}"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """The inverse of :meth:`to_json`; raises KeyError or TypeError where keys are missing or unknown."""
        data = json.loads(text)
        rows = tuple(Row(**_with_tuples(row, "milliseconds", "plain_milliseconds")) for row in data["rows"])
        parts = {"machine": Machine, "setting": Setting, "effort": Effort}
        return cls(**{**data, **{name: part(**data[name]) for name, part in parts.items()}, "rows": rows})


@dataclass(frozen=True)
class ComparisonResults(Run):
    """A run of the command called ``topic``, whose file has the function that renders it; ``variant`` tells its files from those of another run, where flags
    make it another measurement."""

    topic: str
    device: str
    comparisons: tuple[Comparison, ...]
    variant: str = ""

    @property
    def stem(self) -> str:
        """Name of the files without their ending: topic, kind of device, processor, variant."""
        parts = (self.topic, self.device.split(":")[0], self.processor, self.variant)
        return "-".join(part for part in parts if part)

    @classmethod
    def from_json(cls, text: str) -> "ComparisonResults":
        """The inverse of :meth:`to_json`; raises KeyError or TypeError where keys are missing or unknown."""
        data = json.loads(text)
        comparisons = tuple(
            Comparison(**_with_tuples(row, "milliseconds", "reference_milliseconds")) for row in data["comparisons"]
        )
        return cls(**{**data, "machine": Machine(**data["machine"]), "comparisons": comparisons})


def _with_tuples(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return data | {name: tuple(data[name]) for name in names}


def write_atomically(path: Path, text: str) -> None:
    """Write all of ``path`` or none of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
