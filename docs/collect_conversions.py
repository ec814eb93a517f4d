"""Gather what benchmarks/conversion.py wrote with --output into docs/results/conversion_minilm.json, beside the rows that are there.

python docs/collect_conversions.py FILE ... --minutes "ENCODING=MINUTES" ...
"""

import argparse
import json
from pathlib import Path
from typing import Any

from collect_runs import RESULTS, merged, processor

TARGET = RESULTS / "conversion_minilm.json"
MEASURED = ("cosine", "Spearman")


def name_of(rel_pos: dict[str, Any]) -> str:
    """An encoding in a few words: its type and the options that were asked for."""
    kept = {
        key: value
        for key, value in rel_pos.items()
        if key in ("max_distance", "direction") and value != "bidirectional"
    }
    if rel_pos["type"] == "t5":
        kept.pop("max_distance", None)
    return " ".join([f"`{rel_pos['type']}`", *(str(value).replace("_", "-") for value in kept.values())])


def row_of(row: dict[str, Any], minutes: dict[str, float]) -> dict[str, Any]:
    """What is told of a measured model: its encoding, steps of distillation, minutes of one core of which CPU, and similarities."""
    report, text = row.get("conversion"), row["encoding"].removesuffix(", distilled")
    distilled = row.get("distillation") or (report or {}).get("distillation") or {}
    if report is not None or text.startswith("{"):
        text = name_of(json.loads(text) if report is None else report["rel_pos"])
    steps = distilled.get("steps", 0)
    name = text if not steps else f"{text}, distilled"
    spent = minutes.get(name, row["cpu seconds"] / 60 if "cpu seconds" in row else None)
    found = {key: value for key, value in row.items() if key.startswith(MEASURED)}
    return {"name": name, "steps": steps, "minutes": spent, "CPU": processor(), "metrics": found}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--minutes", action="append", default=[], metavar="NAME=MINUTES", help="of one core, of a row by its name"
    )
    arguments = parser.parse_args()
    minutes = {name: float(value) for name, value in (text.rsplit("=", 1) for text in arguments.minutes)}
    stored = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    environment, arms = stored.get("environment", {}), stored.get("arms", [])
    for path in arguments.files:
        found = json.loads(path.read_text(encoding="utf-8"))
        environment = {
            "threads": found["threads"],
            **found["versions"],
            "tokens to fit on": found["tokens"],
        }
        arms = merged(arms, [row_of(row, minutes) for row in found["rows"]])
    TARGET.write_text(json.dumps({"environment": environment, "arms": arms}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
