"""Reading question-answering data in its shapes, refusing what is malformed, windows over long contexts, and predictions from logits."""

import gzip
import itertools
import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError
from qa_data import Example, collate, features, predictions_from_logits, read_examples
from sources import DataError
from toy_qa import byte_tokenizer, nested, questions, word_tokenizer, write

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "squad_v1.1"
CONTEXT = "Mira lives in Bergen."
GOOD = {"id": "1", "question": "Where?", "context": CONTEXT, "answers": {"text": ["Bergen"], "answer_start": [14]}}


def expected(rows):
    return [
        Example(r["id"], r["question"], r["context"], tuple(r["answers"]["text"]), tuple(r["answers"]["answer_start"]))
        for r in rows
    ]


def read(path, **options):
    return read_examples(str(path), split="train", **options)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("official.json", lambda rows: nested(rows)),
        ("official-v2.json", lambda rows: nested(rows, "v2.0")),
        ("rows.json", lambda rows: rows),
        ("rows-in-data.json", lambda rows: {"version": "x", "data": rows}),
        ("rows.jsonl", lambda rows: rows),
    ],
)
def test_each_json_form_gives_the_same_examples(tmp_path, name, content, suffix):
    rows = questions(7, unanswerable=2)
    assert read(write(tmp_path / (name + suffix), content(rows))) == expected(rows)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_parquet(tmp_path, suffix):
    rows = questions(7, unanswerable=2)
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    if suffix:
        path = write(tmp_path / "rows.parquet.gz", path.read_bytes())
    assert read(path) == expected(rows)


def test_blank_lines_a_byte_order_mark_and_further_fields_do_no_harm(tmp_path):
    lines = "\ufeff" + json.dumps({**GOOD, "title": "t"}) + "\n\n  \n" + json.dumps({**GOOD, "id": "2"})
    assert [example.id for example in read(write(tmp_path / "a.jsonl", lines))] == ["1", "2"]


def test_several_references_keep_their_order(tmp_path):
    row = {**GOOD, "answers": {"text": ["Bergen", "in Bergen"], "answer_start": [14, 11]}}
    (example,) = read(write(tmp_path / "a.json", [row]))
    assert example.answers == ("Bergen", "in Bergen")
    assert example.answer_starts == (14, 11)


def test_offsets_count_characters_not_bytes(tmp_path):
    row = {**GOOD, "context": "Zoë 🙂 lives in Łódź.", "answers": {"text": ["Łódź"], "answer_start": [15]}}
    assert read(write(tmp_path / "a.jsonl.gz", [row]))[0].answers == ("Łódź",)


def test_limit_stops_reading(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps(GOOD) + "\nnot json\n")
    assert len(read(path, limit=1)) == 1


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


