"""Measures attention with a relative bias over a very long text: forward and backward of one layer, once, in a fresh process.

    python benchmarks/long_text.py
    python benchmarks/long_text.py --length 8192 --encodings t5 kerple_log --output outputs

README.md beside this file says how to read the results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from attention_case import Case, Setting
from command_line import DTYPES, add_common_flags, command_parser, find_device, positive, record, variant
from comparison import Comparison, compare_alone
from result_files import ComparisonResults
from result_table import comparison_head, grid, mebibytes, not_measured
from storage import store
from tqdm import tqdm

LENGTH = 32768
# all that the process holds, with the interpreter and its libraries
LIMIT = 2 * 2**30


def measure(arguments: argparse.Namespace, device: str) -> Iterator[Comparison]:
    """A comparison for each encoding, with the backend that hf_relpos chooses."""
    setting = Setting(device, arguments.dtype, 1, arguments.heads, arguments.head_dim)
    plain = Case(setting, arguments.length, arguments.causal, backward=True)
    for encoding in tqdm(arguments.encodings, unit="case", mininterval=1):
        yield compare_alone((encoding, "plain SDPA"), replace(plain, encoding=encoding, backend="auto"), plain)


def render(results: ComparisonResults) -> str:
    """The table, and below it what could not be measured."""
    lines = [
        [
            row.name,
            str(row.length),
            row.dtype,
            *(
                f"{sum(times) / 1e3:.1f}" if times else row.status
                for times in (row.milliseconds, row.reference_milliseconds)
            ),
            mebibytes(row.memory),
            mebibytes(row.reference_memory),
            mebibytes(row.resident),
            "unknown" if row.resident is None else "yes" if row.resident < LIMIT else "no",
        ]
        for row in results.comparisons
    ]
    what = (
        f"One call each, in a process of its own; `plain` is plain SDPA. `memory` is what the call adds at its peak, `all` is everything that the process "
        f"holds then: inputs, parameters, the interpreter and its libraries (on a GPU: all that PyTorch holds there). Memory in MiB; the limit is {LIMIT // 2**20}."
    )
    header = ["encoding", "L", "dtype", "seconds", "plain", "memory", "plain", "all", "met"]
    parts = (
        comparison_head(results, "Forward and backward over a very long text", what),
        grid(header, lines),
        not_measured(results.comparisons),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Measure hf_relpos.attention over a very long text.")
    add_common_flags(parser)
    parser.add_argument("--length", type=positive, default=LENGTH, help="tokens")
    parser.add_argument("--heads", type=positive, default=12, help="H")
    parser.add_argument("--head-dim", type=positive, default=64, help="D")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of all tensors")
    parser.add_argument("--causal", action="store_true", help="mask the future")
    parser.add_argument("--encodings", nargs="+", default=["t5"], metavar="NAME", help="methods")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, store and print."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    results = record("long_text", given, device, lambda: measure(arguments, device), variant(arguments.dtype, 1))
    store(results, render(results), arguments.output)


if __name__ == "__main__":
    main()
