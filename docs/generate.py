"""Write the generated parts of README.md and docs/results.md: `make docs`. With --check, say whether they are stale and exit with 1.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything around it is written by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hf_relpos

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/results.md")
RESULTS = ROOT / "docs" / "results"
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DEPENDS = {
    "nothing": "nothing",
    "distance": "distance",
    "content": "distance and content",
    "rotation": "distance, by rotation",
}


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def methods() -> str:
    """Every registered method: formula, what it depends on, source."""
    rows = []
    for name in hf_relpos.list_encodings():
        card = hf_relpos.encoding_card(name)
        source = f"[{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.venue
        formula = card.formula.replace("|", "\\|")
        rows.append((f"`{name}`", formula, _DEPENDS[card.depends_on], card.beyond_training, source))
    return table(("method", "formula", "depends on", "beyond the trained length", "paper"), rows)


def squad() -> str:
    """The four arms on SQuAD v1.1 from ``docs/results/squad_minilm.json``."""
    stored = json.loads((RESULTS / "squad_minilm.json").read_text(encoding="utf-8"))
    rows = [
        (arm["name"], f"{arm['metrics']['exact_match']:.2f}", f"{arm['metrics']['f1']:.2f}") for arm in stored["arms"]
    ]
    total = stored["arms"][0]["metrics"]["total"]
    machine = ", ".join(f"{key} {value}" for key, value in stored["environment"].items())
    return table(("model", "EM", "F1"), rows) + f"\n{total:.0f} questions; {machine}.\n"


def search() -> str:
    """The search of the learning rate, from the same file."""
    stored = json.loads((RESULTS / "squad_minilm.json").read_text(encoding="utf-8"))
    rows = [
        (run["name"], f"{run['metrics']['exact_match']:.2f}", f"{run['metrics']['f1']:.2f}") for run in stored["search"]
    ]
    return table(("learning rate", "EM", "F1"), rows)


PARTS: dict[str, Callable[[], str]] = {"methods": methods, "squad": squad, "squad-search": search}


def render(text: str) -> str:
    """``text`` with its generated parts made anew; KeyError for a part that nothing generates."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}{match[3]}", text)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a file is stale")
    check = parser.parse_args().check
    stale = []
    for name in FILES:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"stale: {', '.join(stale)}; run make docs")


if __name__ == "__main__":
    main()