MALFORMED = [
    (without("id"), "the field 'id' is missing"),
    (without("question"), "the field 'question' is missing"),
    (without("context"), "the field 'context' is missing"),
    ({**GOOD, "context": None}, "the field 'context' is missing"),
    ({**GOOD, "id": 1}, "the field 'id' is int, not text"),
    ({**GOOD, "question": ["Where?"]}, "the field 'question' is list, not text"),
    ({**GOOD, "question": " \n"}, "the field 'question' is empty"),
    ({**GOOD, "id": ""}, "the field 'id' is empty"),
    ({**GOOD, "context": "Mira lives in \ud83d"}, "the field 'context' holds half of a surrogate pair"),
    (without("answers"), r"the field 'answers' must be \{'text': \[...\], 'answer_start': \[...\]\}"),
    ({**GOOD, "answers": ["Bergen"]}, "the field 'answers' must be"),
    ({**GOOD, "answers": {"text": ["Bergen"]}}, "the field 'answers' must be"),
    ({**GOOD, "answers": {"text": "Bergen", "answer_start": 14}}, "the field 'answers' must be"),
    ({**GOOD, "answers": {"text": ["Bergen"], "answer_start": []}}, "1 answer texts but 0 offsets"),
    ({**GOOD, "answers": {"text": ["Bergen"], "answer_start": ["14"]}}, "'Bergen' at '14' is not a text with an int"),
    ({**GOOD, "answers": {"text": ["Bergen"], "answer_start": [14.0]}}, "'Bergen' at 14.0 is not a text with an int"),
    ({**GOOD, "answers": {"text": [None], "answer_start": [14]}}, "None at 14 is not a text with an integer offset"),
    ({**GOOD, "answers": {"text": ["M"], "answer_start": [False]}}, "'M' at False is not a text with an integer"),
    ({**GOOD, "answers": {"text": ["Bergen"], "answer_start": [13]}}, "'Bergen' does not stand at character 13"),
    ({**GOOD, "answers": {"text": ["Bergen"], "answer_start": [99]}}, "'Bergen' does not stand at character 99"),
    ({**GOOD, "answers": {"text": ["Bergen"], "answer_start": [-7]}}, "'Bergen' does not stand at character -7"),
    ({**GOOD, "answers": {"text": [""], "answer_start": [3]}}, "the answer at character 3 is empty"),
    ({**GOOD, "answers": {"text": [" "], "answer_start": [4]}}, "the answer at character 4 is empty"),
    ({**GOOD, "id": "0"}, "the id '0' occurs twice"),
    ("Where?", "not an object but str"),
    (None, "not an object but NoneType"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED)
@pytest.mark.parametrize("kind", ["jsonl.gz", "json"])
def test_a_malformed_row_is_named_with_file_and_place(tmp_path, row, message, kind):
    rows = [{**GOOD, "id": "0"}, row]
    place = "line 2" if kind.startswith("jsonl") else "record 2"
    with pytest.raises(DataError, match=rf"rows\.{kind}, {place}: .*{message}"):
        read(write(tmp_path / f"rows.{kind}", rows))


def test_a_malformed_row_of_parquet_is_named(tmp_path):
    pq.write_table(pa.Table.from_pylist([GOOD, {**GOOD, "id": "2", "context": "elsewhere"}]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: the answer 'Bergen' does not stand at character 14"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"b": \n', r"bad\.jsonl, line 1: the field 'id' is missing"),
        (json.dumps(GOOD) + "\n{'single': 'quotes'}\n", r"bad\.jsonl, line 2: not valid JSON: .*double quotes"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:30], r"bad\.jsonl, line 2: not valid JSON"),
        (json.dumps(GOOD).encode() + b'\n{"id": "\xff"}', r"bad\.jsonl, line 2: not UTF-8 text"),
        ("[" * 100_000, r"bad\.jsonl, line 1: not valid JSON"),
        ("", r"bad\.jsonl holds no examples"),
        ("\n\n", r"bad\.jsonl holds no examples"),
    ],
)
def test_bad_lines(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "bad.jsonl", content))


OFFICIAL = nested([GOOD])


def official(change):
    content = json.loads(json.dumps(OFFICIAL))
    change(content["data"][0])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"bad\.json: not valid JSON"),
        ({"version": "1.1"}, r"bad\.json: neither a list of rows nor an object"),
        ("7", r"bad\.json: neither a list of rows nor an object"),
        ({"data": {}}, r"bad\.json: neither a list"),
        ({"data": []}, r"bad\.json holds no examples"),
        ([], r"bad\.json holds no examples"),
        ({"data": [7]}, r"bad\.json, record 1: not an object but int"),
        ({"data": ["paragraphs"]}, r"bad\.json, record 1: not an object but str"),
        (official(lambda a: a.update(paragraphs=None)), r"article 1: the field 'paragraphs' is missing or not a list"),
        (official(lambda a: a.update(paragraphs=[7])), r"article 1, paragraph 1: the field 'qas' is missing"),
        (official(lambda a: a["paragraphs"][0].pop("qas")), r"article 1, paragraph 1: the field 'qas' is missing"),
        (
            official(lambda a: a["paragraphs"][0].pop("context")),
            r"article 1, paragraph 1, question 1: the field 'context' is missing",
        ),
        (official(lambda a: a["paragraphs"][0].update(qas=["Where?"])), r"question 1: not an object but str"),
        (
            official(lambda a: a["paragraphs"][0]["qas"][0].pop("answers")),
            r"article 1, paragraph 1, question 1: the field 'answers' is missing or not a list",
        ),
        (
            official(lambda a: a["paragraphs"][0]["qas"][0].update(answers=["Bergen"])),
            r"question 1: 'answers' is not a list of objects",
        ),
        (
            official(lambda a: a["paragraphs"][0]["qas"][0]["answers"][0].pop("answer_start")),
            r"question 1: answer 'Bergen' at None is not a text with an integer offset",
        ),
        (
            official(lambda a: a["paragraphs"].append(a["paragraphs"][0])),
            r"article 1, paragraph 2, question 1: the id '1' occurs twice",
        ),
    ],
)
def test_bad_nested_files(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "bad.json", content))


