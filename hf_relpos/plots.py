"""The picture of an encoding: what it adds to scores, by distance, a line for each head. Needs matplotlib (``pip install 'hf-relpos[plots]'``)."""

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encodings.build import parse_rel_pos
from .pictures import Picture, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")


def plot_encoding(
    rel_pos: Any,
    *,
    num_heads: int = 4,
    head_dim: int = 16,
    length: int = 64,
    seed: int = 0,
) -> "Figure":
    """A figure of what ``rel_pos`` (a name, a dict, a list, or a built encoding) adds to scores, in a decoder and in an encoder where it is defined there.

    Lines are means over random contents, bands one standard deviation; see :func:`hf_relpos.pictures.pictures`, which computes them, for the arguments. Raises
    ImportError when matplotlib is missing, ValueError when ``rel_pos`` is not valid.
    """
    figure_class = _figure_class()
    found = pictures(rel_pos, num_heads=num_heads, head_dim=head_dim, length=length, seed=seed)
    figure = figure_class(figsize=(4.2 * len(found), 2.8), layout="constrained")
    for axes, picture in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        _draw(axes, picture)
    figure.axes[0].legend(fontsize="x-small", frameon=False)
    note = " (parameters drawn at random)" if found[0].drawn else ""
    figure.suptitle(_title(rel_pos) + note, fontsize="medium")
    return figure


def save_plot(figure: "Figure", path: str | Path) -> None:
    """Write ``figure`` as .png or .svg, the same bytes each time; ValueError for another ending, OSError when it cannot be written."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"cannot write a picture to {path}: the name must end in {' or '.join(FORMATS)}")
    from matplotlib import rc_context

    if path.suffix == ".png":
        figure.savefig(path)
        return
    written = StringIO()
    # text stays text, ids do not depend on the clock
    with rc_context({"svg.hashsalt": "hf_relpos", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    # hundredths of a point are enough, and half the size
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", written.getvalue())
    path.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE), encoding="utf-8")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'hf-relpos[plots]'") from error
    return Figure


def _title(rel_pos: Any) -> str:
    parts = rel_pos.config() if hasattr(rel_pos, "config") else rel_pos
    return " + ".join(cls.name for cls, _ in parse_rel_pos(parts))


def _draw(axes: "Axes", picture: Picture) -> None:
    distances = picture.distances.numpy()
    # far below the others, infinite values would hide them
    visible = picture.mean.masked_fill(~picture.mean.isfinite(), float("nan"))
    for head, (mean, spread) in enumerate(zip(visible.numpy(), picture.spread.numpy(), strict=True)):
        (line,) = axes.plot(distances, mean, linewidth=1.2, label=f"head {head}")
        if not picture.exact:
            axes.fill_between(distances, mean - spread, mean + spread, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_title(picture.where, fontsize="small")
    axes.set_xlabel("distance: query slot − key slot", fontsize="small")
    axes.set_ylabel("added to the score", fontsize="small")
    axes.tick_params(labelsize="small")
