"""Measures ``hf_relpos.attention``: every encoding on every backend, as a ratio to plain SDPA, with the peak memory of both.

    python benchmarks/attention.py
    python benchmarks/attention.py --lengths 1024 --encodings NAME --output outputs
    python benchmarks/attention.py --device cuda --dtypes float32 bfloat16

README.md beside this file says how to read the results.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import torch
import transformers
from attention_case import Case, Setting, prepare
from call_timing import Effort, interleaved_times
from peak_memory import OutOfMemory, peak_memory
from result_files import Machine, Results, Row, write_atomically
from result_table import render
from tqdm import tqdm

import hf_relpos
from hf_relpos.attention.backends import BackendRefusal

RESULTS = Path(__file__).parent / "results"
LENGTHS = [512, 1024, 2048]
DTYPES = ["float32", "bfloat16"]


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
    plain = replace(case, encoding=None, backend=None)
    try:
        # memory first: what does not fit there must not be tried in this process
        memory = peak_memory(case)
        times, plain_times = interleaved_times((prepare(case), prepare(plain)), case.setting.device, effort)
    except BackendRefusal as error:
        return replace(row, status="refused", reason=str(error))
    except OutOfMemory as error:
        return replace(row, status="failed", reason=str(error))
    return replace(row, memory=memory, milliseconds=_rounded(times), plain_milliseconds=_rounded(plain_times))


def _rounded(milliseconds: Iterable[float]) -> tuple[float, ...]:
    """Times to a tenth of a microsecond, which no call is short enough to miss."""
    return tuple(round(value, 4) for value in milliseconds)


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


def describe_machine(device: str) -> Machine:
    """This machine, seen from ``device``."""
    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        processor=torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_relpos": hf_relpos.__version__,
    }


def positive(text: str) -> int:
    """A flag's value that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive integer")
    return value


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
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES[:1], help="one result file for each")
    parser.add_argument("--encodings", nargs="+", choices=encodings, default=encodings, metavar="NAME", help="methods")
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends, metavar="NAME", help="backends")
    parser.add_argument("--batch", type=positive, default=defaults.batch, help="B")
    parser.add_argument("--heads", type=positive, default=defaults.heads, help="H")
    parser.add_argument("--head-dim", type=positive, default=defaults.head_dim, help="D")
    parser.add_argument("--rounds", type=positive, default=Effort.rounds, help="rounds of a case at least")
    parser.add_argument("--max-rounds", type=positive, default=Effort.max_rounds, help="rounds of a case at most")
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="time for the rounds of a case")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder; files of the same name are replaced")
    arguments = parser.parse_args(argv)
    if arguments.rounds > arguments.max_rounds:
        parser.error(f"--rounds {arguments.rounds} is more than --max-rounds {arguments.max_rounds}")
    return arguments


def find_device(name: str) -> str:
    """The device that ``--device`` means; ends the program where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("attention.py: --device cuda: PyTorch finds no CUDA device")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and a table for each dtype, and print the tables."""
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(given)
    device = find_device(arguments.device)
    effort = Effort(arguments.rounds, arguments.max_rounds, arguments.seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for dtype in arguments.dtypes:
        setting = Setting(device, dtype, arguments.batch, arguments.heads, arguments.head_dim)
        machine, begin = describe_machine(device), time.monotonic()
        rows = measure_all(setting, arguments.lengths, arguments.encodings, arguments.backends, effort)
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
        path = arguments.output / f"{results.stem}.json"
        write_atomically(path, results.to_json())
        write_atomically(path.with_suffix(".md"), render(results))
        print(render(results))
        print(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
