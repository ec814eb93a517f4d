"""Write the generated parts of README.md, docs/results.md and docs/conversion.md, and docs/methods: `make docs`. With --check, say whether they are stale and exit with 1.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything around it is written by hand. docs/methods is written as a
whole; its pictures are drawn anew unless --check is given, which only sees to it that they are there.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from method_pages import DEPENDS, FOLDER, HOST, LENGTH, pages, picture_paths, table

import hf_relpos
from hf_relpos.plots import plot_encoding, save_plot

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/results.md", "docs/conversion.md")
RESULTS = ROOT / "docs" / "results"
_PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods() -> str:
    """Every registered method with its page, by what it depends on."""
    names: dict[str, list[str]] = {depends: [] for depends in DEPENDS.values()}
    for name in hf_relpos.list_encodings():
        names[DEPENDS[hf_relpos.encoding_card(name).depends_on]].append(f"[`{name}`](docs/methods/{name}.md)")
    return table(("depends on", "methods"), [(depends, " ".join(found)) for depends, found in names.items() if found])


@dataclass(frozen=True)
class Topic:
    """A table of docs/results.md from ``docs/results/FILE.json``: its rows, which may not have been run, and the metrics in its columns."""

    file: str
    columns: dict[str, str]
    arms: tuple[str, ...] = ()
    first: str = "model"
    part: str = "arms"


TOPICS = {
    "squad": Topic("squad_minilm", {"EM": "exact_match", "F1": "f1"}),
    "squad-search": Topic("squad_minilm", {"EM": "exact_match", "F1": "f1"}, first="learning rate", part="search"),
    "polarity": Topic(
        "polarity",
        {"accuracy": "accuracy", "macro F1": "macro_f1", "MCC": "mcc"},
        ("stock", "absolute dropped + `t5`", "fitted and distilled `t5`"),
    ),
    "banking": Topic(
        "banking77",
        {"accuracy": "accuracy", "macro F1": "macro_f1", "MCC": "mcc"},
        ("stock", "absolute dropped + `t5`"),
    ),
    "reviews": Topic(
        "movie_reviews",
        {"reviews cut, %": "truncated", "accuracy": "accuracy", "macro F1": "macro_f1", "MCC": "mcc"},
        (
            "stock, 512 tokens",
            "absolute dropped + `t5`, 512 tokens",
            "absolute dropped + `t5`, 2,048 tokens",
            "fitted and distilled `t5`, 2,048 tokens",
        ),
    ),
    "semeval": Topic(
        "semeval",
        {"macro F1": "macro_f1", "accuracy": "accuracy"},
        (
            "stock",
            "absolute kept + `relative_key_query`",
            "absolute kept + `relation` by `--relation_ids`",
            "absolute dropped + `t5`",
        ),
    ),
    "scan": Topic(
        "scan_length",
        {"exact match": "exact_match", "BLEU": "bleu", "chrF": "chrf"},
        ("learned positions (stock)", "`t5`", "`alibi`", "`rope`", "`none`"),
    ),
    "mlm": Topic(
        "mlm_wikitext2",
        {"128": "perplexity", **{f"{n:,}": f"perplexity_{n}" for n in (256, 512, 1024, 2048)}},
        ("stock", "absolute dropped + `t5`", "absolute dropped + `alibi`"),
    ),
}


def results(topic: Topic) -> str:
    """The rows of a topic, and below them the machine and the minutes that they took on one core."""
    path = RESULTS / f"{topic.file}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {topic.part: []}
    runs = {run["name"]: run for run in stored[topic.part]}
    unknown = set(runs) - set(topic.arms or runs)
    if unknown:
        raise ValueError(f"{path} has runs that its table does not: {', '.join(sorted(unknown))}")
    rows = []
    for name in topic.arms or tuple(runs):
        if name in runs:
            metrics = runs[name]["metrics"]
            cells = [f"{metrics[key]:.2f}" if key in metrics else "-" for key in topic.columns.values()]
        else:
            cells = ["not run yet", *[""] * (len(topic.columns) - 1)]
        minutes = runs.get(name, {}).get("minutes")
        rows.append((name, *cells, "" if minutes is None else f"{minutes:.0f}"))
    header: tuple[str, ...] = (topic.first, *topic.columns, "minutes")
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    found = table(header, rows)
    if topic.part != "arms" or not runs:
        return found
    machine = ", ".join(f"{key} {value}" for key, value in stored["environment"].items())
    total = next(iter(runs.values()))["metrics"].get("total")
    counted = "" if total is None else f"{total:,.0f} rows to evaluate on; "
    timed = "minutes of one core for training and evaluation; " if "minutes" in header else ""
    return f"{found}\n{counted}{timed}{machine}.\n"


def lengths() -> str:
    """Perplexity by length of the study of lengths, from ``docs/results/length_wikitext2.json``, which is its ``length.json``."""
    stored = json.loads((RESULTS / "length_wikitext2.json").read_text(encoding="utf-8"))
    columns = list(dict.fromkeys(length for method in stored["methods"].values() for length in method["lengths"]))
    rows = []
    for name, method in stored["methods"].items():
        found = {length: method["lengths"][length]["perplexity"] for length in columns if length in method["lengths"]}
        growth = f"×{found[columns[-1]] / found[columns[0]]:.2f}" if columns[-1] in found else ""
        cells = [f"{found[length]:.1f}" if length in found else "cannot" for length in columns]
        rows.append((f"`{name}`", *cells, growth))
    header = ("trained with", *(f"{int(length):,}" for length in columns), f"{int(columns[-1]):,} / {columns[0]}")
    machine = ", ".join(f"{key} {value}" for key, value in stored["environment"].items())
    return f"{table(header, rows)}\n{machine}.\n"


def conversions() -> str:
    """How near conversions of MiniLM come to it, from ``docs/results/conversion_minilm.json``: fitted ones, then distilled ones, the nearest first."""
    stored = json.loads((RESULTS / "conversion_minilm.json").read_text(encoding="utf-8"))
    arms = sorted(
        stored["arms"], key=lambda arm: (arm["minutes"] is not None, arm["steps"] > 0, -arm["metrics"]["cosine 512"])
    )
    columns = list(arms[0]["metrics"])
    rows = [
        (
            arm["name"],
            str(arm["steps"] or ""),
            "" if arm["minutes"] is None else f"{arm['minutes']:.0f}",
            arm["CPU"],
            *(f"{arm['metrics'][key]:.3f}" for key in columns),
        )
        for arm in arms
    ]
    machine = ", ".join(f"{key} {value}" for key, value in stored["environment"].items())
    found = table(("encoding", "steps", "minutes", "CPU", *columns), rows)
    return f"{found}\nMinutes of one core for fit and distillation; {machine}.\n"


def retrieval() -> str:
    """Whether documents are found by passages behind token 512, from ``docs/results/long_retrieval.json``, which benchmarks/long_retrieval.py wrote."""
    path = RESULTS / "long_retrieval.json"
    if not path.exists():
        return "Not run yet.\n"
    stored = json.loads(path.read_text(encoding="utf-8"))
    parts = []
    for documents in dict.fromkeys(row["documents"] for row in stored["rows"]):
        rows = [row for row in stored["rows"] if row["documents"] == documents]
        cells = [
            (
                row["arm"],
                f"{row['recall@1']:.3f} ± {row['standard error']:.3f}",
                f"{row['recall@5']:.3f}",
                f"{row['MRR']:.3f}",
            )
            for row in rows
        ]
        found = table(("reads", "recall@1", "recall@5", "MRR"), cells)
        parts.append(f"`{documents}`, median {rows[0]['median']:,} tokens:\n\n{found}")
    versions = ", ".join(f"{key} {value}" for key, value in stored["versions"].items())
    machine = f"{stored['machine']['processor']} ({stored['machine']['cores']} cores)"
    return "\n".join(parts) + f"\n{machine}, {versions}.\n"


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "length": lengths,
    "conversions": conversions,
    "retrieval": retrieval,
    **{name: partial(results, topic) for name, topic in TOPICS.items()},
}


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
