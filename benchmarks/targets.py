"""Measures what is asked of the fast ways of computing: time and memory beside plain SDPA, each with its target, met or not.

    python benchmarks/targets.py
    python benchmarks/targets.py --rows distance-t5 full-transformer_xl --lengths 2048 --output outputs
    python benchmarks/targets.py --profile clipped-shaw --lengths 2048

The targets are in target_rows.py; README.md beside this file says how to read the results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from attention_case import BACKWARD, Setting
from call_profile import profile
from call_timing import Effort, rounds_at
from command_line import add_common_flags, add_shape_flags, command_parser, find_device, positive, record
from comparison import Comparison, compare
from result_files import ComparisonResults
from result_table import MISSING, comparison_head, grid, not_measured, spread
from storage import store
from target_rows import LENGTHS, LINEAR_GROWTH, ROWS, Limits
from tqdm import tqdm

import hf_relpos

PLAIN = "plain SDPA"


def measure(arguments: argparse.Namespace, device: str) -> Iterator[Comparison]:
    """A comparison for every row, dtype, length and pass."""
    plan = [
        (row, dtype, length, backward)
        for row in map(ROWS.__getitem__, arguments.rows)
        for dtype in row.limits
        for length in row.lengths or arguments.lengths
        for backward in row.passes
    ]
    for row, dtype, length, backward in tqdm(plan, unit="case", mininterval=1):
        setting = Setting(device, dtype, row.batch, arguments.heads, arguments.head_dim)
        case = row.case(setting, length, backward, arguments.backend)
        effort = Effort(
            rounds=rounds_at(arguments.rounds, length), max_rounds=101 if row.decode else 21, clock=arguments.clock
        )
        yield compare((row.name, PLAIN), case, case.plain, effort, memory=backward)


def render(results: ComparisonResults) -> str:
    """The table of targets, and below it what could not be measured."""
    found = {(row.name, row.dtype, row.length, row.work == BACKWARD): row for row in results.comparisons}
    lines = []
    for name, dtype, length in dict.fromkeys((name, dtype, length) for name, dtype, length, _ in found):
        forward, both = (found.get((name, dtype, length, backward)) for backward in (False, True))
        before = found.get((name, dtype, length // 2, True))
        lines.append(_line(name, dtype, length, forward, both, before))
    what = (
        f"Ratios to plain SDPA of the same direction, dtype, padding and dropout: times as median (lowest–highest), a decoded token in the column "
        f"of forward; memory at the peak of forward and backward, and in parentheses its growth from half the length, which may be {LINEAR_GROWTH}. "
        f"Medians are judged to two decimals."
    )
    header = ["row", "family", "L", "forward", "target", "forward+backward", "target", "memory", "target", "met"]
    parts = (
        comparison_head(results, "Targets of attention", what),
        grid(header, lines),
        not_measured(results.comparisons),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(
    name: str, dtype: str, length: int, forward: Comparison | None, both: Comparison | None, before: Comparison | None
) -> list[str]:
    row = ROWS[name]
    limits = row.limits[dtype]
    growth = None
    if both is not None and before is not None and both.memory and before.memory:
        growth = both.memory / before.memory
    memory = MISSING
    if both is not None and both.memory_ratio is not None:
        memory = f"{both.memory_ratio:.2f}" + ("" if growth is None else f" ({growth:.2f})")
    return [
        f"`{name}`" + (f" {dtype}" if dtype != "float32" else ""),
        row.family,
        str(length),
        _time(forward),
        _limit(limits.forward),
        _time(both),
        _limit(limits.backward),
        memory,
        _limit(limits.memory) + (", linear" if limits.memory is not None else ""),
        _verdict(limits, forward, both, growth),
    ]


def _time(row: Comparison | None) -> str:
    return MISSING if row is None else spread(row.ratio) if row.status == "measured" else row.status


def _limit(limit: float | None) -> str:
    return MISSING if limit is None else f"{limit:.2f}"


def _verdict(limits: Limits, forward: Comparison | None, both: Comparison | None, growth: float | None) -> str:
    """ "yes", or "no" with what is above its target or was not measured."""
    missed = []
    for label, limit, row in (("forward", limits.forward, forward), ("backward", limits.backward, both)):
        if limit is not None and (row is None or row.ratio is None or round(row.ratio.median, 2) > limit):
            missed.append(label)
    if limits.memory is not None:
        ratio = None if both is None else both.memory_ratio
        if ratio is None or round(ratio, 2) > round(limits.memory, 2):
            missed.append("memory")
        if growth is not None and round(growth, 2) > LINEAR_GROWTH:
            missed.append("growth")
    return f"no: {', '.join(missed)}" if missed else "yes"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Measure hf_relpos.attention against its targets.")
    add_common_flags(parser)
    add_shape_flags(parser)
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="tokens")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--backend", choices=("auto", *hf_relpos.list_backends()), default="auto", help="backend")
    parser.add_argument(
        "--flush-denormals",
        action="store_true",
        help="measure times with torch.set_flush_denormal(True): numbers below 1e-38, on which some CPUs take long, are 0",
    )
    parser.add_argument("--profile", choices=ROWS, metavar="ROW", help="show where the time of this row goes instead")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, store and print; or profile a row."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    if arguments.flush_denormals and not torch.set_flush_denormal(True):
        sys.exit("--flush-denormals: this CPU cannot")
    if arguments.profile is None:
        variant = "flush-denormals" if arguments.flush_denormals else ""
        results = record("targets", given, device, lambda: measure(arguments, device), variant)
        store(results, render(results), arguments.output)
        return
    row = ROWS[arguments.profile]
    for dtype in row.limits:
        for length in row.lengths or arguments.lengths:
            for backward in row.passes:
                setting = Setting(device, dtype, row.batch, arguments.heads, arguments.head_dim)
                print(profile(row.name, row.case(setting, length, backward, arguments.backend), arguments.output))


if __name__ == "__main__":
    main()
