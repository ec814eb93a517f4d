"""Measures whole training steps of BERT-base and GPT-2 small: with relative positions beside the stock model with its own.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --hosts bert --dropouts 0 --batch 2 --output outputs

README.md beside this file says how to read the results.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from call_timing import Effort
from command_line import CLOCKS, DTYPES, add_common_flags, command_parser, find_device, positive, record, variant
from comparison import Comparison, compare
from peak_memory import preload
from result_files import ComparisonResults
from result_table import MISSING, comparison_head, grid, mebibytes, not_measured, spread
from step_case import Shape, StepCase
from storage import store
from tqdm import tqdm

# tokens of a step of each host
LENGTHS = {"bert": 512, "gpt2": 1024}
TIME_LIMIT, MEMORY_LIMIT = 1.10, 1.15


def measure(arguments: argparse.Namespace, device: str) -> Iterator[Comparison]:
    """A comparison for every host and dropout."""
    shape = Shape(arguments.width, arguments.layers, arguments.heads, arguments.vocabulary)
    effort = Effort(rounds=arguments.rounds, clock=arguments.clock)
    plan = [(host, dropout) for host in arguments.hosts for dropout in arguments.dropouts]
    for host, dropout in tqdm(plan, unit="case", mininterval=1):
        length = arguments.length or LENGTHS[host]
        stock = StepCase(device, arguments.dtype, host, length, arguments.batch, dropout, shape)
        ours = replace(stock, encoding=arguments.encoding)
        yield compare((f"{host} dropout {dropout}", "stock"), ours, stock, effort, memory=True)


def render(results: ComparisonResults) -> str:
    """The table, and below it what could not be measured."""
    lines = []
    for row in results.comparisons:
        resident = row.resident / row.reference_resident if row.resident and row.reference_resident else None
        missed = []
        if row.ratio is None or round(row.ratio.median, 2) > TIME_LIMIT:
            missed.append("time")
        if row.memory_ratio is None or round(row.memory_ratio, 2) > MEMORY_LIMIT:
            missed.append("memory")
        lines.append(
            [
                row.name,
                str(row.length),
                f"{min(row.reference_milliseconds) / 1e3:.2f}" if row.reference_milliseconds else MISSING,
                spread(row.ratio),
                f"{TIME_LIMIT:.2f}",
                mebibytes(row.reference_memory),
                MISSING if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
                f"{MEMORY_LIMIT:.2f}",
                MISSING if resident is None else f"{resident:.2f}",
                f"no: {', '.join(missed)}" if missed else "yes",
            ]
        )
    what = (
        "Ratios to the stock model with its own positions, same shape, dropout and batch; one step is forward, backward and AdamW. Time as median (lowest–highest). "
        "`memory`: what a step adds at its peak to the model and the optimizer's state, in MiB for the stock model; `all`: the ratio with these, the interpreter and its libraries."
    )
    header = ["model", "L", "stock seconds", "time", "target", "stock memory", "memory", "target", "all", "met"]
    parts = (
        comparison_head(results, "Training steps", what),
        grid(header, lines),
        not_measured(results.comparisons),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Measure training steps beside stock models.")
    add_common_flags(parser)
    parser.add_argument("--hosts", nargs="+", choices=LENGTHS, default=list(LENGTHS), help="stock models")
    parser.add_argument("--encoding", default="t5", metavar="NAME", help="method in place of the host's positions")
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.1, 0.0], help="the hosts' default is 0.1")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of parameters and activations")
    parser.add_argument("--batch", type=positive, default=1, help="texts of a step")
    parser.add_argument("--length", type=positive, help=f"tokens of a text; by host {LENGTHS} unless given")
    parser.add_argument("--width", type=positive, default=768, help="of hidden states")
    parser.add_argument("--layers", type=positive, default=12, help="layers")
    parser.add_argument("--heads", type=positive, default=12, help="heads of a layer")
    parser.add_argument("--vocabulary", type=positive, help="words; the host's unless given")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of a case")
    parser.add_argument("--clock", choices=CLOCKS, default=CLOCKS[0], help="cpu: with OMP_WAIT_POLICY=passive")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, store and print."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    preload("step_case")
    results = record(
        "training_step", given, device, lambda: measure(arguments, device), variant(arguments.dtype, arguments.batch)
    )
    store(results, render(results), arguments.output)


if __name__ == "__main__":
    main()
