"""Measures how time and memory grow with length, in one way of computing after another, beside plain SDPA, and beside their rivals on the same tensors.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --rows distance-t5 --lengths 512 1024 --dtypes float32 --output outputs

README.md beside this file says how to read the results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from statistics import median

import flex_paths
import host_paths
import x_transformers_paths
from attention_case import Case, Setting
from call_timing import Effort, rounds_at
from command_line import DTYPES, add_common_flags, add_shape_flags, command_parser, find_device, positive, record
from comparison import Comparison, compare
from exponents import exponent
from peak_memory import preload
from result_files import ComparisonResults
from result_table import MISSING, comparison_head, grid, mebibytes, not_measured
from rival_case import Path, RivalCase
from storage import store
from target_rows import ROWS
from tqdm import tqdm
from workload import Workload

PLAIN = "plain SDPA"
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
# a row of each family, and its rivals
RIVALS: dict[str, dict[str, Path]] = {
    "distance-t5": {
        "transformers T5, sdpa, bias prebuilt": host_paths.t5_prebuilt,
        "transformers T5, sdpa, bias rebuilt": host_paths.t5_rebuilt,
        "transformers T5, eager, bias prebuilt": host_paths.t5_eager,
        "FlexAttention, table": flex_paths.flex_table,
        "x-transformers, T5 bias": x_transformers_paths.t5,
    },
    "causal-t5": {"FlexAttention, causal table": flex_paths.flex_table_causal},
    "causal-alibi-fixed": {"transformers BLOOM": host_paths.bloom, "transformers MPT": host_paths.mpt},
    "gates-fox": {},
    "sinusoid-sinusoidal_bias": {},
    "clipped-shaw": {},
    "clipped-relative_key_query": {},
    "full-transformer_xl": {"transformers XLNet": host_paths.xlnet},
    "full-relative_key": {"transformers 4 relative_key": host_paths.relative_key},
    "deberta": {"transformers DeBERTa": host_paths.deberta},
    "deberta_v2": {"transformers DeBERTa-v2": host_paths.deberta_v2},
    "padded-t5": {},
}
# a rival is not tried where it would take more, by its memory at the length before and four times that for twice the length
RIVAL_MEMORY = 8 * 10**9


def measure(arguments: argparse.Namespace, device: str) -> Iterator[Comparison]:
    """A comparison with plain SDPA for every row, dtype, length and pass, and for every rival where it may fit."""
    rows = [(row, dtype) for row in arguments.rows for dtype in arguments.dtypes]
    for name, dtype in tqdm(rows, unit="row"):
        row, memory = ROWS[name], dict[tuple[str, str], tuple[int, int]]()
        setting = Setting(device, dtype, row.batch, arguments.heads, arguments.head_dim)
        for length in sorted(arguments.lengths):
            effort = Effort(rounds_at(arguments.rounds, length), max_rounds=51, clock=arguments.clock)
            for backward in (False, True):
                case = row.case(setting, length, backward, "auto")
                yield compare((name, PLAIN), case, case.plain, effort, memory=True)
                for rival, path in RIVALS.get(name, {}).items():
                    work = RivalCase(setting, length, backward, path)
                    found = _unless_too_large(rival, work, case.plain, effort, memory.get((rival, case.work)))
                    if found.memory is not None:
                        memory[rival, case.work] = (length, found.memory)
                    yield found
            if not row.padding:
                case = replace(row.case(setting, length, False, "auto"), causal=True, decode=True)
                yield compare((name, PLAIN), case, case.plain, effort, memory=True)


def _unless_too_large(
    name: str, work: Workload, plain: Case, effort: Effort, before: tuple[int, int] | None
) -> Comparison:
    """The comparison of a rival, or its failure by what it took ``before``: a length and bytes."""
    if before is not None:
        predicted = before[1] * (work.length / before[0]) ** 2
        if predicted > RIVAL_MEMORY:
            reason = f"it would need more than {RIVAL_MEMORY / 1e9:.0f} GB"
            return Comparison(name, PLAIN, work.work, work.length, work.dtype, "failed", reason)
    return compare((name, PLAIN), work, plain, effort, memory=True)


def render(results: ComparisonResults) -> str:
    """A table of ratios and one of memory for each dtype and pass, with the exponents of both against length."""
    what = (
        f"Ratios to {PLAIN} of the same direction, dtype and padding, medians; memory in MiB at the peak. Exponents are those of a power law through all lengths: "
        "plain attention grows in time like the square of the length, which is 2; memory that grows in proportion to the length has 1. "
        "First row: plain SDPA, bidirectional and without padding, in ms."
    )
    sections = [comparison_head(results, "Time and memory by length", what)]
    for work, dtype in dict.fromkeys((row.work, row.dtype) for row in results.comparisons):
        rows = [row for row in results.comparisons if (row.work, row.dtype) == (work, dtype)]
        sections += [f"## {work.capitalize()}, {dtype}", _table(rows)]
    return "\n\n".join((*sections, not_measured(results.comparisons))).rstrip() + "\n"


def _table(rows: Sequence[Comparison]) -> str:
    lengths = sorted({row.length for row in rows})
    names = list(dict.fromkeys(row.name for row in rows))
    cells = {(row.name, row.length): row for row in rows}
    header = [
        "",
        *(f"time {length}" for length in lengths),
        "exponent",
        *(f"MiB {length}" for length in lengths),
        "exponent",
    ]
    base = [row for row in rows if row.name == names[0]]
    lines = [_plain_line(base, lengths)] if names[0] in ROWS else []
    for name in names:
        found = [cells.get((name, length)) for length in lengths]
        times = {row.length: median(row.milliseconds) for row in found if row is not None and row.milliseconds}
        memory = {row.length: row.memory for row in found if row is not None and row.memory is not None}
        ratios = [MISSING if row is None else _ratio(row) for row in found]
        peaks = [MISSING if row is None else mebibytes(row.memory) for row in found]
        lines.append([name, *ratios, _exponent(times), *peaks, _exponent(memory)])
    return grid(header, lines)


def _plain_line(rows: Sequence[Comparison], lengths: Sequence[int]) -> list[str]:
    times = {row.length: median(row.reference_milliseconds) for row in rows if row.reference_milliseconds}
    memory = {row.length: row.reference_memory for row in rows if row.reference_memory is not None}
    return [
        f"{PLAIN} beside {rows[0].name}",
        *(f"{times[length]:.2f} ms" if length in times else MISSING for length in lengths),
        _exponent(times),
        *(mebibytes(memory.get(length)) for length in lengths),
        _exponent(memory),
    ]


def _ratio(row: Comparison) -> str:
    return row.status if row.ratio is None else f"{row.ratio.median:.2f}"


def _exponent(values: dict[int, float] | dict[int, int]) -> str:
    found = exponent(values)
    return MISSING if found is None else f"{found:.2f}"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Measure time and memory by length.")
    add_common_flags(parser)
    add_shape_flags(parser)
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="tokens")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of all tensors")
    valid = [name for name, row in ROWS.items() if not (row.decode or row.dropout)]
    parser.add_argument("--rows", nargs="+", choices=valid, default=list(RIVALS), metavar="ROW", help=", ".join(valid))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, store and print."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    if find_spec("x_transformers") is None:
        print("x-transformers is not installed: it is left out")
    preload("host_paths", "flex_paths", "x_transformers_paths")
    results = record("scaling", given, device, lambda: measure(arguments, device))
    store(results, render(results), arguments.output)


if __name__ == "__main__":
    main()
