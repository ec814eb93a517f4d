"""The commands that compare measure what they say, at tiny sizes."""

import importlib
import json
from dataclasses import replace

import against_host
import conversion
import crossovers
import long_text
import plot
import pytest
import scaling
import targets
import torch
import training_step
from attention_case import BACKWARD, DECODE, FORWARD, Case, Setting
from call_timing import Effort, interleaved_times, rounds_at
from comparison import Comparison, compare
from exponents import exponent
from families import save_source, save_text
from peak_memory import CLEAR_REFS
from result_files import ComparisonResults, Machine
from step_case import STEP, Shape, StepCase
from target_rows import LINEAR_GROWTH, ROWS

import hf_relpos

TINY = "--device cpu --heads 2 --head-dim 8"
LENGTHS = (16, 32)
ON_LINUX = CLEAR_REFS.exists()


def run(command, flags, folder, size=TINY):
    """The results of a command with tiny sizes, and its table."""
    command.main([*size.split(), *flags.split(), "--output", str(folder)])
    numbers, table = (next(folder.glob(f"*.{suffix}")) for suffix in ("json", "md"))
    results = ComparisonResults.from_json(numbers.read_text())
    assert importlib.import_module(results.topic) is command
    assert numbers.stem == table.stem == results.stem
    assert table.read_text() == command.render(results)
    assert results.machine.threads == torch.get_num_threads()
    return results, table.read_text()


def table_rows(text):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return lines[0], lines[2:]


def test_every_row_of_the_targets_runs(tmp_path):
    """With one round and few tokens, and the cache of decoding cut to as many."""
    lengths = " ".join(map(str, LENGTHS))
    rows = {name: replace(row, lengths=()) for name, row in ROWS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "ROWS", rows)
        patch.setattr(targets, "compare", lambda *a, memory: compare(*a, memory=memory and a[1].encoding == "t5"))
        results, text = run(targets, f"--rounds 1 --lengths {lengths}", tmp_path)
    assert all(row.status == "measured" and row.ratio.minimum > 0 for row in results.comparisons)
    expected = {
        (row.name, dtype, length, DECODE if row.decode else BACKWARD if backward else FORWARD)
        for row in rows.values()
        for dtype in row.limits
        for length in LENGTHS
        for backward in row.passes
    }
    assert {(row.name, row.dtype, row.length, row.work) for row in results.comparisons} == expected
    header, lines = table_rows(text)
    assert len(lines) == len({row[:3] for row in expected})
    assert header[2:] == ["L", "forward", "target", "forward+backward", "target", "memory", "target", "met"]
    if ON_LINUX:
        assert all(
            (row.memory is not None) == (row.work == BACKWARD and "t5" in row.name) for row in results.comparisons
        )


def made_up(*comparisons):
    machine = Machine("Some CPU", 2, 2, 2**34, "Linux", None)
    return ComparisonResults("python", "2026-01-01", 60.0, machine, {"torch": "2"}, "targets", "cpu", comparisons)


def verdict(forward, backward, memory, shorter_memory):
    """What the table says of a distance table with these ratios; ``shorter_memory`` is that of half the length."""
    name = "distance-t5"
    rows = [
        Comparison(name, "plain", FORWARD, 4096, "float32", milliseconds=(forward,), reference_milliseconds=(1.0,)),
        Comparison(
            name, "plain", BACKWARD, 4096, "float32", milliseconds=(backward,), reference_milliseconds=(1.0,),
            memory=memory, reference_memory=100,
        ),
        Comparison(name, "plain", BACKWARD, 2048, "float32", memory=shorter_memory, reference_memory=50),
    ]  # fmt: skip
    _, lines = table_rows(targets.render(made_up(*rows)))
    return next(line[-1] for line in lines if line[2] == "4096")


def test_a_target_is_met_or_not():
    limits = ROWS["distance-t5"].limits["float32"]
    assert (limits.forward, limits.backward, limits.memory) == (1.08, 1.25, 2.5)
    assert verdict(1.08, 1.25, 250, 125) == "yes"
    assert verdict(1.084, 1.254, 250, 250 / LINEAR_GROWTH) == "yes"
    assert verdict(1.09, 1.25, 250, 125) == "no: forward"
    assert verdict(1.08, 1.26, 251, 125) == "no: backward, memory"
    assert verdict(1.0, 1.0, 250, 100) == "no: growth"


