"""Rows of features to tensors: padding to the longest of a batch, and packing of several documents in one row. Pure functions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

# what fills up each column beside the tokenizer's own padding; other columns get 0
_FILL = {"labels": -100, "decoder_labels": -100}


def pad(
    batch: Sequence[dict[str, Any]],
    tokenizer: Any,
    names: Sequence[str] | None = None,
    *,
    max_length: int | None = None,
    pad_to_multiple_of: int = 8,
    side: str = "right",
) -> dict[str, torch.Tensor]:
    """One batch as tensors ``[B, T]``: each column of lists padded to the longest row, rounded up to a multiple of ``pad_to_multiple_of`` but not
    beyond ``max_length``, where a table of positions may end; columns of numbers become ``[B]``.

    ``names``: the columns wanted, all of the first row's unless given. ``input_ids`` is filled with the padding token, ``labels`` with
    -100, others with 0; ``attention_mask`` is made when there is none. ``side``: where padding goes, "left" for generation.
    """
    names = list(batch[0]) if names is None else [name for name in names if name in batch[0]]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        first = batch[0][name]
        if not isinstance(first, (list, tuple)):
            tensors[name] = torch.tensor([row[name] for row in batch])
            continue
        longest = max(len(row[name]) for row in batch)
        rounded = math.ceil(longest / pad_to_multiple_of) * pad_to_multiple_of
        length = rounded if max_length is None else max(longest, min(rounded, max_length))
        fill = tokenizer.pad_token_id if name.endswith("input_ids") else _FILL.get(name, 0)
        tensors[name] = torch.tensor([_filled(list(row[name]), length, fill, side) for row in batch])
        if name == "input_ids" and "attention_mask" not in names and "position_ids" not in names:
            tensors["attention_mask"] = torch.tensor([_filled([1] * len(row[name]), length, 0, side) for row in batch])
    return tensors


def _filled(values: list[int], length: int, fill: int, side: str) -> list[int]:
    rest = [fill] * (length - len(values))
    return rest + values if side == "left" else values + rest


def prompted(prompt: Sequence[int], target: Sequence[int]) -> dict[str, list[int]]:
    """The row of a decoder that learns to write ``target`` after ``prompt``: the loss is on the target only."""
    return {"input_ids": [*prompt, *target], "labels": [-100] * len(prompt) + [*target]}


def blocks(documents: Iterable[Sequence[int]], length: int) -> Iterator[dict[str, list[int]]]:
    """The tokens of all documents as one text, cut into rows of ``length``; what is left over at the end is dropped.

    A row is ``input_ids`` and ``labels``, the same tokens. Documents see each other: put an end token after each.
    """
    rest: list[int] = []
    for document in documents:
        rest.extend(document)
        while len(rest) >= length:
            ids, rest = rest[:length], rest[length:]
            yield {"input_ids": ids, "labels": list(ids)}


def pack(rows: Iterable[dict[str, list[int]]], length: int) -> Iterator[dict[str, list[int]]]:
    """Rows put one after the other into rows of at most ``length``, in their order, each row whole.

    Besides ``input_ids`` and ``labels`` (those of a document's first token -100, for none is predicted across a border) a packed row has
    ``position_ids`` that begin anew with each document, by which the models of hf_relpos and transformers keep documents apart when no
    ``attention_mask`` is given. A row longer than ``length`` is a ValueError.
    """
    packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        ids = list(row["input_ids"])
        if len(ids) > length:
            raise ValueError(f"a row of {len(ids)} tokens does not fit into packed rows of {length}")
        if not ids:
            continue
        if len(packed["input_ids"]) + len(ids) > length:
            yield packed
            packed = {"input_ids": [], "labels": [], "position_ids": []}
        packed["input_ids"] += ids
        packed["labels"] += [-100, *list(row.get("labels", ids))[1:]]
        packed["position_ids"] += list(range(len(ids)))
    if packed["input_ids"]:
        yield packed


def pad_packed(
    batch: Sequence[dict[str, list[int]]], tokenizer: Any, length: int | None = None
) -> dict[str, torch.Tensor]:
    """A batch of packed rows as tensors without ``attention_mask``; what fills a row up is one more document, without targets."""
    length = length or max(len(row["input_ids"]) for row in batch)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in batch:
        rest = length - len(row["input_ids"])
        columns["input_ids"].append(row["input_ids"] + [tokenizer.pad_token_id] * rest)
        columns["labels"].append(row["labels"] + [-100] * rest)
        columns["position_ids"].append(row["position_ids"] + list(range(rest)))
    return {name: torch.tensor(values) for name, values in columns.items()}
