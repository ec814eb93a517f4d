"""The command line: output, JSON and exit status."""

import json
import sys

import pytest
from families import host_config, randomise, save_source, save_text
from transformers import AutoModel, BertForMaskedLM

import hf_relpos
from hf_relpos.cli import main


class Result:
    """What a call of the command line left behind."""

    def __init__(self, returncode, captured):
        self.returncode, self.stdout, self.stderr = returncode, captured.out, captured.err


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-relpos", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_status:
            main()
        return Result(exit_status.value.code or 0, capsys.readouterr())

    return run


def test_list_and_show(call):
    rows = json.loads(call("list", "--json").stdout)
    assert [row["name"] for row in rows] == hf_relpos.list_encodings()
    assert all(name in call("list").stdout for name in hf_relpos.list_encodings())
    shown = json.loads(call("show", "alibi", "--json").stdout)
    assert shown["arxiv"] == "2108.12409"
    assert shown["options"]["direction"] == "auto"
    assert "bias[" in call("show", "t5").stdout or "b[bucket" in call("show", "t5").stdout


def test_show_draws(call, tmp_path):
    shown = call("show", '{"type": "alibi", "direction": "causal"}', "--length", "16").stdout
    assert "one of 'auto', 'causal', 'symmetric', 'one_sided'" in shown
    assert "@article{press2021" in shown
    assert "decoder, distance 0 to 15:" in shown
    assert "  head 0  █" in shown
    assert "encoder" not in shown.rpartition("decoder")[2]
    assert call("show", "t5", "--plot", tmp_path / "t5.svg").returncode == 0
    assert (tmp_path / "t5.svg").read_text().startswith("<?xml")
    wrong = call("show", "t5", "--plot", tmp_path / "t5.bmp")
    assert wrong.returncode == 1
    assert "must end in .png or .svg" in wrong.stderr
    assert call("show", "t5", "--length", "1").returncode == 2


def test_matrix(call):
    rows = json.loads(call("matrix", "--json").stdout)
    assert {row["method"] for row in rows} == set(hf_relpos.list_encodings())
    refused = next(row for row in rows if not row["ok"])
    printed = call("matrix").stdout
    assert refused["reasons"][0] in printed
    assert "flex: not measured on a GPU yet" in printed
    assert all(line.split()[1:3] for line in printed.splitlines()[: len(hf_relpos.list_encodings())])


def test_doctor(call, tmp_path):
    host = randomise(BertForMaskedLM(host_config("bert")))
    host.save_pretrained(tmp_path)
    healthy = call("doctor", tmp_path)
    assert healthy.returncode == 0
    assert "Ordinary weights" in healthy.stdout
    assert json.loads(call("doctor", tmp_path, "--json").stdout)["kind"] == "ordinary"
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    wrong = call("doctor", tmp_path)
    assert wrong.returncode == 1
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert "'mamba' is not supported" in wrong.stderr
    wrong = call("doctor", tmp_path, "--json")
    assert wrong.returncode == 1
    assert json.loads(wrong.stdout)["problem"] in wrong.stderr
    assert call("doctor", "nobody/nothing").returncode == 1


def test_wrong_usage_and_failures(call):
    assert call("list", "--nonsense").returncode == 2
    assert call("nonsense").returncode == 2
    failed = call("show", "t6")
    assert failed.returncode == 1
    assert "unknown rel_pos type 't6'" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_convert_and_export(call, tmp_path):
    host = randomise(BertForMaskedLM(host_config("bert")))
    host.save_pretrained(tmp_path / "host")
    wrong = call("convert", tmp_path / "host", tmp_path / "out", "--rel-pos", "t5")
    assert wrong.returncode == 1
    assert "absolute='keep' or 'drop'" in wrong.stderr
    assert not (tmp_path / "out").exists()
    done = call(
        "convert", tmp_path / "host", tmp_path / "out", "--rel-pos", '{"type": "t5"}', "--absolute", "drop", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["created"] == ["bert.relpos.bias"]
    assert report["model_class"] == "RelPosBertForMaskedLM"
    assert type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "RelPosBertModel"
    again = call("convert", tmp_path / "host", tmp_path / "out", "--rel-pos", "t5", "--absolute", "drop")
    assert again.returncode == 1
    assert "not an empty folder" in again.stderr
    exported = call("export", tmp_path / "out", tmp_path / "exported")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported" / "relpos_bert.py").exists()
    ordinary = call("export", tmp_path / "host", tmp_path / "exported2")
    assert ordinary.returncode == 1
    assert "without relative positions" in ordinary.stderr


def test_convert_with_a_fit(call, tmp_path):
    source, text = save_source(tmp_path / "source"), save_text(tmp_path / "text.txt")
    done = call("convert", source, tmp_path / "out", "--rel-pos", "t5", "--fit", text, "--fit-tokens", 600, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["fit"]["rel_pos"]["type"] == "t5"
    assert json.loads((tmp_path / "out" / "conversion.json").read_text()) == report["fit"]
    assert "layer 2 of 2: KL of attention" in done.stderr
    wrong = call("convert", source, tmp_path / "out2", "--rel-pos", "rope", "--fit", text)
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].endswith("cannot be fitted: it has no parameters")
    assert not (tmp_path / "out2").exists()
    assert "--fit" in call("convert", source, tmp_path / "out3", "--rel-pos", "auto").stderr


def test_convert_with_a_distillation(call, tmp_path):
    source, text = save_source(tmp_path / "source"), save_text(tmp_path / "text.txt")
    command = ["convert", source, tmp_path / "out", "--rel-pos", "t5"]
    flags = [
        "--distil-steps",
        4,
        "--distil-tokens",
        64,
        "--distil-length",
        16,
        "--distil-rate",
        1e-3,
        "--distil-seed",
        3,
    ]
    flags += ["--distil-encoding-rate", 1e-2, "--distil-precision", "float32", "--distil-checkpoint", tmp_path / "way"]
    done = call(*command, "--fit", text, "--fit-tokens", 600, *flags, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["fit"]["distillation"]
    assert (report["steps"], report["length"], report["options"]["seed"]) == (4, 16, 3)
    assert "distilling: step 4 of 4, held-out similarity" in done.stderr
    wrong = call(*command[:2], tmp_path / "out2", *command[3:], "--distil-steps", 4)
    assert wrong.returncode == 1
    assert "give fit (on the command line --fit)" in wrong.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "text.txt"]
