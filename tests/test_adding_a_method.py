"""docs/adding-a-method.md, carried out: what its example needs beyond the page is nothing, and all laws hold for it."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import cases
import pytest
import test_laws
import torch
from families import FAMILIES, language_head, model, tokens
from method_pages import answers, page

import hf_relpos
from hf_relpos.attention.backends import BACKENDS
from hf_relpos.encodings.registry import _REGISTRY
from hf_relpos.matrix import backend_answers, family_answers
from hf_relpos.pictures import pictures

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
FILES = re.findall(r"^## \d\. .*: `(.*)`$", TEXT, flags=re.MULTILINE)
NAME = "ramp"
LAWS = [
    law
    for name, law in vars(test_laws).items()
    if name.startswith("test_")
    and "case" in inspect.signature(law).parameters
    and not any(mark.name == "skipif" and mark.args[0] for mark in law.pytestmark)
]


@pytest.fixture(scope="module", autouse=True)
def added(tmp_path_factory):
    """The example's two files, where the page says they go, without touching the package."""
    codes = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    modules = {f"hf_relpos.encodings.{NAME}": codes[0], f"oracles.{NAME}": codes[1]}
    for number, (name, code) in enumerate(modules.items()):
        path = tmp_path_factory.mktemp(f"part{number}") / f"{NAME}.py"
        path.write_text(code)
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    answers.cache_clear()
    yield
    answers.cache_clear()
    _REGISTRY.pop(NAME, None)
    for name in modules:
        sys.modules.pop(name, None)


def test_the_page_names_files_that_are_there():
    assert [f"hf_relpos/encodings/{NAME}.py", "hf_relpos/encodings/catalogue.py", f"tests/oracles/{NAME}.py"] == FILES
    for path in re.findall(r"`((?:tests|hf_relpos)/[\w/.]+|CHANGELOG\.md)`", TEXT):
        assert NAME in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_laws_hold(law, causal):
    for rel_pos in [*cases.variants(NAME), {"type": NAME, "reach": 3}]:
        if "backend" in inspect.signature(law).parameters:
            for backend in BACKENDS:
                law(case=(rel_pos, causal), backend=backend)
        else:
            law(case=(rel_pos, causal))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_it(family):
    ours = model(family, {"type": NAME})
    assert ours.config.rel_pos["reach"] == 16
    changed = model(family, {"type": NAME, "reach": 1})
    with torch.no_grad():
        assert not torch.equal(ours(tokens()).logits, changed(tokens()).logits), language_head(family)


def test_it_appears_everywhere():
    assert NAME in hf_relpos.list_encodings()
    assert all(answer.ok for answer in (*backend_answers(NAME), *family_answers(NAME)))
    decoder, _ = pictures(NAME, num_heads=2, head_dim=8, length=24)
    assert decoder.exact
    torch.testing.assert_close(decoder.mean[0], -0.1 * torch.arange(24).clamp(max=16))
    written = page(NAME)
    assert "an integer, at least 1" in written
    assert "`slope`" in written
    with pytest.raises(ValueError, match="reach=0 is not valid: it must be at least 1"):
        hf_relpos.build_encoding({"type": NAME, "reach": 0}, num_heads=2, head_dim=8)
