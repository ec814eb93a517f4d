"""A model over evaluation rows: batches of similar length, dealt out to the processes, the results gathered in the order of the rows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from collating import pad
from tqdm.auto import tqdm


def predict(
    model: Any,
    accelerator: Accelerator,
    rows: Sequence[dict[str, Any]],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]],
    answer: Callable[[Any, dict[str, torch.Tensor], Sequence[dict[str, Any]]], Sequence[Any]],
    batch_size: int,
    *,
    unit: str = "row",
) -> list[Any]:
    """What ``answer(model, inputs, batch)`` says of each row, one thing a row (on the CPU, and such that it can be pickled), in the order of ``rows``,
    on every process.

    All processes call the model equally often, as sharded models demand; the rows of a process that has none left are forgotten.
    """
    # long rows together, so that little is padded
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    processes, mine = accelerator.num_processes, accelerator.process_index
    # what wraps a model for training is not made for evaluation
    model = accelerator.unwrap_model(model)
    bar = tqdm(
        total=len(rows), desc="evaluating", unit=unit, leave=False, disable=not accelerator.is_local_main_process
    )
    found: list[tuple[int, Any]] = []
    with torch.no_grad():
        for first in range(0, len(batches), processes):
            has_one = first + mine < len(batches)
            chosen = batches[first + mine if has_one else first]
            batch = [rows[i] for i in chosen]
            inputs = {name: tensor.to(accelerator.device) for name, tensor in collate(batch).items()}
            answers = answer(model, inputs, batch)
            if has_one:
                found.extend(zip(chosen, answers, strict=True))
            bar.update(sum(map(len, batches[first : first + processes])))
    bar.close()
    everyone = gather_object(found) if processes > 1 else found
    by_row = dict(everyone)
    return [by_row[i] for i in range(len(rows))]


def generate(
    model: Any,
    accelerator: Accelerator,
    rows: Sequence[dict[str, Any]],
    tokenizer: Any,
    batch_size: int,
    *,
    max_length: int | None = None,
    **settings: Any,
) -> list[str]:
    """The text that ``model`` writes for the ``input_ids`` of each row: from them by an encoder and a decoder, after them by a decoder alone.

    ``max_length``: how many ``input_ids`` the model reads. ``settings`` of ``model.generate`` override those of ``model.generation_config``.
    """
    # what wraps a model on several processes has no config
    two = bool(accelerator.unwrap_model(model).config.is_encoder_decoder)

    def collate(batch: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        side = "right" if two else "left"
        return pad(batch, tokenizer, ("input_ids",), max_length=max_length, side=side)

    def write(model: Any, inputs: dict[str, torch.Tensor], batch: Sequence[dict[str, Any]]) -> list[str]:
        found = model.generate(**inputs, **settings, synced_gpus=accelerator.num_processes > 1)
        # what stands there from the beginning: the token that starts a text, or the prompt
        given = 1 if two else inputs["input_ids"].shape[1]
        return tokenizer.batch_decode(found[:, given:], skip_special_tokens=True)

    return predict(model, accelerator, rows, collate, write, batch_size)
