"""Measures hf_relpos, with the backend that it chooses, beside transformers' own way to compute the same encoding: never slower from 128 tokens on?

    python benchmarks/against_host.py
    python benchmarks/against_host.py --hosts bloom xlnet --lengths 128 256 --output outputs

README.md beside this file says how to read the results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import host_paths
from attention_case import BACKWARD, Case, Setting
from call_timing import Effort, rounds_at
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
from comparison import Comparison, compare
from peak_memory import preload
from result_files import ComparisonResults
from result_table import MISSING, comparison_head, grid, not_measured, spread
from rival_case import Path, RivalCase
from storage import store
from tqdm import tqdm

LENGTHS = [128, 256, 512, 1024, 2048]


@dataclass(frozen=True)
class HostRow:
    """An encoding, and how its host computes it: ``says`` in words. ``later``: what a model's layers share is made before the call, by the host and by us."""

    encoding: str
    path: Path
    says: str
    options: tuple[tuple[str, Any], ...] = ()
    causal: bool = False
    later: bool = True


HOSTS = {
    "t5-prebuilt": HostRow("t5", host_paths.t5_prebuilt, "T5, sdpa, its bias built once for all layers"),
    "t5-rebuilt": HostRow("t5", host_paths.t5_rebuilt, "T5, sdpa, its bias built in this layer", later=False),
    "bloom": HostRow("alibi", host_paths.bloom, "BLOOM", causal=True),
    "mpt": HostRow("alibi", host_paths.mpt, "MPT", causal=True),
    "relative_key": HostRow("relative_key", host_paths.relative_key, "BERT of transformers 4, its einsum"),
    "relative_key_query": HostRow(
        "relative_key_query", host_paths.relative_key_query, "BERT of transformers 4, its einsums"
    ),
    "deberta": HostRow("deberta", host_paths.deberta, "DeBERTa", (("max_relative_positions", 512),)),
    "deberta_v2": HostRow("deberta_v2", host_paths.deberta_v2, "DeBERTa-v2"),
    "xlnet": HostRow("transformer_xl", host_paths.xlnet, "XLNet without segments"),
}


def measure(arguments: argparse.Namespace, device: str) -> Iterator[Comparison]:
    """A comparison for every host, length and pass."""
    setting = Setting(device, arguments.dtype, arguments.batch, arguments.heads, arguments.head_dim)
    plan = [(n, length, b) for n in arguments.hosts for length in arguments.lengths for b in (False, True)]
    for name, length, backward in tqdm(plan, unit="case", mininterval=1):
        row = HOSTS[name]
        ours = Case(setting, length, row.causal, backward, row.encoding, "auto", row.options, later=row.later)
        theirs = RivalCase(setting, length, backward, row.path)
        effort = Effort(rounds=rounds_at(arguments.rounds, length), max_rounds=51, clock=arguments.clock)
        yield compare((row.encoding, name), ours, theirs, effort, memory=backward)


def render(results: ComparisonResults) -> str:
    """The table, and below it what could not be measured."""
    found = {(row.reference, row.length, row.work == BACKWARD): row for row in results.comparisons}
    lines = []
    for name, length in dict.fromkeys((name, length) for name, length, _ in found):
        forward, both = found[name, length, False], found[name, length, True]
        memory = both.memory_ratio
        slower = [row.work for row in (forward, both) if row.ratio is None or round(row.ratio.median, 2) > 1.0]
        lines.append(
            [
                forward.name,
                HOSTS[name].says,
                str(length),
                spread(forward.ratio),
                spread(both.ratio),
                MISSING if memory is None else f"{memory:.2f}",
                f"no: {', '.join(slower)}" if slower else "yes",
            ]
        )
    what = (
        "Ratios to transformers' own way on the same queries, keys and values: times as median (lowest–highest), memory at the peak of forward "
        "and backward. Below 1 is faster, or less. Medians are judged to two decimals."
    )
    header = ["encoding", "host", "L", "forward", "forward+backward", "memory", "never slower"]
    parts = (
        comparison_head(results, "hf_relpos beside transformers' own way", what),
        grid(header, lines),
        not_measured(results.comparisons),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Measure hf_relpos.attention beside transformers' own way.")
    add_common_flags(parser)
    add_shape_flags(parser)
    parser.add_argument("--batch", type=positive, default=1, help="B")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of all tensors")
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="tokens")
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS), metavar="HOST", help=", ".join(HOSTS))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, store and print."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    preload("host_paths")
    results = record(
        "against_host", given, device, lambda: measure(arguments, device), variant(arguments.dtype, arguments.batch)
    )
    store(results, render(results), arguments.output)


if __name__ == "__main__":
    main()