def test_plausible_answers_of_impossible_questions_are_not_answers(tmp_path):
    rows = questions(4, unanswerable=1)
    content = nested(rows, "v2.0")
    # some conversions put what is merely plausible where answers stand
    impossible = content["data"][-1]["paragraphs"][-1]["qas"][0]
    impossible["answers"] = impossible["plausible_answers"]
    assert read(write(tmp_path / "a.json", content)) == expected(rows)


@pytest.mark.parametrize("name", ["missing.json", "missing.jsonl.gz", "missing.parquet", "folder/missing.jsonl"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=r"missing\S*: there is no such file"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.xml", "rows.doc.gz", "rows", "rows.gz"])
def test_an_unknown_format(tmp_path, name):
    with pytest.raises(DataError, match=r"rows\S*: its format is unknown; valid: .json, .jsonl, .csv"):
        read(write(tmp_path / name, "id,question"))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "data.json").mkdir()
    with pytest.raises(DataError, match=r"data\.json: its format is unknown"):
        read(tmp_path / "data.json")


def damaged(kind):
    good = gzip.compress("\n".join(json.dumps({**GOOD, "id": str(i)}) for i in range(2000)).encode(), mtime=0)
    if kind == "plain text":
        return json.dumps(GOOD).encode()
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind == "flipped":
        middle = len(good) // 2
        return good[:middle] + bytes(byte ^ 0xFF for byte in good[middle : middle + 200]) + good[middle + 200 :]
    if kind == "garbage":
        return good[:10] + b"\xff" * 100
    # the length that gzip keeps at the end
    return good[:-4] + b"\x00\x00\x00\x01"


@pytest.mark.parametrize("kind", ["plain text", "truncated", "flipped", "garbage", "wrong length"])
@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.parquet.gz"])
def test_a_corrupted_archive(tmp_path, kind, name):
    (tmp_path / name).write_bytes(damaged(kind))
    with pytest.raises(DataError, match=rf"{name}(, line \d+)?(:| cannot be read:) \S+"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 10])
def test_a_corrupted_parquet(tmp_path, content):
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read: \S+"):
        read(write(tmp_path / "rows.parquet", content))


def test_a_hub_id_while_offline():
    with pytest.raises(DataError, match=r"'nobody/nothing' is neither a local file nor to be had from the Hub: \S+"):
        read_examples("nobody/nothing", split="train")


def test_a_name_that_is_neither_file_nor_hub_id(tmp_path):
    with pytest.raises(DataError, match=r"is neither a local file nor to be had from the Hub: \S+"):
        read(tmp_path / "no" / "such" / "thing")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'squad' on the Hub"),
        HTTPError("[Errno 111] Connection refused"),
        DatasetsError("no loader"),
        ValueError("Unknown split"),
    ],
)
def test_whatever_keeps_a_hub_data_set_away_is_one_kind_of_error(monkeypatch, error):
    def load_dataset(source, *, name, split, streaming):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = f"'squad' is neither a local file nor to be had from the Hub: {error}"
    with pytest.raises(DataError, match=re.escape(message)):
        read_examples("squad", split="train")


def test_a_hub_data_set_is_read_by_its_split(monkeypatch):
    asked = []

    def load_dataset(source, *, name, split, streaming):
        asked.append((source, split))
        return datasets.Dataset.from_list(questions(3))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_examples("squad", split="validation", limit=2) == expected(questions(3))[:2]
    assert asked == [("squad", "validation")]


@pytest.mark.parametrize("name", ["train-v1.1.subset", "dev-v1.1.part1"])
@pytest.mark.skipif(not REAL.is_dir(), reason=f"there is no real SQuAD data in {REAL}")
def test_real_squad_reads_alike_in_both_forms(name):
    official_form = read(REAL / f"{name}.json.gz")
    flat_form = read(REAL / f"{name.replace('-v1.1', '')}.jsonl.gz")
    assert official_form == flat_form
    assert len(flat_form) == {"train-v1.1.subset": 7788, "dev-v1.1.part1": 5696}[name]


LONG = " ".join(f"Mira lives in house {number} near the river." for number in range(30))


def long_example(start, length, context=LONG):
    return Example("1", "Where does Mira live?", context, (context[start : start + length],), (start,))


def squeezed(text):
    return "".join(text.split()).lower()


