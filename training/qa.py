"""Fine-tune extractive question answering on SQuAD-format data.

    python training/qa.py --config training/configs/squad_minilm.yaml --rel_pos t5 --absolute drop \\
        --train_file TRAIN.jsonl.gz --validation_file DEV.jsonl.gz --output_dir outputs/squad_t5
    accelerate launch training/qa.py --model bert-base-uncased --dataset squad --rel_pos relative_key_query --absolute keep

Writes to ``output_dir``: the best model with tokenizer and model card, metrics.json, predictions.json, log.jsonl, checkpoints, runs/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from arguments import option
from loop import LoopArguments
from models import ModelArguments, check_length, load_model, load_tokenizer
from prediction import predict
from qa_data import Example, collate, features, predictions_from_logits, read_examples
from results import ResultArguments
from scores import score
from script import Evaluation, Task, main
from sources import DataArguments, DataError


@dataclass
class QAArguments(ModelArguments, DataArguments, LoopArguments, ResultArguments):
    """What the question-answering task must be told."""

    max_length: int = option(384, "tokens of a window")
    doc_stride: int = option(128, "tokens that neighbouring windows share")
    version_2: bool = option(False, "some questions have no answer")
    n_best: int = option(20, "answers written for each question")
    max_answer_length: int = option(30, "tokens of the longest answer")
    null_score_diff_threshold: float = option(
        0.0, "by how much the score of no answer must exceed that of the best answer to be predicted"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_at_least(1, "n_best", "max_answer_length")
        self.need("validation_share", self.validation_share is None, "left out: name a file or data set to evaluate on")
        if not 0 < self.doc_stride < self.max_length:
            raise ValueError(
                f"doc_stride={self.doc_stride} is not valid: it must be between 1 and max_length={self.max_length}"
            )


def evaluate(
    model: Any,
    accelerator: Accelerator,
    *,
    examples: Sequence[Example],
    windows: Sequence[dict[str, Any]],
    tokenizer: Any,
    arguments: QAArguments,
) -> Evaluation:
    """Metrics of ``model`` over ``windows``, and its answers by the ids of the questions."""

    def logits(model: Any, inputs: dict[str, torch.Tensor], batch: Sequence[dict[str, Any]]) -> list[Any]:
        output = model(**inputs)
        both = torch.stack((output.start_logits, output.end_logits), 1).float().cpu()
        return [both[row, :, : len(window["input_ids"])].clone() for row, window in enumerate(batch)]

    found = predict(
        model,
        accelerator,
        windows,
        partial(collate, tokenizer=tokenizer, max_length=arguments.max_length),
        logits,
        arguments.eval_batch_size,
        unit="window",
    )
    predictions = predictions_from_logits(
        examples,
        windows,
        [start for start, _ in found],
        [end for _, end in found],
        n_best=arguments.n_best,
        max_answer_length=arguments.max_answer_length,
        version_2=arguments.version_2,
        null_threshold=arguments.null_score_diff_threshold,
    )
    metrics = score(
        "squad",
        [{"id": name, "text": prediction["text"]} for name, prediction in predictions.items()],
        [{"id": example.id, "answers": list(example.answers)} for example in examples],
        version_2=arguments.version_2,
    )
    return Evaluation(metrics, predictions)


def prepare(arguments: QAArguments, accelerator: Accelerator) -> Task:
    """Read the data, load the model, and cut contexts into windows."""
    train_examples, eval_examples = (
        read_examples(arguments.source(part), split=split, limit=arguments.limit(part), config=arguments.dataset_config)
        for part, split in (("train", arguments.train_split), ("validation", arguments.validation_split))
    )
    unanswerable = sum(not example.answers for example in (*train_examples, *eval_examples))
    if unanswerable and not arguments.version_2:
        raise DataError(f"{unanswerable} questions have no answer: use --version_2 true, or data in which all have one")
    tokenizer = load_tokenizer(arguments)
    model = load_model(arguments, "QuestionAnswering", tokenizer)
    check_length(model, arguments.max_length)
    shape = {"max_length": arguments.max_length, "doc_stride": arguments.doc_stride}
    train_windows = features(train_examples, tokenizer, for_training=True, **shape)
    eval_windows = features(eval_examples, tokenizer, for_training=False, **shape)
    accelerator.print(
        f"{len(train_examples)} questions in {len(train_windows)} windows to train on, {len(eval_examples)} in {len(eval_windows)} to evaluate"
    )
    return Task(
        name="question-answering",
        model=model,
        tokenizer=tokenizer,
        rows=train_windows,
        collate=partial(collate, tokenizer=tokenizer, max_length=arguments.max_length),
        evaluate=partial(
            evaluate, examples=eval_examples, windows=eval_windows, tokenizer=tokenizer, arguments=arguments
        ),
        headline="f1",
        dataset=arguments.dataset_name,
        eval_rows=eval_examples,
    )


if __name__ == "__main__":
    main(QAArguments, prepare, __doc__)
