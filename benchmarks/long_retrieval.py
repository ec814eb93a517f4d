"""Whether a converted encoder reads what the original cannot: find the document that a passage comes from, when the passage lies behind token 512.

    hf-relpos convert MODEL CONVERTED --rel-pos t5 --fit TEXT
    python benchmarks/long_retrieval.py --converted CONVERTED --documents REVIEWS.jsonl.gz MEETINGS.jsonl.gz

Rows of the documents have a string "text", or "meeting_transcripts" as QMSum has them, whose turns are joined. A row gives up to --stretches documents of at most
--length tokens one after the other, of which --count long enough are drawn. From each a passage of --passage tokens is drawn that starts behind what the
original reads. Documents and passages are the normalised means of last hidden states; a passage finds the document of the largest cosine.

Arms: the original on the beginning of a document; the original on windows of its own length, averaged over tokens; and each converted model on the whole document and,
to tell reading on from being another model, on the beginning. Passages are embedded by the arm's own model. Recall@1, its standard error, recall@5 and the mean reciprocal
rank go to standard output, with --output to a JSON file too.
"""

import argparse
import gzip
import json
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from conversion import minilm
from machine import describe_machine, versions
from result_files import write_atomically
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from hf_relpos.conversion.similarity import hidden_states
from hf_relpos.conversion.texts import TokenStream, tokenise


def text_of(row: Any, place: str) -> str:
    """The text of a row; ValueError that names its ``place`` when it has none."""
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    if isinstance(row, dict) and isinstance(row.get("meeting_transcripts"), list):
        return "\n".join(f"{turn['speaker']}: {turn['content']}" for turn in row["meeting_transcripts"])
    raise ValueError(f'{place}: the row has neither a string "text" nor "meeting_transcripts"')


def documents_of(path: Path, tokenizer: Any, *, width: int, shortest: int, stretches: int) -> list[list[int]]:
    """Ids without special tokens of every document of ``shortest`` to ``width`` ids in a file of JSON lines."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    found = []
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            text = text_of(json.loads(line), f"{path}, line {number}")
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            parts = [ids[start : start + width] for start in range(0, len(ids), width)]
            found += [part for part in parts[:stretches] if len(part) >= shortest]
    return found


class Embedder:
    """Normalised means of last hidden states, with the tokenizer's special tokens around every text."""

    def __init__(self, model: Any, stream: TokenStream):
        self.model = model.eval()
        self.stream = stream

    def _mean(self, ids: Sequence[int]) -> Tensor:
        row = torch.tensor([[*self.stream.before, *ids, *self.stream.after]])
        return hidden_states(self.model, row)[0].mean(0)

    @torch.no_grad()
    def whole(self, ids: Sequence[int]) -> Tensor:
        """A text read at once, ``[E]``."""
        return torch.nn.functional.normalize(self._mean(ids), dim=-1)

    @torch.no_grad()
    def by_windows(self, ids: Sequence[int], width: int) -> Tensor:
        """A text read in windows of ``width`` ids, each weighted by its ids, ``[E]``."""
        windows = [ids[start : start + width] for start in range(0, len(ids), width)]
        total = torch.stack([len(window) * self._mean(window) for window in windows]).sum(0)
        return torch.nn.functional.normalize(total, dim=-1)


def found_at(passages: Tensor, documents: Tensor) -> Tensor:
    """The rank, from 1, of document ``n`` among ``documents`` ``[N, E]`` for passage ``n`` of ``[N, E]``; ties count against it."""
    scores = passages @ documents.T
    return (scores >= scores.diagonal()[:, None]).sum(-1)


def measure(ranks: Tensor) -> dict[str, float]:
    """Recall@1 with its standard error, recall@5 and the mean reciprocal rank, from ranks ``[N]``."""
    first = float((ranks == 1).double().mean())
    return {
        "recall@1": first,
        "standard error": math.sqrt(first * (1 - first) / len(ranks)),
        "recall@5": float((ranks <= 5).double().mean()),
        "MRR": float((1 / ranks.double()).mean()),
    }