@pytest.mark.parametrize("make", [word_tokenizer, byte_tokenizer])
def test_each_answer_is_found_in_some_window_and_maps_back_to_its_text(make):
    tokenizer = make()
    examples = [long_example(start, length) for start in range(0, len(LONG) - 60, 7) for length in (1, 6, 20)]
    examples = [example for example in examples if example.answers[0].strip() == example.answers[0]]
    trained = features(examples, tokenizer, max_length=60, doc_stride=30, for_training=True)
    evaluated = features(examples, tokenizer, max_length=60, doc_stride=30, for_training=False)
    found = [0] * len(examples)
    for window, told in zip(trained, evaluated, strict=True):
        first, last = window["start_positions"], window["end_positions"]
        example = examples[told["example_index"]]
        start, end = example.answer_starts[0], example.answer_starts[0] + len(example.answers[0])
        inside = [offset for offset in told["offsets"] if offset is not None]
        assert (first > 0) == (inside[0][0] <= start and end <= inside[-1][1]), "0 exactly where the answer is not"
        if first == 0:
            assert last == 0
            continue
        found[told["example_index"]] += 1
        # the fewest tokens that cover the answer: no more than the rest of the words at its ends
        assert told["offsets"][first][0] <= start < told["offsets"][first][1]
        assert told["offsets"][last][0] < end <= told["offsets"][last][1]
    assert all(found)


def test_words_map_back_exactly():
    tokenizer = byte_tokenizer()
    for start in (LONG.index("house 17"), LONG.index("river. Mira lives in house 9")):
        example = long_example(start, 8 if LONG[start] == "h" else 5)
        windows = features([example], tokenizer, max_length=60, doc_stride=30, for_training=True)
        told = features([example], tokenizer, max_length=60, doc_stride=30, for_training=False)
        spans = {
            LONG[t["offsets"][w["start_positions"]][0] : t["offsets"][w["end_positions"]][1]]
            for w, t in zip(windows, told, strict=True)
            if w["start_positions"]
        }
        assert spans == {example.answers[0]}


def test_windows_cover_the_context_overlap_by_the_stride_and_keep_the_question():
    tokenizer = word_tokenizer()
    example = long_example(0, 4)
    windows = features([example], tokenizer, max_length=40, doc_stride=11, for_training=False)
    asked = tokenizer(example.question, add_special_tokens=False)["input_ids"]
    whole = tokenizer(LONG, add_special_tokens=False)["input_ids"]
    texts = []
    for window in windows:
        assert len(window["input_ids"]) <= 40
        assert window["input_ids"][1 : 1 + len(asked)] == asked
        assert window["example_index"] == 0
        texts.append([i for i, o in zip(window["input_ids"], window["offsets"], strict=True) if o is not None])
    assert len(texts) > 5
    joined = texts[0]
    for left, right in itertools.pairwise(texts):
        assert left[-11:] == right[:11]
        joined += right[11:]
    assert joined == whole


def test_an_unanswerable_question_points_to_the_first_token():
    example = Example("1", "Where?", LONG, (), ())
    windows = features([example], word_tokenizer(), max_length=40, doc_stride=10, for_training=True)
    assert {(window["start_positions"], window["end_positions"]) for window in windows} == {(0, 0)}


def test_blanks_around_a_reference_do_not_hide_it():
    context = " Bergen is old. Mira lives in Turin "
    tokenizer = word_tokenizer()
    for text, shown in ((" Bergen", "bergen"), (" Turin ", "turin")):
        example = Example("1", "Where?", context, (text,), (context.index(text),))
        (window,) = features([example], tokenizer, max_length=60, doc_stride=10, for_training=True)
        span = window["input_ids"][window["start_positions"] : window["end_positions"] + 1]
        assert tokenizer.convert_ids_to_tokens(span) == [shown]


def test_tokens_of_the_second_example_belong_to_the_second_context():
    examples = [
        Example("1", "Where?", "Mira lives in Bergen. " * 3, ("Bergen",), (14,)),
        Example("2", "Where?", "Ada works near old Turin.", ("Turin",), (19,)),
    ]
    windows = features(examples, word_tokenizer(), max_length=14, doc_stride=3, for_training=False)
    assert [window["example_index"] for window in windows] == sorted(window["example_index"] for window in windows)
    (last,) = [window for window in windows if window["example_index"] == 1]
    words = [examples[1].context[o[0] : o[1]] for o in last["offsets"] if o is not None]
    assert words == ["Ada", "works", "near", "old", "Turin", "."]


