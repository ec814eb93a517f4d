"""The benchmarks measure what they say, and the kept tables say what was measured."""

import importlib
import json
import re
import shlex
from dataclasses import replace
from itertools import product
from pathlib import Path

import attention as benchmark
import command_line
import pytest
import torch
from attention_case import Case, Setting, optional_inputs
from call_timing import Effort, interleaved_times
from peak_memory import CLEAR_REFS, OutOfMemory, peak_memory
from result_files import ComparisonResults, Machine, Results, Row, write_atomically
from result_table import MISSING, render

import hf_relpos
from hf_relpos.attention.backends import BackendRefusal, backends_for

ROOT = Path(__file__).parent.parent
KEPT = command_line.RESULTS
STEMS = sorted(
    {str(path.relative_to(KEPT).with_suffix("")) for suffix in ("json", "md") for path in KEPT.rglob(f"*.{suffix}")}
)
LENGTH, HEADS, WIDTH, ROUNDS = 32, 2, 8, 2
TINY = Setting("cpu", "float32", heads=HEADS, head_dim=WIDTH)

on_linux = pytest.mark.skipif(not CLEAR_REFS.exists(), reason="the high-water mark of memory is reset on Linux only")


def refusal(encoding, backend, causal=False, backward=False):
    """Why ``backend`` refuses ``encoding``, or None; asked without the benchmark."""
    module = hf_relpos.build_encoding(
        {"type": encoding}, num_heads=HEADS, head_dim=WIDTH, max_position_embeddings=LENGTH, causal=causal
    )
    query = torch.randn(1, HEADS, LENGTH, WIDTH, requires_grad=backward)
    given = {
        "hidden_states": torch.randn(1, LENGTH, HEADS * WIDTH),
        "segment_ids": torch.zeros(1, LENGTH, dtype=torch.long),
        "relation_ids": torch.zeros(1, LENGTH, LENGTH, dtype=torch.long),
    }
    try:
        with torch.set_grad_enabled(backward):
            hf_relpos.attention(query, query, query, module, backend=backend, **given)
    except BackendRefusal as error:
        return str(error)
    return None


