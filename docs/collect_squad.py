"""Gather the metrics of finished runs of training/qa.py into docs/results/squad_minilm.json.

python docs/collect_squad.py --arm "NAME=FOLDER" ... --search "NAME=FOLDER" ...
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

TARGET = Path(__file__).parent / "results" / "squad_minilm.json"


def processor() -> str:
    """The CPU's name, as the system tells it, and the number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} ({os.cpu_count()} cores)"


def gather(named: list[str]) -> list[dict[str, Any]]:
    """Name, metrics and number of steps of each ``NAME=FOLDER``."""
    found = []
    for text in named:
        name, _, folder = text.rpartition("=")
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        metrics = json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))
        found.append({"name": name, "steps": max(entry["step"] for entry in log), "metrics": metrics})
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--search", action="append", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    environment = {
        "CPU": processor(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_relpos": hf_relpos.__version__,
    }
    content = {"environment": environment, "arms": gather(arguments.arm), "search": gather(arguments.search)}
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