def test_a_question_that_leaves_no_room_is_refused():
    tokenizer = word_tokenizer()
    question = "where " * 27
    example = Example("7", question, CONTEXT * 9, (), ())
    with pytest.raises(DataError, match=r"question '7' has 27 tokens, .* windows of 40 tokens overlapping by 10"):
        features([example], tokenizer, max_length=40, doc_stride=10, for_training=True)
    example = Example("7", "where " * 26, CONTEXT * 9, (), ())
    windows = features([example], tokenizer, max_length=40, doc_stride=10, for_training=True)
    assert len(windows) > 1
    assert max(len(window["input_ids"]) for window in windows) == 40


def test_collate_pads_to_a_multiple_but_not_beyond_the_table():
    tokenizer = word_tokenizer()
    example = long_example(0, 4)
    windows = features([example], tokenizer, max_length=37, doc_stride=8, for_training=True)
    batch = collate(windows, tokenizer)
    assert batch["input_ids"].shape == (len(windows), 40)
    batch = collate(windows, tokenizer, max_length=37)
    assert batch["input_ids"].shape == (len(windows), 37)
    short = features([long_example(0, 4, f"{CONTEXT} Old")], tokenizer, max_length=37, doc_stride=8, for_training=True)
    assert len(short[0]["input_ids"]) == 17
    assert collate(short, tokenizer, max_length=37)["input_ids"].shape == (1, 24)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions"}
    for row, window in enumerate(windows):
        length = len(window["input_ids"])
        assert batch["input_ids"][row, :length].tolist() == window["input_ids"]
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (37 - length)
        assert batch["start_positions"][row] == window["start_positions"]
        assert batch["end_positions"][row] == window["end_positions"]
    assert "start_positions" not in collate(
        features([example], tokenizer, max_length=37, doc_stride=8, for_training=False), tokenizer
    )


# a context of eight words; two windows see it, with the question's two tokens and the first special one before it
WORDS = "alpha bravo charlie delta echo foxtrot golf hotel"
STARTS = [WORDS.index(word) for word in WORDS.split()]
OFFSETS = [(start, start + len(word)) for start, word in zip(STARTS, WORDS.split(), strict=True)]
WINDOWS = [
    {"example_index": 0, "offsets": [None, None, None, *OFFSETS[:5], None]},
    {"example_index": 0, "offsets": [None, None, None, *OFFSETS[3:], None]},
]
ASKED = [Example("q", "what", WORDS, ("echo",), (WORDS.index("echo"),))]


def logits(**scores):
    """Two windows of nine tokens; ``word=(start, end)`` sets a word's logits in each window where it is, ``null`` the first token's."""
    start, end = torch.full((2, 9), -10.0), torch.full((2, 9), -10.0)
    for name, values in scores.items():
        if name == "null":
            for window, value in enumerate(values):
                start[window, 0] = end[window, 0] = value / 2
            continue
        index = WORDS.split().index(name.partition("_")[0])
        for window, shift in ((0, 0), (1, -3)):
            token = 3 + index + shift
            if (0 <= index < 5 if window == 0 else index >= 3) and name.rpartition("_")[2] in (str(window), name):
                start[window, token], end[window, token] = values
    return list(start), list(end)


def predict(start, end, **options):
    settings = {"n_best": 3, "max_answer_length": 4, "version_2": False, **options}
    return predictions_from_logits(ASKED, WINDOWS, start, end, **settings)["q"]


def test_the_best_span_of_all_windows_wins():
    start, end = logits(bravo=(3, -10), charlie=(-10, 3), golf=(4, -10), hotel=(-10, 4))
    prediction = predict(start, end, n_best=2)
    assert prediction["text"] == "golf hotel"
    assert prediction["score"] == 8.0
    assert [(one["text"], one["score"]) for one in prediction["n_best"]] == [
        ("golf hotel", 8.0),
        ("bravo charlie", 6.0),
    ]
    assert "null_score_diff" not in prediction


def test_a_span_seen_by_two_windows_counts_once_with_its_better_score():
    start, end = logits(delta_0=(2, 2), delta_1=(3, 4), echo=(-10, -10))
    prediction = predict(start, end)
    assert [one["text"] for one in prediction["n_best"]].count("delta") == 1
    assert prediction["n_best"][0] == {"text": "delta", "score": 7.0}


def test_question_and_special_tokens_are_never_answers():
    start, end = logits(alpha=(1, 1))
    for window in (0, 1):
        for token in (0, 1, 2, 8):
            start[window][token] = end[window][token] = 50.0
    assert predict(start, end)["text"] == "alpha"