def two_encodings():
    """An encoding that every backend runs and, where there is one, another that some backend refuses."""
    names = hf_relpos.list_encodings()
    refused = [any(refusal(name, backend) for backend in backends_for("cpu")) for name in names]
    easy = names[refused.index(False)]
    return [easy, names[refused.index(True)] if True in refused else next(name for name in names if name != easy)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The results of a tiny run of the command, and its table."""
    folder = tmp_path_factory.mktemp("results")
    flags = (
        f"--device cpu --lengths {LENGTH} --heads {HEADS} --head-dim {WIDTH} --rounds {ROUNDS} --max-rounds {ROUNDS}"
    )
    benchmark.main([*flags.split(), "--encodings", *two_encodings(), "--output", str(folder)])
    files = sorted(folder.iterdir())
    assert [file.suffix for file in files] == [".json", ".md"]
    results = Results.from_json(files[0].read_text())
    assert {file.stem for file in files} == {results.stem}
    return results, files[1].read_text()


def made_up(rows):
    machine = Machine("Some CPU @ 3 GHz", 2, 2, 2**34, "Linux 6.1 x86_64", None)
    return Results("python benchmarks/attention.py", "2026-01-01", 60.0, machine, {"torch": "2"}, TINY, Effort(), rows)


def cells(table, row):
    """Time and memory that ``table`` shows for ``row``, and the text of its section."""
    title = (
        f"## {'Forward and backward' if row.backward else 'Forward'}, {'causal' if row.causal else 'bidirectional'}\n"
    )
    section = table.split(title)[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    found = [dict(zip(lines[0], line, strict=True)) for line in lines if line[:2] == [row.encoding, row.backend]]
    assert len(found) == 1
    return found[0][f"time {row.length}"], found[0][f"MiB {row.length}"], section


def check_shown(table, row):
    time, memory, section = cells(table, row)
    if row.status == "measured":
        ratio = row.ratio
        assert time == f"{ratio.median:.2f} ({ratio.minimum:.2f}–{ratio.maximum:.2f})"
        assert memory == (MISSING if row.memory is None else f"{row.memory / 2**20:.1f}")
    else:
        assert time == row.status
        assert memory == MISSING
        assert f"{row.status}. {row.reason}" in section


def test_every_case_has_a_row(run):
    results, _ = run
    expected = set(product(two_encodings(), backends_for("cpu"), (False, True), (False, True)))
    assert {(row.encoding, row.backend, row.causal, row.backward) for row in results.rows} == expected
    assert len(results.rows) == len(expected)
    for row in results.rows:
        reason = refusal(row.encoding, row.backend, row.causal, row.backward)
        assert (row.status, row.reason) == ("measured" if reason is None else "refused", reason)
        assert row.length == LENGTH
        assert row.rel_pos["type"] == row.encoding
        times = ROUNDS if reason is None else 0
        assert [len(row.milliseconds), len(row.plain_milliseconds)] == [times, times]
        assert all(value > 0 for value in row.milliseconds + row.plain_milliseconds)
        if CLEAR_REFS.exists():
            assert row.plain_memory >= 0
            assert (row.memory is None) == (reason is not None)


def test_results_say_where_they_come_from(run):
    results, _ = run
    assert results.setting == TINY
    assert results.effort == Effort(ROUNDS, ROUNDS)
    assert results.machine.cores >= 1
    assert results.machine.memory > 2**20
    assert set(results.versions) == {"python", "torch", "transformers", "hf_relpos"}
    arguments = benchmark.parse(shlex.split(results.command)[2:])
    assert arguments.encodings == two_encodings()


def test_json_survives_and_its_schema_is_closed(run):
    results, _ = run
    assert Results.from_json(results.to_json()) == results
    for place in (lambda data: data, lambda data: data["machine"], lambda data: data["rows"][0]):
        data = json.loads(results.to_json())
        place(data)["surplus"] = 1
        with pytest.raises(TypeError, match="surplus"):
            Results.from_json(json.dumps(data))


def test_the_table_shows_every_row(run):
    results, table = run
    assert table == render(results)
    for row in results.rows:
        check_shown(table, row)


def test_the_table_shows_refusals_failures_and_gaps():
    row = Row(
        "this", "one", 64, False, False, None, "measured", None, (2.0, 3.0, 9.0), (1.0, 2.0, 3.0), 3 * 2**20, 2**20
    )
    rows = (
        row,
        replace(row, length=128, status="failed", reason="too large", milliseconds=(), plain_milliseconds=(), memory=None),
        replace(row, backend="two", status="refused", reason="not this", milliseconds=(), plain_milliseconds=(), memory=None),
        replace(row, backward=True, memory=None, plain_memory=None),
    )  # fmt: skip
    table = render(made_up(rows))
    for shown in rows:
        check_shown(table, shown)
    assert cells(table, row)[:2] == ("2.00 (1.50–3.00)", "3.0")
    assert cells(table, replace(rows[2], length=128))[:2] == (MISSING, MISSING)
    assert "- this, one, length 128: failed. too large" in table
    assert "| plain SDPA |  | 2.00 ms | – | 1.0 | 1.0 |" in table


def test_file_names_follow_the_device():
    assert made_up(()).stem == "cpu-some-cpu-3-ghz-float32"


@pytest.mark.parametrize(
    "stem",
    STEMS or [pytest.param(None, marks=pytest.mark.skip(reason="benchmarks/results holds no results yet: run make bench"))],
)  # fmt: skip
def test_kept_tables_are_rendered_from_the_numbers_beside_them(stem):
    numbers, table = ((KEPT / f"{stem}.{suffix}").read_text(encoding="utf-8") for suffix in ("json", "md"))
    if "topic" in json.loads(numbers):
        results = ComparisonResults.from_json(numbers)
        rendered = importlib.import_module(results.topic).render(results)
    else:
        results = Results.from_json(numbers)
        rendered = render(results)
    assert results.stem == Path(stem).name
    assert table == rendered


def test_calls_take_turns_after_a_round_that_does_not_count():
    order = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    times = interleaved_times(calls, "cpu", Effort(rounds=3, max_rounds=9, seconds=0))
    assert "".join(order) == "ab" + "abbaab"
    assert [len(row) for row in times] == [3, 3]
    times = interleaved_times(calls, "cpu", Effort(rounds=1, max_rounds=4, seconds=60))
    assert [len(row) for row in times] == [4, 4]


def test_an_encoding_that_does_not_fit_is_a_refusal(monkeypatch):
    def objects(*arguments, **options):
        raise ValueError("made for causal attention")

    monkeypatch.setattr(hf_relpos, "build_encoding", objects)
    case = Case(TINY, LENGTH, False, False, hf_relpos.list_encodings()[0], hf_relpos.list_backends()[0])
    row = benchmark.measure(case, None, Effort())
    assert (row.status, row.reason, row.milliseconds) == ("refused", "made for causal attention", ())


@on_linux
def test_peak_memory_holds_the_scores_of_dense_attention():
    case = Case(Setting("cpu", "float32"), 256, False, False, two_encodings()[0], "eager")
    scores = 4 * case.setting.heads * case.length**2
    assert scores <= peak_memory(case) < 100 * scores
    assert peak_memory(replace(case, encoding=None, backend=None)) < scores


@on_linux
def test_what_does_not_fit_in_memory_is_a_failure(monkeypatch):
    case = Case(Setting("cpu", "float32"), 512, False, False, two_encodings()[0], "eager")
    with pytest.raises(OutOfMemory, match="more than the"):
        peak_memory(case, limit=2**20)
    monkeypatch.setattr(benchmark, "peak_memory", lambda case: peak_memory(case, limit=2**20))
    row = benchmark.measure(case, 5, Effort())
    assert (row.status, row.milliseconds, row.memory, row.plain_memory) == ("failed", (), None, 5)


def test_attention_accepts_the_optional_inputs():
    case = Case(TINY, LENGTH, True, True)
    needs = ("hidden_states", "segment_ids", "relation_ids")
    inputs = optional_inputs(case, needs)
    assert set(inputs) == set(needs)
    query = case.draw()
    assert hf_relpos.attention(query, query, query, **inputs).shape == query.shape
    assert not optional_inputs(case, ())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.json", "old")]


def commands(text):
    return re.findall(r"python (benchmarks/\w+\.py.*)$", text, flags=re.MULTILINE)


def test_commands_of_the_readme_of_make_and_of_the_files_are_valid():
    readme, makefile = (commands((ROOT / name).read_text()) for name in ("benchmarks/README.md", "Makefile"))
    assert len(makefile) >= 4
    assert set(makefile) <= set(readme)
    files = [command for path in (ROOT / "benchmarks").glob("*.py") for command in commands(path.read_text())]
    for command in {*readme, *files}:
        script, *flags = shlex.split(command)
        importlib.import_module(Path(script).stem).parse([flag.replace("NAME", "t5") for flag in flags])


@pytest.mark.parametrize("flags", ["--encodings nonsense", "--lengths 0", "--rounds 5 --max-rounds 3"])
def test_wrong_flags_end_with_status_2(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.parse(flags.split())
    assert ended.value.code == 2
    assert flags.split()[0] in capsys.readouterr().err
