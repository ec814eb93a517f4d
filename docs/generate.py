"""Write the generated parts of README.md and docs/results.md, and docs/methods: `make docs`. With --check, say whether they are stale and exit with 1.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything around it is written by hand. docs/methods is written as a
whole; its pictures are drawn anew unless --check is given, which only sees to it that they are there.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from method_pages import DEPENDS, FOLDER, HOST, LENGTH, pages, picture_paths, table

import hf_relpos
from hf_relpos.plots import plot_encoding, save_plot

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/results.md")
RESULTS = ROOT / "docs" / "results"
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods() -> str:
    """Every registered method with its page, by what it depends on."""
    names: dict[str, list[str]] = {depends: [] for depends in DEPENDS.values()}
    for name in hf_relpos.list_encodings():
        names[DEPENDS[hf_relpos.encoding_card(name).depends_on]].append(f"[`{name}`](docs/methods/{name}.md)")
    return table(("depends on", "methods"), [(depends, " ".join(found)) for depends, found in names.items() if found])


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


def stale_files(*, write: bool) -> list[str]:
    """Names of the files that are not what they would be written as, or should not be there; they are brought up to date if ``write``."""
    wanted = {ROOT / name: render((ROOT / name).read_text(encoding="utf-8")) for name in FILES} | pages()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    pictures = picture_paths()
    unknown = sorted(set(FOLDER.glob("*")) - set(wanted) - set(pictures.values()))
    missing = [path for path in pictures.values() if not path.exists()]
    if write:
        FOLDER.mkdir(exist_ok=True)
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
        for path in unknown:
            path.unlink()
        for name, path in pictures.items():
            save_plot(plot_encoding(name, **HOST, length=LENGTH), path)
    return [str(path.relative_to(ROOT)) for path in (*stale, *missing, *unknown)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a file is stale")
    check = parser.parse_args().check
    stale = stale_files(write=not check)
    if check and stale:
        sys.exit(f"stale: {', '.join(stale)}; run make docs")


if __name__ == "__main__":
    main()