def test_an_end_before_its_start_is_no_span():
    start, end = logits(alpha=(-10, 9), charlie=(9, -10), bravo=(0, 0))
    # from charlie back to alpha would score 18
    assert predict(start, end)["n_best"][0] == {"text": "bravo", "score": 0.0}


@pytest.mark.parametrize(
    ("longest", "text"), [(1, "delta"), (2, "alpha bravo"), (3, "alpha bravo"), (4, "alpha bravo charlie delta")]
)
def test_max_answer_length_counts_tokens(longest, text):
    start, end = logits(alpha=(5, -10), bravo=(-10, 1), delta=(2, 2), echo=(-10, 3))
    # alpha ... echo scores 8 and would be the best of five tokens
    assert predict(start, end, max_answer_length=longest)["text"] == text
    assert predict(start, end, max_answer_length=5)["text"] == "alpha bravo charlie delta echo"


def test_spans_are_found_by_brute_force_too():
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        start, end = (list(torch.randn(2, 9, generator=generator)) for _ in range(2))
        longest = 1 + trial % 5
        scores = {}
        for window, (s, e) in zip(WINDOWS, zip(start, end, strict=True), strict=True):
            for i, left in enumerate(window["offsets"]):
                for j, right in enumerate(window["offsets"]):
                    if left and right and 0 <= j - i < longest:
                        key = (left[0], right[1])
                        scores[key] = max(scores.get(key, -99.0), float(s[i] + e[j]))
        best = sorted(scores.items(), key=lambda item: -item[1])[:6]
        found = predict(start, end, n_best=6, max_answer_length=longest)["n_best"]
        assert [one["text"] for one in found] == [WORDS[a:b] for (a, b), _ in best]
        assert [one["score"] for one in found] == pytest.approx([score for _, score in best])


def test_many_high_starts_after_all_high_ends_do_not_hide_the_valid_spans():
    words = " ".join(f"w{number}" for number in range(300))
    offsets = [(words.index(f"w{number} "), words.index(f"w{number} ") + 2) for number in range(299)]
    start, end = torch.zeros(299), torch.zeros(299)
    end[:100], start[199:] = 5.0, 5.0
    windows = [{"example_index": 0, "offsets": [None, *offsets]}]
    first = [torch.cat((torch.zeros(1), logit)) for logit in (start, end)]
    example = [Example("q", "what", words, (), ())]
    found = predictions_from_logits(
        example, windows, first[:1], first[1:], n_best=20, max_answer_length=5, version_2=False
    )
    assert len(found["q"]["n_best"]) == 20
    assert {one["score"] for one in found["q"]["n_best"]} == {5.0}


@pytest.mark.parametrize(
    ("null", "threshold", "text", "difference"),
    [
        ((3.0, 2.0), 0.0, "golf", -2.0),
        # the lowest of the windows speaks for no answer
        ((9.0, 2.0), 0.0, "golf", -2.0),
        ((9.0, 6.0), 0.0, "", 2.0),
        ((9.0, 6.0), 1.9, "", 2.0),
        ((9.0, 6.0), 2.0, "golf", 2.0),
        ((3.0, 2.0), -2.5, "", -2.0),
        ((4.0, 4.0), 0.0, "golf", 0.0),
    ],
)
def test_no_answer_threshold(null, threshold, text, difference):
    start, end = logits(golf=(2, 2), null=null)
    prediction = predict(start, end, version_2=True, null_threshold=threshold)
    assert prediction["text"] == text
    assert prediction["null_score_diff"] == difference
    assert prediction["score"] == (4.0 if text else min(null))
    assert prediction["n_best"][0] == {"text": "golf", "score": 4.0}
    assert predict(start, end, version_2=False)["text"] == "golf"


@pytest.mark.parametrize("version_2", [False, True])
def test_a_context_without_tokens_is_predicted_empty_and_stays_json(version_2):
    # control characters, which BERT's tokenizers drop
    example = Example("q", "where", "\u0007\u0007", (), ())
    windows = features([example], word_tokenizer(), max_length=30, doc_stride=5, for_training=False)
    (window,) = windows
    zeros = [torch.zeros(len(window["input_ids"]))]
    found = predictions_from_logits(
        [example], windows, zeros, zeros, n_best=3, max_answer_length=4, version_2=version_2
    )
    assert found["q"]["text"] == ""
    assert found["q"]["n_best"] == []
    json.dumps(found, allow_nan=False)


def test_logits_that_are_not_numbers_are_refused():
    start, end = logits(alpha=(1, float("nan")))
    with pytest.raises(ValueError, match="logits that are not numbers"):
        predict(start, end)
