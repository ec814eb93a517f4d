"""The main job from end to end, without a network: `make demo`.

A real pretrained BERT (MiniLM, from a pip package) gets a relative encoding in place of its 512 absolute positions, learns to answer questions
that the project invents, is saved, and then read by a new process, which answers questions about contexts of 2,000 tokens: four times
what the original model can read.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from arguments import parse_arguments
from models import load_model, resolve_model
from qa import QAArguments, evaluate, prepare
from qa_data import features, read_examples
from script import run
from synthetic_qa import make_rows
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, set_seed
from transformers.utils import logging

FOLDER = Path("outputs/demo")
CONFIG = Path(__file__).parent / "configs" / "demo.yaml"
# portraits and scenes of a context: most are short, every 31st is longer than the original model's 512 positions
SHORT_AND_LONG = (*((2, 0), (3, 1), (4, 0), (2, 4), (3, 0)) * 6, (4, 42))
LONG = ((4, 160),)

READ = """
import json, sys
import hf_relpos
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder, questions = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder)
for line in open(questions, encoding="utf-8"):
    row = json.loads(line)
    best = hf_relpos.answer(model, tokenizer, row["question"], row["context"], max_answer_length=6)[0]
    print(json.dumps({"text": best.text, "start": best.start}), flush=True)
"""


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write ``rows`` to ``path`` as JSON lines and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def score_untrained(arguments: QAArguments) -> dict[str, float]:
    """Metrics of the model that training starts from: pretrained, but with a fresh encoding and a fresh head."""
    set_seed(arguments.seed)
    model = load_model(arguments, "QuestionAnswering").eval()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(arguments.model))
    examples = read_examples(str(arguments.validation_file), split="validation")
    windows = features(
        examples,
        tokenizer,
        max_length=arguments.max_length,
        doc_stride=arguments.doc_stride,
        for_training=False,
    )
    with torch.no_grad():
        return evaluate(
            model, Accelerator(), examples=examples, windows=windows, tokenizer=tokenizer, arguments=arguments
        ).metrics


def read_in_a_new_process(folder: Path, questions: Path) -> list[dict[str, Any]]:
    """Answers to the rows of ``questions`` by the model saved in ``folder``, loaded where nothing of this process is left."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder), str(questions)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_right(given: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether an answer is the reference of ``row``, at its place."""
    reference = row["answers"]
    return given["start"] == reference["answer_start"][0] and given["text"] == reference["text"][0]


def try_the_original(source: str, row: dict[str, Any]) -> str:
    """What happens when the original model is given the tokens of ``row``."""
    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForQuestionAnswering.from_pretrained(source)
    inputs = tokenizer(row["question"], row["context"], return_tensors="pt", verbose=False)
    try:
        model(**inputs)
    except (RuntimeError, IndexError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "it ran"


def main() -> None:
    """Run the demonstration; prints what it does and what came out."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    data = FOLDER / "data"
    train = write_rows(data / "train.jsonl", make_rows(1800, seed=0, shapes=SHORT_AND_LONG))
    validation = write_rows(data / "validation.jsonl", make_rows(160, seed=1, shapes=SHORT_AND_LONG, held_out=True))
    long_rows = make_rows(20, seed=2, shapes=LONG, held_out=True)
    questions = write_rows(data / "long.jsonl", long_rows)
    files = {"train_file": train, "validation_file": validation, "output_dir": FOLDER / "model"}
    flags = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    arguments = parse_arguments(QAArguments, ["--config", str(CONFIG), *flags, *sys.argv[1:]])

    print(f"1. {arguments.model} gets {arguments.rel_pos!r} in place of its own positions; untrained it scores")
    before = score_untrained(arguments)
    print(f"   exact match {before['exact_match']:.1f}, F1 {before['f1']:.1f}, on {before['total']:.0f} questions")
    print(f"2. it learns from 1,800 invented questions ({train})")
    after = run(arguments, prepare)

    print("3. a new process loads what was saved and reads contexts of about 2,000 tokens")
    answers = read_in_a_new_process(FOLDER / "model", questions)
    source = resolve_model(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    pairs = list(zip(answers, long_rows, strict=True))
    right = [(given, row) for given, row in pairs if is_right(given, row)]
    shown, row = (right or pairs)[0]
    length = len(tokenizer(row["question"], row["context"], verbose=False)["input_ids"])
    print(
        f"   {len(right)} of {len(pairs)} questions answered exactly; the first {'of these' if right else 'of them'}, {length} tokens:"
    )
    print(f"   Q: {row['question']}  A: {shown['text']}  (reference: {row['answers']['text'][0]})")
    print(f"   the original model on the same tokens: {try_the_original(source, row)}")
    print(
        f"\nexact match {before['exact_match']:.1f} -> {after['exact_match']:.1f}, F1 {before['f1']:.1f} -> {after['f1']:.1f}; "
        f"model and card in {FOLDER / 'model'}; {time.perf_counter() - started:.0f} s"
    )
    if after["f1"] <= before["f1"] + 10 or not right:
        sys.exit("the demonstration failed: training did not help, or no long question was answered")


if __name__ == "__main__":
    main()
