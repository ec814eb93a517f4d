"""Encodings against other people's code: its stored numbers, from its stored parameters.

The references of ``tests/fixtures/foreign`` were written with transformers 5 and 4.57.6, x-transformers and other packages by the scripts there,
whose ``common.py`` says what a file holds; ``sources.json`` beside them lists the code that each method was checked against, or why there is none.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import hf_relpos

FOLDER = Path(__file__).parent / "fixtures" / "foreign"
SOURCES = json.loads((FOLDER / "sources.json").read_text())
NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def read(name):
    """The description of a fixture and its tensors, in float64 where they are numbers."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        fixture = json.loads(file.metadata()["fixture"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    return fixture, {key: x.double() if x.is_floating_point() else x for key, x in tensors.items()}


def encoding_of(fixture, tensors):
    """Our encoding with the foreign parameters, which must be all of its own."""
    encoding = hf_relpos.build_encoding(fixture["rel_pos"], **fixture["host"]).double().eval()
    parameters = {key.removeprefix("parameter."): x for key, x in tensors.items() if key.startswith("parameter.")}
    assert {key: x.shape for key, x in encoding.named_parameters()} == {key: x.shape for key, x in parameters.items()}
    encoding.load_state_dict(parameters)
    return encoding


def attend(fixture, tensors, **options):
    """Our attention on the stored inputs."""
    given = ("attention_mask", "hidden_states", "segment_ids", "relation_ids")
    return hf_relpos.attention(
        tensors["query"],
        tensors["key"],
        tensors.get("value", tensors["key"]),
        encoding_of(fixture, tensors),
        **fixture["call"],
        **{key: tensors[key] for key in given if key in tensors},
        **options,
    )


def visible(fixture, tensors):
    """Which keys a query sees, ``[B, 1, Tq, Tk]``."""
    queries, keys = tensors["query"].shape[2], tensors["key"].shape[2]
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if fixture["call"]["is_causal"]:
        allowed = allowed.tril(keys - queries)
    padding = tensors.get("attention_mask", torch.ones(1, keys))
    return allowed & padding.bool()[:, None, None, :]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_foreign_result(name):
    fixture, tensors = read(name)
    tolerance = fixture["tolerance"]
    if "output" in tensors:
        torch.testing.assert_close(attend(fixture, tensors), tensors["output"], rtol=0, atol=tolerance)
        return
    _, weights = attend(fixture, tensors, return_weights=True)
    allowed = visible(fixture, tensors)
    real = allowed.any(-1, keepdim=True)  # rows that see no key have no weights
    logits = tensors["logits"].masked_fill(~allowed, -torch.inf)
    # what softmax ignores, a constant for each row, differs between writings of one method
    expected = torch.log_softmax(logits.masked_fill(~real, 0.0), dim=-1)
    compared = (allowed & real).expand_as(weights)
    torch.testing.assert_close(weights.log()[compared], expected.expand_as(weights)[compared], rtol=0, atol=tolerance)
    assert not weights[~allowed.expand_as(weights)].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_encoding_matters_for_the_result(name):
    """Attention without it is far from the foreign result, so that the comparison above says something."""
    fixture, tensors = read(name)
    options = {key: value for key, value in fixture["call"].items() if key != "scale"}
    mask = tensors.get("attention_mask")
    plain = hf_relpos.attention(
        tensors["query"],
        tensors["key"],
        tensors.get("value", tensors["key"]),
        attention_mask=mask,
        return_weights=True,
        **options,
    )
    if "output" in tensors:
        assert (plain[0] - tensors["output"]).abs().max() > 0.02
    else:
        allowed = visible(fixture, tensors)
        real = allowed.any(-1, keepdim=True)
        expected = torch.softmax(tensors["logits"].masked_fill(~allowed, -1e30), dim=-1)
        assert ((plain[1] - expected) * real).abs().max() > 0.02


def test_sources_say_what_was_checked_against_what():
    assert set(SOURCES) <= set(hf_relpos.list_encodings())
    checks = [(method, check) for method, entry in SOURCES.items() for check in entry["checked"]]
    assert sorted(name for _, check in checks for name in check["fixtures"]) == NAMES
    for method, entry in SOURCES.items():
        assert bool(entry["checked"]) != bool(entry["reason"]), (
            f"{method}: either checks or the reason why there are none"
        )
    for method, check in checks:
        assert check["fixtures"] or (FOLDER.parents[2] / check["elsewhere"]).is_file()
        for name in check["fixtures"]:
            fixture, _ = read(name)
            assert fixture["rel_pos"]["type"] == method
            assert fixture["source"] == {key: check[key] for key in ("package", "version", "code")}
            assert (fixture["precision"], fixture["tolerance"]) == (check["precision"], check["tolerance"])


def test_all_fixtures_together_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 800_000
