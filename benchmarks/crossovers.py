"""Measures which backend is fastest, for each kind of encoding and length: what the choice of "auto" is to be made from.

    python benchmarks/crossovers.py
    python benchmarks/crossovers.py --kinds distance gates --lengths 64 512 --output outputs

README.md beside this file says how to read the results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from attention_case import Case, Setting
from call_timing import Effort, interleaved_times, rounds_at
from command_line import (
    DTYPES,
    add_common_flags,
    add_shape_flags,
    command_parser,
    find_device,
    positive,
    record,
    variant,
)
from comparison import Comparison, rounded
from peak_memory import OutOfMemory, run_alone
from result_files import ComparisonResults
from result_table import MISSING, comparison_head, grid, not_measured
from storage import store
from target_rows import ROWS
from tqdm import tqdm

import hf_relpos
from hf_relpos.attention.backends import BackendRefusal

LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]
# a row of the targets for each kind of term and condition that calls for a choice of its own
KINDS = {
    "none": Case(Setting("cpu", "float32"), 1, False, False, "none"),
    **{
        kind: ROWS[row].case(Setting("cpu", "float32", ROWS[row].batch), 1, False, "auto")
        for kind, row in {
            "distance": "distance-t5",
            "distance-fixed": "distance-alibi-fixed",
            "causal": "causal-t5",
            "causal-fixed": "causal-alibi-fixed",
            "gates": "gates-fox",
            "clipped": "clipped-relative_key",
            "clipped-both": "clipped-relative_key_query",
            "full": "full-relative_key",
            "full-projected": "full-transformer_xl",
            "disentangled": "deberta",
            "disentangled-log": "deberta_v2",
            "dropout": "dropout-t5",
        }.items()
    },
}
# a round of a call that takes this much longer than the fastest tells nothing new
HOPELESS = 20.0
# slower than the fastest by no more than this is as fast: the noise of a quiet machine
TIE = 1.05


def measure(arguments: argparse.Namespace, device: str) -> Iterator[Comparison]:
    """A comparison for every kind, length, pass and backend; the reference is the first backend that runs, in the order of ``--backends``."""
    plan = [(kind, length, b) for kind in arguments.kinds for length in arguments.lengths for b in (False, True)]
    for kind, length, backward in tqdm(plan, unit="case", mininterval=1):
        setting = Setting(device, arguments.dtype, arguments.batch, arguments.heads, arguments.head_dim)
        case = replace(KINDS[kind], setting=setting, length=length, backward=backward)
        effort = Effort(rounds_at(arguments.rounds, length), max_rounds=51, clock=arguments.clock)
        yield from _backends(kind, case, arguments.backends, effort)


def _backends(kind: str, case: Case, backends: Sequence[str], effort: Effort) -> Iterator[Comparison]:
    able: dict[str, Comparison] = {}
    for backend in backends:
        row = Comparison(backend, kind, case.work, case.length, case.dtype)
        try:
            alone = run_alone(replace(case, backend=backend))
        except BackendRefusal as error:
            yield replace(row, status="refused", reason=str(error))
        except OutOfMemory as error:
            yield replace(row, status="failed", reason=str(error))
        else:
            able[backend] = replace(row, memory=alone.memory, milliseconds=(alone.milliseconds,))
    fastest = min((row.milliseconds[0] for row in able.values()), default=0.0)
    near = [name for name, row in able.items() if row.milliseconds[0] <= HOPELESS * fastest]
    times = interleaved_times([replace(case, backend=name).prepare() for name in near], case.device, effort)
    measured = dict(zip(near, times, strict=True))
    for name, row in able.items():
        yield replace(row, milliseconds=rounded(measured.get(name, row.milliseconds)))


def render(results: ComparisonResults) -> str:
    """The backend to take everywhere and all times; above it the lengths from which on each is the one to take."""
    groups: dict[tuple[str, str, int], list[Comparison]] = {}
    for row in results.comparisons:
        groups.setdefault((row.reference, row.work, row.length), []).append(row)
    backends = list(dict.fromkeys(row.name for row in results.comparisons))
    lines = []
    for (kind, work, length), rows in groups.items():
        lines.append([kind, work, str(length), _choice(rows) or MISSING, *(_cell(name, rows) for name in backends)])
    what = (
        f"Median time in ms; in parentheses the peak of memory in MiB. `take` is the backend that takes the least memory of those that are not slower than {TIE} times "
        f"the fastest. The kinds of encodings are KINDS in crossovers.py."
    )
    parts = (
        comparison_head(results, "Which backend to take", what),
        grid(["kind", "pass", "take, from L on"], _crossovers(groups)),
        grid(["kind", "pass", "L", "take", *backends], lines),
        not_measured(results.comparisons),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _choice(rows: Sequence[Comparison]) -> str | None:
    """The backend with the least memory of those that are about as fast as the fastest; None where none ran."""
    times = {row.name: median(row.milliseconds) for row in rows if row.milliseconds}
    fast = [row for row in rows if row.name in times and times[row.name] <= TIE * min(times.values())]
    return min(fast, key=lambda row: (row.memory or 0, times[row.name])).name if fast else None


def _cell(name: str, rows: Sequence[Comparison]) -> str:
    row = next((row for row in rows if row.name == name), None)
    if row is None or not row.milliseconds:
        return MISSING if row is None else row.status
    memory = "" if row.memory is None else f" ({row.memory / 2**20:.0f})"
    return f"{median(row.milliseconds):.2f}{memory}"


def _crossovers(groups: dict[tuple[str, str, int], list[Comparison]]) -> list[list[str]]:
    """For each kind and pass the backends to take in the order of lengths, each with the length from which on it is."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {key[:2]: [] for key in groups}
    for (kind, work, length), rows in sorted(groups.items(), key=lambda item: item[0][2]):
        choice, steps = _choice(rows), found[kind, work]
        if choice is not None and (not steps or steps[-1][1] != choice):
            steps.append((length, choice))
    return [[*key, ", ".join(f"{name} {length}" for length, name in steps) or MISSING] for key, steps in found.items()]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Measure which backend is fastest.")
    backends = hf_relpos.list_backends()
    add_common_flags(parser)
    add_shape_flags(parser)
    parser.add_argument("--batch", type=positive, default=1, help="B")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of all tensors")
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="tokens")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends, metavar="NAME", help="backends")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, store and print."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    results = record(
        "crossovers", given, device, lambda: measure(arguments, device), variant(arguments.dtype, arguments.batch)
    )
    store(results, render(results), arguments.output)


if __name__ == "__main__":
    main()
