"""What the commands of this folder share: their common flags, and the record of a run."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from comparison import Comparison
from machine import describe_machine, versions
from result_files import ComparisonResults

RESULTS = Path(__file__).parent / "results"
CLOCKS = ["wall", "cpu"]
DTYPES = ["float32", "bfloat16"]


def positive(text: str) -> int:
    """A flag's value that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive integer")
    return value


def command_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help shows the defaults and which takes no abbreviations."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--output``."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder; files of the same name are replaced")


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """``--heads``, ``--head-dim`` and ``--rounds``."""
    parser.add_argument("--heads", type=positive, default=12, help="H")
    parser.add_argument("--head-dim", type=positive, default=64, help="D")
    parser.add_argument(
        "--rounds", type=positive, default=5, help="rounds of a case at least; fewer beyond 2048 tokens"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default=CLOCKS[0], help="cpu: on a busy machine, with OMP_WAIT_POLICY=passive"
    )


def find_device(name: str) -> str:
    """The device that ``--device`` means; ends the program where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no CUDA device")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def variant(dtype: str, batch: int) -> str:
    """What sets a run apart from one in float32 with one text: its dtype, its batch."""
    return "-".join([dtype] * (dtype != "float32") + [f"batch-{batch}"] * (batch != 1))


def record(
    topic: str, given: Sequence[str], device: str, measure: Callable[[], Iterable[Comparison]], variant: str = ""
) -> ComparisonResults:
    """What ``measure`` gives, with where it comes from: the command ``topic`` with the flags ``given``, and the machine as it was before."""
    machine, begin = describe_machine(device), time.monotonic()
    comparisons = tuple(measure())
    return ComparisonResults(
        command=shlex.join(["python", f"benchmarks/{topic}.py", *given]),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        duration=round(time.monotonic() - begin, 1),
        machine=machine,
        versions=versions(),
        topic=topic,
        device=device,
        comparisons=comparisons,
        variant=variant,
    )
