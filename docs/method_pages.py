"""The pages of docs/methods: one for each registered method, its picture, and an index. Everything on them is asked of the code."""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hf_relpos.encodings.build import build_encoding
from hf_relpos.encodings.encoding import Encoding
from hf_relpos.encodings.options import EncodingOptions, option_table
from hf_relpos.encodings.registry import registered_encodings
from hf_relpos.matrix import Answer, cell, columns, matrix, notes, refusals

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "methods"
SOURCES = ROOT / "tests" / "fixtures" / "foreign" / "sources.json"
# the attention that parameters are listed and pictures are computed for
HOST = {"num_heads": 4, "head_dim": 16}
LENGTH = 48
DEPENDS = {
    "nothing": "nothing",
    "distance": "distance",
    "position": "distance and the place in the text",
    "content": "distance and content",
    "rotation": "distance, by rotation",
}
DIRECTIONS = {
    "both": "decoders and encoders",
    "causal": "decoders; works in encoders by its symmetric form",
    "bidirectional": "encoders; works in decoders as it is",
}
NEEDS = {
    "index": "the place of each token in its own text",
    "hidden_states": "the layer's input",
    "input_ids": "token ids",
    "segment_ids": "the segment of each token, where there are segments",
    "relation_ids": "`relation_ids`, which the user gives",
    "seed": "a number drawn for each forward in training",
    "projections": "the host's maps to queries and keys, where it lends them",
}


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ("---",) * len(header), *rows]
    cells = [[str(value).replace("|", "\\|") for value in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)


def link(card: Any) -> str:
    """Where a method was published."""
    return f"[{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else card.venue


def foreign() -> dict[str, Any]:
    """What each method was checked against beyond its formula; nothing where that is not written down."""
    return json.loads(SOURCES.read_text(encoding="utf-8")) if SOURCES.exists() else {}


def page(name: str) -> str:
    """The page of one method."""
    cls = registered_encodings()[name]
    card = cls.card
    published = f"arXiv {link(card)}" if card.arxiv else card.venue
    parts = [
        f"# `{name}`",
        f"{card.title}. {card.authors.replace(' and ', '; ')}. {card.year}. {published}",
        f"    {card.formula}",
        f"![What {name} adds to scores, by distance]({name}.svg)",
        "What it adds to the score of tokens that differ by position alone, by distance, for four heads: mean and standard deviation over random "
        "contents. Parameters are freshly initialised, or drawn at random where those add nothing.",
        table(("", ""), properties(cls)),
        "## Options",
        table(
            ("option", "default", "valid"),
            [(f"`{key}`", f"`{json.dumps(value)}`", valid) for key, value, valid in option_table(cls.Options)],
        ),
        "\n".join(f"- {told}" for told in meanings(cls.Options)),
        "## Parameters",
        parameters(cls),
        "## Where it runs",
        runs(name),
        "## How it works",
        prose(sys.modules[cls.__module__].__doc__ or ""),
        "## Checked against other code",
        "\n".join(checks(foreign().get(name))),
        "## Citation",
        f"```bibtex\n{card.bibtex}\n```",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def properties(cls: type[Encoding]) -> list[tuple[str, str]]:
    """What a method depends on, where it is defined and what it does beyond the trained length."""
    card = cls.card
    rows = [
        ("depends on", DEPENDS[card.depends_on]),
        ("made for", DIRECTIONS[card.directions]),
        ("beyond the trained length", card.beyond_training),
        ("scores change when all positions shift", "no" if card.relative else "yes"),
        ("parameters", "shared by all layers" if cls.shared else "of each layer"),
    ]
    built = next(iter(_built(cls).values()))
    needs = [NEEDS[need] for need in sorted(built.needs)]
    if built.state_width:
        needs.append(f"{built.state_width} numbers remembered with each key")
    return [*rows, ("reads beyond queries, keys and distances", "; ".join(needs) or "nothing")]


def _built(cls: type[Encoding]) -> dict[str, Encoding]:
    """The encoding with its default options, in a decoder and in an encoder where it is defined there."""
    found: dict[str, Any] = {}
    for where, causal in (("decoder", True), ("encoder", False)):
        try:
            found[where] = build_encoding(cls.name, **HOST, max_position_embeddings=LENGTH, causal=causal)
        except ValueError:
            continue
    return found


def parameters(cls: type[Encoding]) -> str:
    """Names and shapes of the parameters, for a small host."""
    shapes: dict[str, dict[str, str]] = {}
    built = _built(cls)
    for where, encoding in built.items():
        for name, parameter in encoding.named_parameters():
            shapes.setdefault(name, {})[where] = str(list(parameter.shape))
    if not shapes:
        return "None."

    def describe(by_place: dict[str, str]) -> str:
        if len(set(by_place.values())) == 1 and len(by_place) == len(built):
            return next(iter(by_place.values()))
        return ", ".join(f"{shape} in {where}s" for where, shape in by_place.items())

    heads, width = HOST["num_heads"], HOST["head_dim"]
    return (
        f"With default options, for {heads} heads of width {width}, hidden size {heads * width} and a table of {LENGTH} positions:\n\n"
        + table(("name", "shape"), [(f"`{name}`", describe(found)) for name, found in shapes.items()])
    )


@cache
def answers() -> tuple[Answer, ...]:
    """What all backends and families say to all methods."""
    return tuple(matrix())


def runs(name: str) -> str:
    """Which backends and families take a method, with their objections."""
    own = [answer for answer in answers() if answer.method == name]
    rows = [
        (title, ", ".join(f"{column[1]}: {cell(own, name, column)}" for column in columns(own) if column[0] == kind))
        for kind, title in (("backend", "backends"), ("family", "families"))
    ]
    told = "\n".join(
        [f"- {name}: {note}" for name, note in notes(own).items()]
        + [f"- {reason} ({', '.join(asked)})" for reason, asked in refusals(own).items()]
    )
    return table(("", "with default options"), rows) + (f"\n{told}" if told else "")


def prose(docstring: str) -> str:
    """A docstring as Markdown."""
    text = re.sub(r":\w+:`[~.]?([^`]+)`", r"`\1`", docstring.strip())
    return text.replace("``", "`")


def meanings(options: type[EncodingOptions]) -> list[str]:
    """What the options mean, as their classes say it: the method's own, those of classes that it shares with others, those that all have."""
    found: list[str] = []
    for cls in options.__mro__[: options.__mro__.index(EncodingOptions) + 1]:
        told = cls.__dict__.get("__doc__") or ""
        # a class without a docstring is given its signature for one
        if told and not told.startswith(f"{cls.__name__}("):
            told = told.removeprefix("Options that every encoding has.").removeprefix("As for DAPE; ")
            found.append(" ".join(prose(re.sub(r"^As for :class:`\w+`; ", "", told)).split()))
    return found


def checks(entry: dict[str, Any] | None) -> list[str]:
    """A list of the foreign code that a method was compared with, the reason why there is none, and known deviations."""
    if entry is None:
        return ["Not yet."]
    lines = [_check(check) for check in entry["checked"]] or [f"None: {entry['reason']}."]
    lines += [f"- differs: {deviation}" for deviation in entry["deviations"]]
    return lines


def _check(check: dict[str, Any]) -> str:
    where = f" ({check['elsewhere']})" if check.get("elsewhere") else ""
    return f"- {check['package']} {check['version']}: {check['code']}; in {check['precision']}, to {check['tolerance']:g}{where}"


def index() -> str:
    """The page that lists all methods, where they run, and what they were checked against."""
    known = registered_encodings()
    listed = [
        (f"[`{name}`]({name}.md)", f"`{cls.card.formula}`", DEPENDS[cls.card.depends_on], cls.card.year, link(cls.card))
        for name, cls in known.items()
    ]
    asked = columns(list(answers()))
    where = [(f"[`{name}`]({name}.md)", *(cell(list(answers()), name, column) for column in asked)) for name in known]
    reasons = [f"- {name}: {note}" for name, note in notes(list(answers())).items()]
    reasons += [f"- {reason}: {', '.join(asked)}" for reason, asked in refusals(list(answers())).items()]
    entries = {name: entry for name, entry in foreign().items() if name in known}
    checked = [
        (f"[`{name}`]({name}.md)", check["package"], check["version"], check["code"], check["precision"])
        for name, entry in entries.items()
        for check in entry["checked"]
    ]
    unchecked = [(f"[`{name}`]({name}.md)", entry["reason"]) for name, entry in entries.items() if not entry["checked"]]
    parts = [
        "# Methods",
        f"{len(known)} methods. This folder is written by `make docs`; `hf-relpos show NAME` tells the same in a terminal.",
        table(("method", "formula", "depends on", "year", "paper"), listed),
        "## Where they run",
        "With default options and without gradients, found by asking (`hf-relpos matrix`): a backend that says no is not chosen, and refuses with its reason when it is asked for. Where "
        "one kind of model is named, it runs there alone.",
        table(("", *(name for _, name in asked)), where),
        "\n".join(reasons),
        "## Checked against other people's code",
        "Every method is checked against its formula, written a second time as a double loop. Beyond that, numbers of these packages were stored and are "
        "compared with ours in `tests/test_foreign.py`:",
        table(("method", "package", "version", "code", "precision"), checked),
        "## Not checked against other people's code",
        table(("method", "why"), unchecked),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def pages() -> dict[Path, str]:
    """All pages by path."""
    return {FOLDER / "README.md": index(), **{FOLDER / f"{name}.md": page(name) for name in registered_encodings()}}


def picture_paths() -> dict[str, Path]:
    """Where the picture of each method stands."""
    return {name: FOLDER / f"{name}.svg" for name in registered_encodings()}
