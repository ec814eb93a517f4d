"""Draws time and memory against length from stored results of scaling.py, as .png and .svg.

    python benchmarks/plot.py
    python benchmarks/plot.py --results benchmarks/results --output outputs

README.md beside this file says how to read the results.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attention_case import BACKWARD, FORWARD
from command_line import RESULTS, command_parser
from comparison import Comparison
from result_files import ComparisonResults
from target_rows import ROWS

from hf_relpos.plots import FORMATS, save_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS, LINES, MARKERS = 10, ("-", "--"), "ovsD^x"
PICTURES = Path(__file__).parent.parent / "docs" / "speed"


def draw(results: ComparisonResults, dtype: str) -> "Figure":
    """Time ratio above, memory below; forward on the left, forward and backward on the right. Rivals are dotted, in the colour of the row whose encoding they compute."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    names = list(dict.fromkeys(row.name for row in results.comparisons))
    for column, work in enumerate((FORWARD, BACKWARD)):
        rows = [row for row in results.comparisons if (row.work, row.dtype) == (work, dtype)]
        _lines(axes[0, column], names, {name: _ratios(rows, name) for name in names})
        _lines(axes[1, column], names, {name: _memory(rows, name) for name in names})
        axes[0, column].axhline(1.0, color="black", linewidth=0.8)
        axes[0, column].set_title(work)
        axes[1, column].set_xlabel("tokens")
    axes[0, 0].set_ylabel("time, ratio to plain SDPA")
    axes[1, 0].set_ylabel("memory at the peak, MiB")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="x-small", frameon=False)
    figure.suptitle(f"Attention on {results.machine.processor}, {dtype}", fontsize="medium")
    return figure


def _ratios(rows: Sequence[Comparison], name: str) -> dict[int, float]:
    return {row.length: row.ratio.median for row in rows if row.name == name and row.ratio is not None}


def _memory(rows: Sequence[Comparison], name: str) -> dict[int, float]:
    return {row.length: row.memory / 2**20 for row in rows if row.name == name and row.memory}


def _lines(axes: "Axes", names: Sequence[str], values: dict[str, dict[int, float]]) -> None:
    """A line for each name, also where there is nothing to draw, so that colours agree; a rival has the colour of the row before it, dotted, and a mark of its own."""
    ours = rivals = -1
    for name in names:
        ours, rivals = (ours + 1, -1) if name in ROWS else (ours, rivals + 1)
        style = LINES[ours // COLOURS % len(LINES)] if rivals < 0 else ":"
        marker = "." if rivals < 0 else MARKERS[rivals % len(MARKERS)]
        points = values[name]
        axes.plot(
            list(points),
            list(points.values()),
            style,
            color=f"C{ours % COLOURS}",
            marker=marker,
            markersize=4,
            linewidth=1.2,
            label=name,
        )
    lengths = sorted({length for points in values.values() for length in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(linewidth=0.3)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = command_parser("Draw time and memory against length from stored results.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with files of scaling.py")
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder; files of the same name are replaced")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw every file of results, a picture for each dtype; ends the program where there is none."""
    arguments = parse(argv)
    files = sorted(arguments.results.glob("scaling-*.json"))
    if not files:
        raise SystemExit(f"no results of scaling.py in {arguments.results}: run it first")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for path in files:
        results = ComparisonResults.from_json(path.read_text(encoding="utf-8"))
        for dtype in dict.fromkeys(row.dtype for row in results.comparisons):
            figure = draw(results, dtype)
            for suffix in FORMATS:
                picture = arguments.output / f"{path.stem}-{dtype}{suffix}"
                save_plot(figure, picture)
                print(f"wrote {picture}")


if __name__ == "__main__":
    main()