def test_what_was_not_measured_is_not_met():
    row = Comparison("distance-t5", "plain", BACKWARD, 2048, "float32", "failed", "too large")
    text = targets.render(made_up(row))
    assert table_rows(text)[1][0][-1] == "no: forward, backward, memory"
    assert "- distance-t5, forward+backward float32 2048: failed. too large" in text


def test_a_profile_names_operators(tmp_path, capsys):
    targets.main([*TINY.split(), "--profile", "distance-t5", "--lengths", "16", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    files = sorted(path.name for path in tmp_path.iterdir())
    dtypes = ROWS["distance-t5"].limits
    assert len(files) == 2 * len(dtypes)
    assert f"profile-distance-t5-cpu-16-float32-{FORWARD}.txt" in files
    for path in tmp_path.iterdir():
        assert path.read_text() in shown
        assert "aten::" in path.read_text()


@pytest.mark.parametrize("host", against_host.HOSTS)
def test_a_host_computes_the_same_encoding(host):
    """Equal outputs where nothing is learned or the table can be shared; elsewhere the right shape, and a gradient for all that learns."""
    torch.manual_seed(0)
    row = against_host.HOSTS[host]
    query, key, value = (torch.randn(2, 24, 4, 8).transpose(1, 2).requires_grad_() for _ in range(3))
    attend, inputs = row.path(query, key, value)
    output = attend()
    assert output.shape == query.shape
    gradients = torch.autograd.grad(output.square().sum(), inputs, allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in used)
    # a DeBERTa's biases of values stand elsewhere in ours
    assert len(gradients) - len(used) == 0
    ours = hf_relpos.build_encoding(
        {"type": row.encoding, **dict(row.options)},
        num_heads=4,
        head_dim=8,
        max_position_embeddings=24,
        causal=row.causal,
    )
    learned = dict(ours.named_parameters())
    if set(learned) <= {"distance_embedding"} or host == "t5-rebuilt":
        for parameter in learned.values():
            parameter.data = inputs[-1].data
        expected = hf_relpos.attention(query, key, value, ours, is_causal=row.causal)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_hosts_are_compared_at_every_length(tmp_path):
    results, text = run(against_host, "--rounds 1 --lengths 16 --hosts bloom deberta_v2", tmp_path)
    assert {(row.reference, row.work) for row in results.comparisons} == {
        (host, work) for host in ("bloom", "deberta_v2") for work in (FORWARD, BACKWARD)
    }
    assert [line[2] for line in table_rows(text)[1]] == ["16", "16"]


def test_a_very_long_text_has_time_and_memory(tmp_path):
    results, text = run(long_text, "--length 64", tmp_path)
    (row,) = results.comparisons
    assert (row.length, row.work, len(row.milliseconds), len(row.reference_milliseconds)) == (64, BACKWARD, 1, 1)
    if ON_LINUX:
        assert row.resident > row.memory >= 0
    assert table_rows(text)[1][0][-1] == ("yes" if ON_LINUX else "unknown")


def test_padding_and_decoding_are_the_same_call_for_both():
    """Plain attention and an encoding that adds nothing give the same, so they were given the same masks, queries and cache."""
    setting = Setting("cpu", "float32", batch=2, heads=2, head_dim=8)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attention_case._discard", seen.append)
        for case in (
            Case(setting, 12, False, False, padding=(1.0, 0.5)),
            Case(setting, 12, True, False, decode=True),
            Case(setting, 12, True, False),
        ):
            case.prepare()()
            replace(case, encoding="none", backend="auto").prepare()()
            plain, ours = seen[-2:]
            assert plain.shape == ours.shape
            torch.testing.assert_close(plain, ours)
    assert seen[2].shape[2] == 1


@pytest.mark.parametrize(
    "fields",
    [{"padding": (1.0,)}, {"padding": (1.0, 0.5), "causal": True}, {"decode": True, "causal": False}],
)
def test_a_case_that_makes_no_sense_is_refused(fields):
    setting = Setting("cpu", "float32", batch=2)
    with pytest.raises(ValueError, match="is not valid"):
        Case(**{"setting": setting, "length": 8, "causal": False, "backward": False, **fields})


def test_a_refusal_is_a_status_and_no_crash():
    case = Case(Setting("cpu", "float32", heads=2, head_dim=8), 8, False, False, "t5", "auto", (("num_buckets", -1),))
    row = compare(("t5", "plain"), case, case.plain, Effort(), memory=False)
    assert (row.status, row.ratio) == ("refused", None)
    assert "num_buckets" in row.reason


def test_rounds_become_fewer_and_the_clock_can_count_work():
    assert [rounds_at(5, length) for length in (128, 2048, 4096, 8192, 16384)] == [5, 5, 3, 2, 2]
    assert rounds_at(1, 8192) == 1
    times = interleaved_times([lambda: sum(range(10**5))], "cpu", Effort(1, 1, 0, clock="cpu"))
    assert times[0][0] > 0


TINY_MODEL = "--device cpu --width 16 --heads 2 --layers 2 --vocabulary 50"


def test_training_steps_of_both_hosts(tmp_path, monkeypatch):
    """With the memory of the first only: a process that has to load transformers takes seconds."""
    monkeypatch.setattr(
        training_step, "compare", lambda *a, memory: compare(*a, memory=memory and a[0][0] == "bert dropout 0.1")
    )
    results, text = run(training_step, "--rounds 1 --length 80 --dropouts 0.1 0", tmp_path, TINY_MODEL)
    names = [f"{host} dropout {dropout}" for host in ("bert", "gpt2") for dropout in (0.1, 0.0)]
    assert [row.name for row in results.comparisons] == names
    assert {row.work for row in results.comparisons} == {STEP}
    assert [line[0] for line in table_rows(text)[1]] == names
    if ON_LINUX:
        assert results.comparisons[0].resident > results.comparisons[0].memory


@pytest.mark.parametrize("host", ["bert", "gpt2"])
def test_both_models_of_a_step_are_alike_but_for_positions(host):
    case = StepCase("cpu", "float32", host, 80, 1, 0.1, Shape(16, 2, 2, 50))
    stock, ours = case.build(), replace(case, encoding="t5").build()
    assert ours.config.rel_pos["type"] == "t5"
    assert stock.training
    assert ours.training
    shapes = [{name: parameter.shape for name, parameter in model.named_parameters()} for model in (stock, ours)]
    positions = {"bert.embeddings.position_embeddings.weight", "transformer.wpe.weight"}
    assert set(shapes[0]) - set(shapes[1]) <= positions
    assert all(shapes[1][name] == shape for name, shape in shapes[0].items() if name in shapes[1])
    dropouts = [sorted(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)) for model in (stock, ours)]
    assert dropouts[0] == dropouts[1]
    assert case.shortened().shape.layers == 1


@pytest.mark.parametrize("host", ["bert", "gpt2"])
def test_a_step_changes_the_weights(host, monkeypatch):
    case = StepCase("cpu", "float32", host, 80, 1, 0.0, Shape(16, 1, 2, 50), "t5")
    model = case.build()
    monkeypatch.setattr(StepCase, "build", lambda self: model)
    step = case.prepare()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step()
    assert all(parameter.grad is None for parameter in model.parameters())
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("relpos" in name or "bias" in name for name in changed)
    assert len(changed) > len(before) // 2


def test_crossovers_have_every_backend(tmp_path):
    results, text = run(crossovers, "--rounds 1 --lengths 16 --kinds distance full", tmp_path)
    assert {(row.name, row.reference, row.work, row.length) for row in results.comparisons} == {
        (backend, kind, work, length)
        for backend in hf_relpos.list_backends()
        for kind in ("distance", "full")
        for work in (FORWARD, BACKWARD)
        for length in (16,)
    }
    assert all(bool(row.milliseconds) == (row.status == "measured") for row in results.comparisons)
    assert {row.name for row in results.comparisons if row.milliseconds} >= {"eager", "linear_memory", "sdpa"}
    assert "take, from L on" in text
    assert len(table_rows(text)[1]) > 6


def test_the_backend_to_take_is_fast_and_takes_little_memory():
    def row(name, length, milliseconds, memory):
        return Comparison(name, "kind", FORWARD, length, "float32", milliseconds=(milliseconds,), memory=memory)

    refused = Comparison("d", "kind", FORWARD, 64, "float32", "refused", "not this")
    rows = (row("a", 64, 1.0, 9), row("b", 64, 1.04, 3), row("c", 64, 1.06, 1), refused)
    text = crossovers.render(replace(made_up(*rows, row("a", 128, 1.0, 9), row("c", 128, 2.0, 1)), topic="crossovers"))
    assert "| kind | forward | b 64, a 128 |" in text
    assert "| kind | forward | 64 | b | 1.00 (0) | 1.04 (0) | 1.06 (0) | refused |" in text
    assert "- d, forward float32 64: refused. not this" in text


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """Results by length of the row with the most rivals, without FlexAttention, which compiles for long."""
    folder = tmp_path_factory.mktemp("scaling")
    rivals = {name: path for name, path in scaling.RIVALS["distance-t5"].items() if "Flex" not in name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "RIVALS", {"distance-t5": rivals})
        # a process that has to load transformers first takes seconds
        patch.setattr(scaling, "compare", lambda *a, memory: compare(*a, memory=isinstance(a[1], Case)))
        flags = "--rounds 1 --lengths 16 32 --rows distance-t5 --dtypes float32"
        return folder, rivals, *run(scaling, flags, folder)


def test_growth_is_measured_beside_rivals(scaled):
    _, rivals, results, text = scaled
    names = {row.name for row in results.comparisons}
    assert names == {"distance-t5", *rivals}
    assert {row.work for row in results.comparisons if row.name == "distance-t5"} == {FORWARD, BACKWARD, DECODE}
    refused = {row.name for row in results.comparisons if row.status == "refused"}
    assert all(name.startswith("x-transformers") for name in refused)
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [f"## {work.capitalize()}, float32" for work in (FORWARD, BACKWARD, DECODE)]


def test_a_rival_that_would_take_too_much_is_not_tried(monkeypatch):
    case = Case(Setting("cpu", "float32"), 4096, False, False)
    monkeypatch.setattr(scaling, "compare", lambda *arguments, **options: "tried")
    assert scaling._unless_too_large("rival", case, case, Effort(), None) == "tried"
    assert scaling._unless_too_large("rival", case, case, Effort(), (2048, scaling.RIVAL_MEMORY // 4)) == "tried"
    row = scaling._unless_too_large("rival", case, case, Effort(), (2048, scaling.RIVAL_MEMORY // 4 + 1))
    assert (row.status, row.reason) == ("failed", "it would need more than 8 GB")


def test_exponents_are_those_of_power_laws():
    assert exponent({length: 3.0 * length**1.5 for length in (64, 128, 512)}) == pytest.approx(1.5)
    assert exponent({64: 1.0}) is None
    assert exponent({64: 1.0, 128: 0.0}) is None


def test_results_by_length_are_drawn(scaled, tmp_path, capsys):
    folder, _, results, _ = scaled
    plot.main(["--results", str(folder), "--output", str(tmp_path)])
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"{results.stem}-float32.png", f"{results.stem}-float32.svg"]
    assert "distance-t5" in (tmp_path / files[1]).read_text()
    assert (tmp_path / files[0]).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="no results"):
        plot.main(["--results", str(tmp_path)])


def test_conversion(tmp_path, monkeypatch, capsys):
    """Each encoding has a row after the fit and one after the distillation."""
    monkeypatch.setattr(conversion, "LENGTHS", (8, 16))
    source, text = save_source(tmp_path / "source"), save_text(tmp_path / "text.txt")
    flags = {"model": source, "text": text, "unseen": text, "tokens": 600, "texts": 4, "passages": 6, "short": 8}
    flags |= {"long": 16, "distil-steps": 2, "distil-options": '{"tokens": 64}', "output": tmp_path / "found.json"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    conversion.main([*words, "--encodings", '{"type": "t5"}', '{"type": "alibi"}'])
    _, rows = table_rows(capsys.readouterr().out)
    kinds = [row[0].split("}")[-1] for row in rows]
    assert kinds == ["dropped, nothing fitted", "", ", distilled", "", ", distilled"]
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert found[2]["distillation"]["steps"] == 2
    assert found[2]["cpu seconds"] > found[1]["cpu seconds"]
    assert set(found[2]) >= {"cosine 8", "cosine 16", "Spearman 8", "Spearman 16"}

    done = tmp_path / "done"
    hf_relpos.convert_checkpoint(str(source), done, rel_pos={"type": "t5"}, fit=text, fit_length=16)
    conversion.main([*words, "--encodings", "--converted", str(done)])
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["encoding"] for row in found] == ["dropped, nothing fitted", "done"]
    assert found[1]["conversion"]["layers"]