def embedded(how: Callable[[Sequence[int]], Tensor], texts: list[list[int]], what: str) -> Tensor:
    """All ``texts``, ``[N, E]``."""
    return torch.stack([how(ids) for ids in tqdm(texts, desc=what, leave=False, unit="text")])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents", type=Path, nargs="+", required=True, help="files of JSON lines, each measured by itself"
    )
    parser.add_argument("--converted", nargs="+", required=True, help="folders of converted models")
    parser.add_argument("--model", help="folder of the original; MiniLM unless given")
    parser.add_argument("--count", type=int, default=200, help="documents of a file")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a document at most")
    parser.add_argument("--passage", type=int, default=64, help="tokens of a passage")
    parser.add_argument("--stretches", type=int, default=2, help="documents of a row at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    arguments = parser.parse_args(argv)
    for name in ("count", "passage", "stretches"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} is not valid: it must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every arm on every file and print the tables."""
    arguments = parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.monotonic()
    source = arguments.model or minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    original = AutoModel.from_pretrained(source)
    own = original.config.max_position_embeddings
    stream = tokenise(["a"], tokenizer, 1)
    beginning = stream.width(own)
    if arguments.length <= own:
        raise SystemExit(f"--length {arguments.length} is not valid: it must be more than the original's {own}")
    models = {folder: Embedder(AutoModel.from_pretrained(folder), stream) for folder in arguments.converted}
    first = Embedder(original, stream)
    rows = []
    for path in arguments.documents:
        found = documents_of(
            path,
            tokenizer,
            width=stream.width(arguments.length),
            shortest=beginning + arguments.passage,
            stretches=arguments.stretches,
        )
        if len(found) < arguments.count:
            raise SystemExit(
                f"{path} has {len(found)} documents that are long enough, fewer than --count {arguments.count}"
            )
        draw = random.Random(arguments.seed)
        documents = draw.sample(found, arguments.count)
        starts = [draw.randint(beginning, len(ids) - arguments.passage) for ids in documents]
        passages = [ids[at : at + arguments.passage] for ids, at in zip(documents, starts, strict=True)]
        beginnings = [ids[:beginning] for ids in documents]
        asked = embedded(first.whole, passages, "passages")
        arms = {
            f"original, first {own} tokens": (asked, embedded(first.whole, beginnings, "beginnings")),
            f"original, windows of {own} averaged": (
                asked,
                embedded(lambda ids: first.by_windows(ids, beginning), documents, "windows"),
            ),
        }
        for folder, model in models.items():
            name = Path(folder).name
            asked = embedded(model.whole, passages, f"{name}: passages")
            arms[f"{name}, first {own} tokens"] = (asked, embedded(model.whole, beginnings, f"{name}: beginnings"))
            arms[f"{name}, {arguments.length} tokens"] = (asked, embedded(model.whole, documents, f"{name}: documents"))
        lengths = sorted(len(ids) for ids in documents)
        print(
            f"\n{path.name}: {len(documents)} documents of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}\n"
        )
        print("| model | recall@1 | recall@5 | MRR |\n| --- | --- | --- | --- |")
        for name, (asked, documents_) in arms.items():
            numbers = measure(found_at(asked, documents_))
            rows.append({"documents": path.name, "median": lengths[len(lengths) // 2], "arm": name, **numbers})
            print(
                f"| {name} | {numbers['recall@1']:.3f} ± {numbers['standard error']:.3f} | {numbers['recall@5']:.3f} | {numbers['MRR']:.3f} |",
                flush=True,
            )
    if arguments.output:
        about = {
            "command": shlex.join(
                ["python", "benchmarks/long_retrieval.py", *(sys.argv[1:] if argv is None else argv)]
            ),
            "machine": vars(describe_machine("cpu")),
            "versions": versions(),
            "seconds": time.monotonic() - started,
        }
        write_atomically(arguments.output, json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
