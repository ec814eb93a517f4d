"""Saved folders load where the package is not installed: every family, in one process, bit-equal."""

import json
import sys

import pytest
import torch
from families import FAMILIES, KINDS, language_head, model, tokens
from without_package import run_python

import hf_relpos
from hf_relpos.encodings.registry import _REGISTRY
from hf_relpos.hub.exporter import EXPORT_PACKAGES, ROOT, ExportError, collect, flatten
from hf_relpos.models.families import classes_of

LOADER = """
import json, torch, transformers
for folder, head in json.load(open("folders.json")).items():
    reference = torch.load(f"{folder}.pt")
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    with torch.no_grad():
        assert torch.equal(model(reference["ids"]).logits, reference["logits"]), folder
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(base).__name__.endswith("Model")
    model.save_pretrained(f"{folder}-again")
    again = type(model).from_pretrained(f"{folder}-again")
    with torch.no_grad():
        assert torch.equal(again(reference["ids"]).logits, reference["logits"]), folder
    again = getattr(transformers, f"AutoModelFor{head}").from_pretrained(f"{folder}-again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(reference["ids"]).logits, reference["logits"]), folder
    if head == "CausalLM":
        made = model.generate(reference["ids"], max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=None)
        assert torch.equal(made, reference["made"])
try:
    import hf_relpos
except ModuleNotFoundError:
    print("loaded", len(json.load(open("folders.json"))))
"""


def test_every_family_loads_in_one_process_without_the_package(tmp_path):
    folders = {}
    kinds = list(KINDS.values())
    for index, family in enumerate(FAMILIES):
        ours = model(family, kinds[index % len(kinds)]).float()
        ours.save_pretrained(tmp_path / family)
        ids = tokens()
        with torch.no_grad():
            reference = {"ids": ids, "logits": ours(ids).logits}
        if language_head(family) == "CausalLM":
            reference["made"] = ours.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1, eos_token_id=None)
        torch.save(reference, tmp_path / f"{family}.pt")
        folders[family] = language_head(family)
    (tmp_path / "folders.json").write_text(json.dumps(folders))
    done = run_python(LOADER, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith(f"loaded {len(FAMILIES)}")


def test_the_config_names_every_head(tmp_path):
    ours = model("bert", KINDS["distance"]).float()
    ours.save_pretrained(tmp_path)
    named = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert len(named) == len(classes_of("bert")) + 1
    assert named["AutoModelForQuestionAnswering"] == "relpos_bert.RelPosBertForQuestionAnswering"


def test_a_card_is_written_once_and_never_over_the_users(tmp_path):
    ours = model("bert", KINDS["list"]).float()
    ours.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in ours.config.rel_pos:
        assert hf_relpos.encoding_card(part["type"]).formula in card
        assert hf_relpos.encoding_card(part["type"]).bibtex in card
    (tmp_path / "README.md").write_text("mine")
    ours.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_flattened_text_has_no_other_relative_import():
    for start in sorted((ROOT / "models").glob("*.py")):
        if start.stem not in FAMILIES:
            continue
        for source in collect(start):
            assert source.parent.name in EXPORT_PACKAGES
            for line in flatten(source).splitlines():
                if line.lstrip().startswith("from ."):
                    assert line.lstrip().startswith("from .relpos_"), f"{source.name}: {line}"


USER_ENCODING = """
from hf_relpos.encodings.card import Card
from hf_relpos.encodings.encoding import Encoding
from hf_relpos.encodings.options import EncodingOptions
from hf_relpos.encodings.registry import register_encoding
from hf_relpos.encodings.terms import DistanceTable


@register_encoding
class Nearness(Encoding[EncodingOptions]):
    name = "nearness"
    shared = True
    card = Card("Nearness", "Doe, Jane", 2026, None, "score = q·k / √D + 1/(1+|n|)", "distance", "both", "defined", venue="home")

    def score_terms(self, inputs):
        table = 1 / (1 + inputs.positions.distances().abs().to(inputs.dtype))
        return (DistanceTable(table.expand(self.host.num_heads, -1), inputs.positions),)
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    def write(text):
        (tmp_path / "nearness.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("nearness", None)
        return __import__("nearness")

    yield write
    _REGISTRY.pop("nearness", None)
    sys.modules.pop("nearness", None)


@pytest.mark.parametrize("inside", [False, True])
def test_a_user_registered_encoding_goes_along(tmp_path, user_module, inside):
    user_module(USER_ENCODING)
    ours = model("bert", {"type": "dape", "bias": "nearness"} if inside else {"type": "nearness"}).float()
    ours.save_pretrained(tmp_path / "bert")
    with torch.no_grad():
        torch.save({"ids": tokens(), "logits": ours(tokens()).logits}, tmp_path / "bert.pt")
    (tmp_path / "folders.json").write_text('{"bert": "MaskedLM"}')
    (tmp_path / "nearness.py").unlink()
    done = run_python(LOADER, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_user_registered_encoding_that_cannot_go_along_is_refused(tmp_path, user_module):
    module = user_module(USER_ENCODING + "\nimport hf_relpos\n")
    ours = model("bert", {"type": "nearness"}).float()
    with pytest.raises(ExportError, match="instead of 'import hf_relpos'"):
        ours.save_pretrained(tmp_path / "bert")
    module.Nearness.__module__ = "__main__"
    with pytest.raises(ExportError, match="define it in a module of its own"):
        ours.save_pretrained(tmp_path / "bert")
    assert not list((tmp_path / "bert").iterdir())
