"""Measures ``hf_relpos.attention``: every encoding on every backend, as a ratio to plain SDPA, with the peak memory of both.

    python benchmarks/attention.py
    python benchmarks/attention.py --lengths 1024 --encodings NAME --output outputs
    python benchmarks/attention.py --device cuda --dtypes float32 bfloat16

README.md beside this file says how to read the results.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

from attention_case import Case, Setting
from call_timing import Effort, interleaved_times
from command_line import DTYPES, add_common_flags, find_device, positive
from comparison import rounded
from machine import describe_machine, versions
from peak_memory import OutOfMemory, peak_memory
from result_files import Results, Row
from result_table import render
from storage import store
from tqdm import tqdm

import hf_relpos
from hf_relpos.attention.backends import BackendRefusal, backends_for

LENGTHS = [512, 1024, 2048]


def measure(case: Case, plain_memory: int | None, effort: Effort) -> Row:
    """The row of ``case``, whose ``encoding`` and ``backend`` are given; ``plain_memory`` is the peak of plain SDPA in bytes."""
    assert case.encoding is not None
    assert case.backend is not None
    row = Row(case.encoding, case.backend, case.length, case.causal, case.backward, None, "measured")
    try:
        module = case.build_encoding()
    except ValueError as error:
        return replace(row, status="refused", reason=str(error), plain_memory=plain_memory)
    assert module is not None
    row = replace(row, rel_pos=module.config(), plain_memory=plain_memory)
    plain = case.plain
    try:
        # memory first: what does not fit there must not be tried in this process
        memory = peak_memory(case)
        times, plain_times = interleaved_times((case.prepare(), plain.prepare()), case.setting.device, effort)
    except BackendRefusal as error:
        return replace(row, status="refused", reason=str(error))
    except OutOfMemory as error:
        return replace(row, status="failed", reason=str(error))
    return replace(row, memory=memory, milliseconds=rounded(times), plain_milliseconds=rounded(plain_times))


def measure_all(
    setting: Setting, lengths: Sequence[int], encodings: Sequence[str], backends: Sequence[str], effort: Effort
) -> tuple[Row, ...]:
    """A row for every length, pass, direction, encoding and backend."""
    rows = []
    groups = list(product(lengths, (False, True), (False, True)))
    with tqdm(
        total=len(groups) * len(encodings) * len(backends), desc=setting.dtype, unit="case", mininterval=1
    ) as bar:
        for length, backward, causal in groups:
            plain = Case(setting, length, causal, backward)
            plain_memory = peak_memory(plain)
            for encoding, backend in product(encodings, backends):
                bar.set_postfix_str(f"{encoding} on {backend}, {length}")
                rows.append(measure(replace(plain, encoding=encoding, backend=backend), plain_memory, effort))
                bar.update()
    return tuple(rows)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = argparse.ArgumentParser(
        description="Measure hf_relpos.attention against plain SDPA.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    encodings, backends = hf_relpos.list_encodings(), hf_relpos.list_backends()
    defaults = Setting("cpu", DTYPES[0])
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="tokens")
    add_common_flags(parser)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES[:1], help="one result file for each")
    parser.add_argument("--encodings", nargs="+", choices=encodings, default=encodings, metavar="NAME", help="methods")
    parser.add_argument(
        "--backends", nargs="+", choices=backends, metavar="NAME", help="all that run here unless given"
    )
    parser.add_argument("--batch", type=positive, default=defaults.batch, help="B")
    parser.add_argument("--heads", type=positive, default=defaults.heads, help="H")
    parser.add_argument("--head-dim", type=positive, default=defaults.head_dim, help="D")
    parser.add_argument("--rounds", type=positive, default=Effort.rounds, help="rounds of a case at least")
    parser.add_argument("--max-rounds", type=positive, default=Effort.max_rounds, help="rounds of a case at most")
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="time for the rounds of a case")
    arguments = parser.parse_args(argv)
    if arguments.rounds > arguments.max_rounds:
        parser.error(f"--rounds {arguments.rounds} is more than --max-rounds {arguments.max_rounds}")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and a table for each dtype, and print the tables."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    backends = arguments.backends or backends_for(device)
    effort = Effort(arguments.rounds, arguments.max_rounds, arguments.seconds)
    for dtype in arguments.dtypes:
        setting = Setting(device, dtype, arguments.batch, arguments.heads, arguments.head_dim)
        machine, begin = describe_machine(device), time.monotonic()
        rows = measure_all(setting, arguments.lengths, arguments.encodings, backends, effort)
        results = Results(
            command=shlex.join(["python", "benchmarks/attention.py", *given]),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            duration=round(time.monotonic() - begin, 1),
            machine=machine,
            versions=versions(),
            setting=setting,
            effort=effort,
            rows=rows,
        )
        store(results, render(results), arguments.output)


if __name__ == "__main__":
    main()
