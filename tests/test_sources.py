"""Rows from files of each format, named by file and place, and fields of rows."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import RunError
from sources import DataArguments, DataError, list_of, read_rows, text_of, value_of
from toy_qa import write

REAL = Path(__file__).parent.parent.parent / "shared" / "data"
ROWS = [{"text": 'good, and "long"', "label": "1"}, {"text": "bad\nthing", "label": "0"}]
CONLLU = """# sent_id = s-1
# text = He don't
1\tHe\the\tPRON\tPRP\tCase=Nom|Number=Sing\t3\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t0\troot\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
"""


def contents():
    table = "text,label\n" + "".join(f'"{row["text"].replace(chr(34), chr(34) * 2)}",{row["label"]}\n' for row in ROWS)
    return {
        "rows.json": json.dumps(ROWS),
        "data.json": json.dumps({"version": 1, "data": ROWS}),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "rows.csv": table,
        "rows.tsv": table.replace('",', '"\t').replace("text,label", "text\tlabel"),
    }


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", [*contents(), "rows.parquet"])
def test_each_format_gives_the_same_rows(tmp_path, name, suffix):
    path = tmp_path / (name + suffix)
    if name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes()) if suffix else (tmp_path / name).read_bytes())
    else:
        write(path, contents()[name])
    found = list(read_rows(str(path)))
    assert [row for _, row in found] == ROWS
    assert all(where.startswith(f"{path}, ") for where, _ in found)
    assert list(read_rows(str(path))) == found


def test_places_count_lines_of_the_file(tmp_path):
    path = write(tmp_path / "a.csv", contents()["rows.csv"])
    # the second row has a line break
    assert [where.rpartition(", ")[2] for where, _ in read_rows(str(path))] == ["line 2", "line 4"]
    path = write(tmp_path / "a.jsonl", '\n{"a": 1}\n\n{"a": 2}')
    assert [where.rpartition(", ")[2] for where, _ in read_rows(str(path))] == ["line 2", "line 4"]


def test_text_keeps_empty_lines(tmp_path):
    path = write(tmp_path / "a.txt.gz", "\ufeffone\r\n\n three \n")
    assert list(read_rows(str(path))) == [
        (f"{path}, line 1", {"text": "one"}),
        (f"{path}, line 2", {"text": ""}),
        (f"{path}, line 3", {"text": " three "}),
    ]


def test_conllu(tmp_path):
    path = write(tmp_path / "a.conllu", CONLLU)
    (where, first), (last, second) = read_rows(str(path))
    assert (where, last) == (f"{path}, line 1", f"{path}, line 9")
    assert first == {
        "sent_id": "s-1",
        "text": "He don't",
        "tokens": ["He", "do", "n't"],
        "lemmas": ["he", "do", "not"],
        "upos": ["PRON", "AUX", "PART"],
        "xpos": ["PRP", "VBP", "RB"],
        "feats": ["Case=Nom|Number=Sing", None, None],
        "head": [3, 3, 0],
        "deprel": ["nsubj", "aux", "root"],
    }
    assert second["head"] == [0]
    assert second["text"] is None


@pytest.mark.skipif(not REAL.is_dir(), reason=f"there are no real data in {REAL}")
def test_the_same_sentences_as_conllu_and_as_json_lines():
    folder = REAL / "ud_english_ewt"
    columns = ("sent_id", "tokens", "lemmas", "upos", "xpos", "head", "deprel")
    pairs = zip(
        read_rows(str(folder / "en_ewt-ud-dev.conllu.gz")), read_rows(str(folder / "dev.jsonl.gz")), strict=True
    )
    number = 0
    for (_, a), (_, b) in pairs:
        number += 1
        assert {name: a[name] for name in columns} == {name: b[name] for name in columns}
    assert number == 2001


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2: not valid JSON: "),
        ("a.jsonl", '{"a": 1}\n[2]\n', "a.jsonl, line 2: not an object but list"),
        ("a.jsonl", b'{"a": "\xff"}', "a.jsonl, line 1: not UTF-8 text: "),
        ("a.json", '{"rows": []}', "a.json: neither a list of rows nor an object"),
        ("a.json", "[{}, 3]", "a.json, record 2: not an object but int"),
        ("a.csv", "a,b\n1,2\n3\n", "a.csv, line 3: 1 values for the 2 columns a, b"),
        ("a.csv", "a,a\n1,2\n", "a.csv, line 1: a name of a column occurs twice: a, a"),
        ("a.csv", 'a,b\n1,"2\n3', "a.csv, line 3: unexpected end of data"),
        ("a.tsv", b"a\tb\n\xe9\t2\n", "a.tsv, line 2: not UTF-8 text: "),
        ("a.txt", b"fine\n\xff\n", "a.txt, line 2: not UTF-8 text: "),
        ("a.txt.gz", b"no gzip", "cannot be read: "),
        ("a.parquet", b"PAR1 or not", "a.parquet cannot be read: "),
        ("a.conllu", "# x = 1\n1\ta\tb\n", "a.conllu, line 2: 3 columns where CoNLL-U has 10"),
        ("a.conllu", CONLLU.replace("\n1\tYes", "\none\tYes"), "a.conllu, line 9: not valid CoNLL-U: "),
        ("a.xml", "<a/>", "its format is unknown; valid: .json, .jsonl, .csv, .tsv, .parquet, .conllu, .txt"),
    ],
)
def test_whatever_is_malformed_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(read_rows(str(path)))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_reading_stops_where_enough_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\nnot json')
    arguments = DataArguments(train_file=str(path), validation_file=str(path), limit_train=2)
    assert [row for _, row in arguments.rows("train")] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="line 3: not valid JSON"):
        list(arguments.rows("validation"))
    with pytest.raises(DataError, match="line 3: not valid JSON"):
        list(arguments.rows("train", limited=False))


def test_sources_of_arguments(tmp_path, monkeypatch):
    for given in ({}, {"train_file": "a"}):
        with pytest.raises(RunError, match=r"no (train|validation) data: give --\w+_file or --dataset"):
            DataArguments(**given).check_sources()
    with pytest.raises(ValueError, match="limit_eval=0 is not valid: it must be at least 1"):
        DataArguments(limit_eval=0)
    asked = []

    def load_dataset(source, **options):
        asked.append((source, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    arguments = DataArguments(dataset="me/mine", dataset_config="en", validation_split="dev", streaming=True)
    assert [where for where, _ in arguments.rows("validation")] == ["me/mine (dev), row 1", "me/mine (dev), row 2"]
    assert asked == [("me/mine", {"name": "en", "split": "dev", "streaming": True})]
    assert (arguments.dataset_name, DataArguments(validation_file="x/dev.csv").dataset_name) == ("me/mine", "dev.csv")


def test_the_identity_of_streamed_rows(tmp_path):
    def identity(content, **options):
        path = write(tmp_path / "a.jsonl", content)
        return DataArguments(train_file=str(path), **options).rows_identity("train")

    made = [identity("a"), identity("b"), identity("aa"), identity("a", limit_train=3), identity("a", shuffle_buffer=3)]
    made += [DataArguments(dataset="x").rows_identity("train"), DataArguments(dataset="y").rows_identity("train")]
    assert len(set(made)) == len(made)
    assert identity("a") == made[0]


def test_fields():
    row = {
        "a": {"b": "text"},
        "a.c": "dotted",
        "n": 3,
        "empty": " ",
        "list": ["x", "y"],
        "mixed": ["x", 2],
        "half": "\ud800",
    }
    assert value_of(row, "a.b", "here") == "text"
    assert value_of(row, "a.c", "here") == "dotted"
    assert text_of(row, "empty", "here", empty=True) == " "
    assert list_of(row, "list", "here") == ["x", "y"]
    for call, message in (
        (lambda: value_of(row, "a.x", "here"), "here: the field 'a.x' is missing; fields: a, a.c, n, "),
        (lambda: value_of(row, "n.x", "here"), "here: the field 'n.x' is missing"),
        (lambda: text_of(row, "n", "here"), "here: the field 'n' is int, not text"),
        (lambda: text_of(row, "empty", "here"), "here: the field 'empty' is empty"),
        (lambda: text_of(row, "half", "here"), "half of a surrogate pair"),
        (lambda: list_of(row, "a.b", "here"), "here: the field 'a.b' is str, not a list"),
        (lambda: list_of(row, "mixed", "here"), "here: member 1 of the field 'mixed' is int, not str"),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert message in str(caught.value)


def test_a_share_of_the_training_rows_to_evaluate_on(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": str(number)} for number in range(10)])

    def texts(part, **given):
        given = DataArguments(train_file=str(path), validation_share=0.3, **given)
        given.check_sources()
        return "".join(row["text"] for _, row in given.rows(part))

    assert (texts("train"), texts("validation")) == ("0123456", "789")
    assert (texts("train", limit_train=2), texts("validation", limit_eval=1)) == ("01", "7")
    assert DataArguments(train_file=str(path), validation_share=0.3).dataset_name == "rows.jsonl"
    with pytest.raises(DataError, match=r"validation_share=0\.01 of 10 rows leaves none on one side"):
        list(DataArguments(train_file=str(path), validation_share=0.01).rows("train"))
    for given, message in (
        ({"validation_share": 1.5}, "validation_share=1.5 is not valid: it must be between 0 and 1"),
        ({"validation_share": 0.5, "validation_file": "x.csv"}, "validation_file exclude each other"),
        ({"validation_share": 0.5, "streaming": True}, "streaming exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            DataArguments(**given)
