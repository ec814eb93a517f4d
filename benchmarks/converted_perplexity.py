"""What a conversion does to a language model: its perplexity by length, beside the original's at the lengths that the original reads.

    hf-relpos convert MODEL CONVERTED --rel-pos t5 --fit TRAIN
    python benchmarks/converted_perplexity.py --model MODEL --converted CONVERTED --text VALIDATION --lengths 128 256 512 1024

The text is cut into windows of each length; every token of a window but the first counts. All lengths read the same tokens, so that numbers of one column differ by
the positions and by how much of a text stands before a token. The table goes to standard output, with --output all numbers to a JSON file too.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, versions
from result_files import write_atomically
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from hf_relpos.conversion.texts import BATCH_TOKENS, tokenise


@torch.no_grad()
def perplexity(model: Any, ids: Tensor) -> float:
    """``exp`` of the mean negative log-likelihood over all tokens but the first of each row of ``ids`` ``[N, T]``."""
    total = 0.0
    for rows in ids.split(max(1, BATCH_TOKENS // ids.shape[1])):
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        total += float(loss) * rows[:, 1:].numel()
    return math.exp(total / ids[:, 1:].numel())


def reads(model: Any, length: int) -> bool:
    """Whether a table of positions, if the model still uses one, has ``length`` rows."""
    has_table = getattr(model.config, "absolute", "keep") == "keep"
    return not has_table or length <= model.config.max_position_embeddings


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the original")
    parser.add_argument("--converted", nargs="+", required=True, help="folders of converted models")
    parser.add_argument("--text", required=True, help="text that neither training nor conversion has seen")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024], help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens to read at each length")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    arguments = parser.parse_args(argv)
    for length in arguments.lengths:
        if not 2 <= length <= arguments.tokens:
            parser.error(f"--lengths {length} is not valid: it must be between 2 and --tokens {arguments.tokens}")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the original and every converted model and print the table."""
    arguments = parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    ids = torch.tensor(tokenise(arguments.text, tokenizer, arguments.tokens).ids)
    if len(ids) < max(arguments.lengths):
        raise SystemExit(
            f"the text {arguments.text} has {len(ids)} tokens, fewer than --lengths {max(arguments.lengths)}"
        )
    print("| model |", " | ".join(f"{length:,}" for length in arguments.lengths), "|")
    print("| --- " * (1 + len(arguments.lengths)) + "|")
    rows = []
    for folder in (arguments.model, *arguments.converted):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        found = {
            length: perplexity(model, ids[: len(ids) // length * length].view(-1, length))
            for length in arguments.lengths
            if reads(model, length)
        }
        rows.append({"model": Path(folder).name, "perplexity": found})
        cells = [f"{found[length]:.2f}" if length in found else "cannot" for length in arguments.lengths]
        print("|", " | ".join([Path(folder).name, *cells]), "|", flush=True)
    if arguments.output:
        about = {
            "command": shlex.join(
                ["python", "benchmarks/converted_perplexity.py", *(sys.argv[1:] if argv is None else argv)]
            ),
            "machine": vars(describe_machine("cpu")),
            "versions": versions(),
            "seconds": time.monotonic() - started,
            "tokens": len(ids),
        }
        write_atomically(arguments.output, json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
