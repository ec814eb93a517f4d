"""The architecture, checked: who imports whom, who may name a method, and what the registry demands."""

import ast
import re
from pathlib import Path

import pytest

import hf_relpos
from hf_relpos.encodings.card import Card
from hf_relpos.encodings.encoding import Encoding
from hf_relpos.encodings.options import EncodingOptions
from hf_relpos.encodings.registry import register_encoding, registered_encodings

ROOT = Path(hf_relpos.__file__).parent
# each may import itself and what stands before it
ORDER = ["encodings", "attention", "models", "hub", "conversion"]
# files of their own beside the packages: each may import the packages and what stands before it
BESIDE = ["question_answering", "probe", "pictures", "matrix", "plots", "registration", "cli"]
EXPORTED = ("encodings", "attention", "models")
# words of the language and of hosts that are method names too
COMMON_WORDS = {"none", "rope"}


def modules(package):
    return sorted((ROOT / package).glob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package):
    allowed = set(ORDER[: ORDER.index(package) + 1])
    for path in modules(package):
        for level, module in imports(path):
            if level == 2:
                assert module.split(".")[0] in allowed | {"version"}, f"{path.name} imports {module}"
            assert not module.startswith("hf_relpos"), f"{path.name} imports the package by its absolute name"


def test_files_beside_the_packages_import_one_way():
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "version", *BESIDE}
    for position, name in enumerate(BESIDE):
        for level, module in imports(ROOT / f"{name}.py"):
            if level:
                assert level == 1
                assert module.split(".")[0] in {"version", *ORDER, *BESIDE[:position]}, f"{name}.py imports {module}"
            assert not module.startswith("hf_relpos"), f"{name}.py imports the package by its absolute name"


def test_encodings_import_torch_only():
    """And one of them transformers: its formulas for scaling rotations are used, not written again."""
    for package, extra in (
        ("encodings", set()),
        ("attention", {"triton"}),
        ("models", {"transformers", "safetensors", "huggingface_hub"}),
    ):
        for path in modules(package):
            if path.name == "rope_scaling.py":
                continue
            for level, module in imports(path):
                root = module.split(".")[0]
                known = {"torch", *extra} | set(__import__("sys").stdlib_module_names)
                assert level or root in known, f"{path.name} imports {module}"


def test_exported_files_have_unique_names():
    names = [path.name for package in EXPORTED for path in modules(package) if path.name != "__init__.py"]
    assert len(names) == len(set(names))


def test_no_method_is_named_outside_encodings():
    names = "|".join(sorted(set(registered_encodings()) - COMMON_WORDS))
    pattern = re.compile(rf"""["']({names})["']""")
    for path in sorted(ROOT.rglob("*.py")):
        if path.parent.name == "encodings":
            continue
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                where = f"{path.name}:{node.lineno} names {node.value!r}"
                assert not pattern.search(repr(node.value)), where
                assert node.value not in set(registered_encodings()) - COMMON_WORDS, where


def test_each_method_has_a_file_of_its_name_and_an_oracle():
    for name, cls in registered_encodings().items():
        assert cls.__module__ == f"hf_relpos.encodings.{name}"
        assert (Path(__file__).parent / "oracles" / f"{name}.py").exists()


def test_each_card_is_complete():
    for name in hf_relpos.list_encodings():
        card = hf_relpos.encoding_card(name)
        assert card.title
        assert card.formula
        assert 2017 <= card.year <= 2026
        assert card.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
        assert f"{card.year}," in card.bibtex
        assert card.bibtex.count("{") == card.bibtex.count("}")


def test_registration_refuses_bad_and_duplicate_names():
    card = hf_relpos.encoding_card(hf_relpos.list_encodings()[0])

    def define(method_name, method_card):
        class Mine(Encoding[EncodingOptions]):
            name = method_name
            card = method_card

        return Mine

    with pytest.raises(ValueError, match="is taken by"):
        register_encoding(define(hf_relpos.list_encodings()[0], card))
    with pytest.raises(ValueError, match="not a lower-case identifier"):
        register_encoding(define("My Method", card))
    with pytest.raises(TypeError, match="needs `card`"):
        register_encoding(define("mine", None))
    assert isinstance(card, Card)


def test_public_names():
    for name in hf_relpos.__all__:
        assert hasattr(hf_relpos, name)
    assert set(hf_relpos.list_backends()) >= {"eager", "sdpa"}
