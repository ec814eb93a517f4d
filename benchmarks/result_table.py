"""The results as Markdown: a table for each pass and direction, what was not measured and why below it."""

from collections.abc import Sequence
from itertools import product

from comparison import Comparison, Spread
from result_files import ComparisonResults, Results, Row

MISSING = "–"


def render(results: Results) -> str:
    """The whole document."""
    sections = [_head(results)]
    for backward, causal in product((False, True), (False, True)):
        rows = [row for row in results.rows if row.backward == backward and row.causal == causal]
        if rows:
            title = f"## {'Forward and backward' if backward else 'Forward'}, {'causal' if causal else 'bidirectional'}"
            sections += [title, _table(rows), _reasons(rows)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(results: Results) -> str:
    setting = results.setting
    rounds = [len(row.milliseconds) for row in results.rows if row.status == "measured"]
    measured = f"B={setting.batch}, H={setting.heads}, D={setting.head_dim}, {setting.dtype} on {setting.device}; {_counted(rounds)}"
    return "\n\n".join(
        (
            f"# Attention on {results.machine.processor}, {setting.dtype}",
            origin(results, measured),
            "Time: ratio to plain SDPA of the same direction, median (lowest–highest). Memory: MiB at the peak. First row: plain SDPA itself.",
        )
    )


def _counted(rounds: Sequence[int]) -> str:
    return f"{min(rounds)} to {max(rounds)} rounds a case" if rounds else "nothing measured"


def origin(results: Results | ComparisonResults, measured: str) -> str:
    """Where a table comes from: file, command, machine, versions, and a line with what was ``measured``."""
    machine = results.machine
    load = "unknown" if machine.load is None else f"{machine.load:.2f}"
    lines = [
        f"- command: `{results.command}`",
        f"- machine: {machine.processor}, {machine.cores} CPU cores, {machine.threads} threads, {machine.memory / 2**30:.1f} GiB, {machine.system};"
        f" load before the run: {load}",
        "- versions: " + ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        f"- {measured}; finished {results.finished} after {results.duration / 60:.1f} minutes",
    ]
    made_from = f"Made from `{results.stem}.json`, which has every number; how to read it: [README](../README.md)."
    return f"{made_from}\n\n" + "\n".join(lines)


def comparison_head(results: ComparisonResults, title: str, what: str) -> str:
    """Title, origin and explanation of a table of comparisons."""
    rounds = [len(row.milliseconds) for row in results.comparisons if row.milliseconds]
    return "\n\n".join((f"# {title} on {results.machine.processor}", origin(results, _counted(rounds)), what))


def grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def spread(value: Spread | None) -> str:
    """``median (lowest–highest)``."""
    return MISSING if value is None else f"{value.median:.2f} ({value.minimum:.2f}–{value.maximum:.2f})"


def not_measured(comparisons: Sequence[Comparison]) -> str:
    """A line for each name and reason, with where it holds; empty where all was measured."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for row in comparisons:
        if row.reason is not None:
            place = f"{row.work} {row.dtype} {row.length}"
            places.setdefault((row.name, row.status, row.reason), []).append(place)
    return "\n".join(
        f"- {name}, {', '.join(where)}: {status}. {reason}" for (name, status, reason), where in places.items()
    )


def _table(rows: Sequence[Row]) -> str:
    lengths = sorted({row.length for row in rows})
    cells = {(row.encoding, row.backend, row.length): row for row in rows}
    plain = {length: [row for row in rows if row.length == length] for length in lengths}
    lines = [
        ["encoding", "backend", *(f"time {length}" for length in lengths), *(f"MiB {length}" for length in lengths)],
        [
            "plain SDPA",
            "",
            *(_plain_time(plain[length]) for length in lengths),
            *(_plain_memory(plain[length]) for length in lengths),
        ],
    ]
    for encoding, backend in dict.fromkeys((row.encoding, row.backend) for row in rows):
        found = [cells.get((encoding, backend, length)) for length in lengths]
        lines.append([encoding, backend, *map(_time, found), *map(_memory, found)])
    return grid(lines[0], lines[1:])


def _reasons(rows: Sequence[Row]) -> str:
    """A line for each encoding, backend and reason, with the lengths that it holds for."""
    lengths: dict[tuple[str, str, str, str], list[int]] = {}
    for row in rows:
        if row.reason is not None:
            lengths.setdefault((row.encoding, row.backend, row.status, row.reason), []).append(row.length)
    return "\n".join(
        f"- {encoding}, {backend}, length {', '.join(map(str, where))}: {status}. {reason}"
        for (encoding, backend, status, reason), where in lengths.items()
    )


def _time(row: Row | None) -> str:
    if row is None:
        return MISSING
    if row.status != "measured":
        return row.status
    return spread(row.ratio)


def _memory(row: Row | None) -> str:
    return MISSING if row is None else mebibytes(row.memory)


def mebibytes(count: int | None) -> str:
    """MiB."""
    return MISSING if count is None else f"{count / 2**20:.1f}"


def _plain_time(rows: Sequence[Row]) -> str:
    times = [time for row in rows for time in row.plain_milliseconds]
    return f"{Spread.of(times).median:.2f} ms" if times else MISSING


def _plain_memory(rows: Sequence[Row]) -> str:
    return mebibytes(rows[0].plain_memory)
