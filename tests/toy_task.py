"""The smallest training script: is a text about rivers? It shows what a task must bring, and that the rest is shared."""

from dataclasses import dataclass
from functools import partial

from accelerate import Accelerator
from arguments import option
from batches import Stream
from collating import pad
from loop import LoopArguments
from models import ModelArguments, check_length, load_model, load_tokenizer
from prediction import predict
from results import ResultArguments
from scores import score
from script import Evaluation, Task, main
from sources import DataArguments, text_of, value_of


@dataclass
class ToyArguments(ModelArguments, DataArguments, LoopArguments, ResultArguments):
    """What the toy task must be told."""

    text_field: str = option("text", "field of a row that holds the text")
    max_length: int = option(16, "tokens of a text")


def prepare(arguments: ToyArguments, accelerator: Accelerator) -> Task:
    """Read texts and their classes."""

    def features(part):
        for where, row in arguments.rows(part):
            text = text_of(row, arguments.text_field, where)
            ids = tokenizer(text, truncation=True, max_length=arguments.max_length)["input_ids"]
            yield {"input_ids": ids, "labels": int(value_of(row, "label", where))}

    texts = (text_of(row, arguments.text_field, where) for where, row in arguments.rows("train"))
    tokenizer = load_tokenizer(arguments, lambda: texts)
    model = load_model(arguments, "SequenceClassification", tokenizer, num_labels=2)
    check_length(model, arguments.max_length)
    rows = list(features("train"))
    if arguments.streaming:
        rows = Stream(lambda: features("train"), arguments.rows_identity("train"), arguments.shuffle_buffer)
    eval_rows = list(features("validation"))
    collate = partial(pad, tokenizer=tokenizer, max_length=arguments.max_length)

    def evaluate(model, accelerator):
        def classes(model, inputs, batch):
            return model(**inputs).logits.argmax(-1).tolist()

        found = predict(model, accelerator, eval_rows, collate, classes, arguments.eval_batch_size)
        return Evaluation(score("classification", found, [row["labels"] for row in eval_rows]), found)

    return Task(
        name="text-classification",
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        collate=collate,
        evaluate=evaluate,
        headline="accuracy",
        dataset=arguments.dataset_name,
        eval_rows=eval_rows,
    )


if __name__ == "__main__":
    main(ToyArguments, prepare, __doc__)
