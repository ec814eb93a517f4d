"""Gather the metrics of finished runs of a script of training/ into docs/results/TOPIC.json, beside those that are there.

python docs/collect_runs.py TOPIC --arm "NAME=FOLDER" ... --search "NAME=FOLDER" ...
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_relpos

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The CPU's name, as the system tells it, and the number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({os.cpu_count()} cores)"


def gather(text: str) -> dict[str, Any]:
    """Name, metrics, steps and minutes of ``NAME=FOLDER`` or ``NAME=FOLDER=MINUTES``."""
    name, folder, *minutes = text.split("=")
    log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
    found = {"name": name, "steps": max(entry["step"] for entry in log), "metrics": metrics}
    return {**found, "minutes": float(minutes[0])} if minutes else found


def merged(stored: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``stored`` with runs of the same name replaced by those ``found``, and new ones at the end."""
    by_name = {run["name"]: run for run in (*stored, *found)}
    return list(by_name.values())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("topic", help="name of the file in docs/results")
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME=FOLDER[=MINUTES]", help="with minutes of one core"
    )
    parser.add_argument("--search", action="append", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    target = RESULTS / f"{arguments.topic}.json"
    stored = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    environment = {
        "CPU": processor(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_relpos": hf_relpos.__version__,
    }
    content: dict[str, Any] = {"environment": environment}
    for part, given in (("arms", arguments.arm), ("search", arguments.search)):
        runs = merged(stored.get(part, []), [gather(text) for text in given])
        if runs or part == "arms":
            content[part] = runs
    RESULTS.mkdir(exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
