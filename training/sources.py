"""Rows from a local file or a data set of the Hub, each with the place where it stands, so that whatever is wrong with it can be named.

A file is read by its extension, one row at a time (JSON but for .jsonl as a whole): .json, .jsonl, .csv, .tsv, .parquet, .conllu, .txt, each also .gz.
"""

import csv
import functools
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from arguments import Arguments, option
from checkpoints import RunError

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".conllu", ".txt")
SPLITS = ("train", "validation")


class DataError(ValueError):
    """A data set that cannot be used; the message names file, row and what is wrong."""


@dataclass
class DataArguments(Arguments):
    """Where rows come from."""

    train_file: str | None = option(None, f"{', '.join(FORMATS)}, each also .gz", "data")
    validation_file: str | None = option(None, "the same for evaluation", "data")
    dataset: str | None = option(None, "Hub id of a data set, instead of files", "data")
    dataset_config: str | None = option(None, "which configuration of the data set", "data")
    train_split: str = option("train", "its split to train on", "data")
    validation_split: str = option("validation", "its split to evaluate on", "data")
    validation_share: float | None = option(
        None, "without validation data: evaluate on so large a share of the training rows, the last of them", "data"
    )
    limit_train: int | None = option(None, "read so many training rows", "data")
    limit_eval: int | None = option(None, "read so many evaluation rows", "data")
    streaming: bool = option(
        False, "read training rows as they are needed, for data larger than memory; needs max_steps", "data"
    )
    shuffle_buffer: int = option(10_000, "rows of a stream that are shuffled together", "data")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_at_least(1, "limit_train", "limit_eval", "shuffle_buffer")
        share = self.validation_share
        self.need("validation_share", share is None or 0 < share < 1, "between 0 and 1")
        if share is not None and (self.validation_file or self.streaming):
            other = "validation_file" if self.validation_file else "streaming"
            raise ValueError(f"validation_share={share} and {other} exclude each other")

    @property
    def dataset_name(self) -> str:
        """What a model card calls the data that a model was evaluated on."""
        file = self.validation_file if self.validation_share is None else self.train_file
        return self.dataset or Path(file or "data").name

    def source(self, part: str) -> str:
        """The file or Hub id of ``part``, "train" or "validation"; :class:`RunError` when neither is given."""
        file = self.train_file if part == "train" or self.validation_share is not None else self.validation_file
        if file is None and self.dataset is None:
            raise RunError(f"no {part} data: give --{part}_file or --dataset")
        return file or str(self.dataset)

    def limit(self, part: str) -> int | None:
        """How many rows of ``part`` are wanted."""
        return self.limit_train if part == "train" else self.limit_eval

    def check_sources(self) -> None:
        """Raise :class:`RunError` when there is nothing to train or evaluate on."""
        for part in SPLITS:
            self.source(part)

    def rows(self, part: str, *, limited: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of ``part``, "train" or "validation", with their places; at most the number wanted unless ``limited`` is False."""
        shared = self.validation_share is not None
        split = self.train_split if part == "train" or shared else self.validation_split
        found = read_rows(self.source(part), split=split, config=self.dataset_config, streaming=self.streaming)
        if shared:
            found = itertools.islice(found, *((self._border,) if part == "train" else (self._border, None)))
        return itertools.islice(found, self.limit(part)) if limited else found

    @functools.cached_property
    def _border(self) -> int:
        """How many rows come before those that ``validation_share`` sets aside."""
        source = self.source("train")
        total = sum(1 for _ in read_rows(source, split=self.train_split, config=self.dataset_config))
        aside = round(total * float(self.validation_share or 0))
        if not 0 < aside < total:
            raise DataError(
                f"{source}: validation_share={self.validation_share} of {total} rows leaves none on one side"
            )
        return total - aside

    def rows_identity(self, part: str) -> str:
        """A text that is another one when the rows of ``part`` are others, read from the outside, for data that are streamed."""
        path = Path(self.source(part))
        what = [str(self.limit(part)), str(self.shuffle_buffer)]
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
            return "-".join([path.name, str(path.stat().st_size), digest.hexdigest()[:16], *what])
        return "-".join([str(self.dataset), str(self.dataset_config), self.train_split, *what])


def read_rows(
    source: str, *, split: str = "train", config: str | None = None, streaming: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of ``source``, a local file or the Hub id of a data set of which ``split`` is read, each with its place such as "a.jsonl, line 3".

    Raises :class:`DataError` that names the file and place of whatever cannot be read, and for a row that is no object.
    """
    for where, row in _rows(source, split, config, streaming):
        if not isinstance(row, dict):
            raise DataError(f"{where}: not an object but {type(row).__name__}")
        yield where, row


def _rows(source: str, split: str, config: str | None, streaming: bool) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if not path.exists():
        if kind in FORMATS or path.suffix == ".gz":
            raise DataError(f"{source}: there is no such file")
        yield from _hub_rows(source, split, config, streaming)
        return
    if kind not in FORMATS or not path.is_file():
        raise DataError(
            f"{source}: its format is unknown; valid: {', '.join(FORMATS)}, each also .gz, or the Hub id of a data set"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from _READERS[kind](source, file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None


def _lines(source: str, file: BinaryIO) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        where = f"{source}, line {number}"
        try:
            yield where, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text: {error}") from None


def _json_lines(source: str, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        where = f"{source}, line {number}"
        if line.strip():
            yield where, _parse(line, where)


def _json_rows(source: str, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    content = _parse(file.read(), source)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f"{source}: neither a list of rows nor an object {{'data': [...]}} with one")
    for number, row in enumerate(rows, 1):
        yield f"{source}, record {number}", row


def _table_rows(source: str, file: BinaryIO, delimiter: str) -> Iterator[tuple[str, Any]]:
    lines = _lines(source, file)
    # keeps line breaks inside quotes, and knows in which line a row ends
    reader = csv.reader((f"{line}\n" for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    try:
        for values in reader:
            where = f"{source}, line {reader.line_num}"
            if header is None:
                header = values
                if len(set(header)) != len(header):
                    raise DataError(f"{where}: a name of a column occurs twice: {', '.join(header)}")
            elif values:
                if len(values) != len(header):
                    raise DataError(f"{where}: {len(values)} values for the {len(header)} columns {', '.join(header)}")
                yield where, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num}: {error}") from None


def _parquet_rows(source: str, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        seekable = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
        for batch in pyarrow.parquet.ParquetFile(seekable).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{source}, row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def _conllu_rows(source: str, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Sentences of CoNLL-U as columns: ``tokens``, ``lemmas``, ``upos``, ``xpos``, ``feats``, ``head`` (1-based, 0 = root), ``deprel``, besides the
    comments' ``sent_id`` and ``text``. Lines of multi-word tokens and empty nodes are left out."""
    import conllu

    def sentence(block: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
        where = block[0][0]
        for place, line in block:
            if not line.startswith("#") and line.count("\t") != 9:
                raise DataError(f"{place}: {line.count(chr(9)) + 1} columns where CoNLL-U has 10")
        try:
            (parsed,) = conllu.parse("\n".join(line for _, line in block) + "\n\n")
        except (conllu.exceptions.ParseException, ValueError) as error:
            raise DataError(f"{where}: not valid CoNLL-U: {error}") from None
        words = [token for token in parsed if isinstance(token["id"], int)]
        columns = {
            "tokens": "form",
            "lemmas": "lemma",
            "upos": "upos",
            "xpos": "xpos",
            "head": "head",
            "deprel": "deprel",
        }
        row: dict[str, Any] = {name: [word[field] for word in words] for name, field in columns.items()}
        row["feats"] = ["|".join(f"{k}={v}" for k, v in (word["feats"] or {}).items()) or None for word in words]
        return where, {**{name: parsed.metadata.get(name) for name in ("sent_id", "text")}, **row}

    block: list[tuple[str, str]] = []
    for where, line in _lines(source, file):
        if line.strip():
            block.append((where, line))
        elif block:
            yield sentence(block)
            block = []
    if block:
        yield sentence(block)


_READERS = {
    ".json": _json_rows,
    ".jsonl": _json_lines,
    ".csv": lambda source, file: _table_rows(source, file, ","),
    ".tsv": lambda source, file: _table_rows(source, file, "\t"),
    ".parquet": _parquet_rows,
    ".conllu": _conllu_rows,
    ".txt": lambda source, file: ((where, {"text": line}) for where, line in _lines(source, file)),
}


def _hub_rows(source: str, split: str, config: str | None, streaming: bool) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    try:
        rows = datasets.load_dataset(source, name=config, split=split, streaming=streaming)
    except (OSError, ValueError, DatasetsError, HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"the data set {source!r} is neither a local file nor to be had from the Hub: {reason}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{source} ({split}), row {number}", row


def value_of(row: dict[str, Any], name: str, where: str) -> Any:
    """The field ``name`` of a row, "a.b" for b in a; :class:`DataError` lists the fields there are when it has none."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or value.get(part) is None:
            raise DataError(f"{where}: the field {name!r} is missing; fields: {', '.join(map(str, row))}")
        value = value[part]
    return value


def text_of(row: dict[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    """The same for a field that must hold text, which may have nothing in it only with ``empty``."""
    value = value_of(row, name, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: the field {name!r} is {type(value).__name__}, not text")
    if not empty and not value.strip():
        raise DataError(f"{where}: the field {name!r} is empty")
    check_characters(value, name, where)
    return value


def check_characters(value: str, name: str, where: str) -> None:
    """Raise :class:`DataError` when a text holds what no tokenizer can encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the field {name!r} holds half of a surrogate pair, which is no character") from None


def list_of(row: dict[str, Any], name: str, where: str, kind: type = str) -> list[Any]:
    """The same for a field that must hold a list whose members are of ``kind``."""
    value = value_of(row, name, where)
    if not isinstance(value, list):
        raise DataError(f"{where}: the field {name!r} is {type(value).__name__}, not a list")
    for number, member in enumerate(value):
        if not isinstance(member, kind):
            raise DataError(
                f"{where}: member {number} of the field {name!r} is {type(member).__name__}, not {kind.__name__}"
            )
    return value
