"""The matrix says what happens: whoever says yes runs, whoever says no refuses."""

import pytest
import torch

import hf_relpos
from hf_relpos.attention.backends import BACKENDS, BackendRefusal, backends_for
from hf_relpos.encodings.encoding import Encoding
from hf_relpos.encodings.options import EncodingOptions, option_table
from hf_relpos.encodings.registry import _REGISTRY, register_encoding
from hf_relpos.matrix import DIRECTIONS, LENGTH, cell, columns, family_answers, matrix, notes, refusals, tiny_config
from hf_relpos.models.architectures import ARCHITECTURES


@pytest.fixture(scope="module")
def answers():
    return matrix()


def test_everybody_was_asked(answers):
    asked = {(answer.method, answer.kind, answer.name) for answer in answers}
    places = [("backend", name) for name in hf_relpos.list_backends()] + [("family", name) for name in ARCHITECTURES]
    assert asked == {(method, *place) for method in hf_relpos.list_encodings() for place in places}
    assert sorted(columns(answers)) == sorted(places)


def test_backends_do_what_they_say(answers):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, LENGTH, 8)
    given = {
        "hidden_states": torch.randn(1, LENGTH, 32),
        "segment_ids": torch.zeros(1, LENGTH, dtype=torch.long),
        "relation_ids": torch.zeros(1, LENGTH, LENGTH, dtype=torch.long),
    }
    for answer in answers:
        # what the machine lacks is not asked about
        if answer.kind != "backend" or answer.name not in backends_for("cpu"):
            continue
        causal = DIRECTIONS[answer.where]
        try:
            encoding = hf_relpos.build_encoding(
                answer.method, num_heads=4, head_dim=8, max_position_embeddings=LENGTH, causal=causal
            )
            with torch.no_grad():
                hf_relpos.attention(query, key, value, encoding.eval(), is_causal=causal, backend=answer.name, **given)
            refusal = ""
        except ValueError as error:
            refusal = str(error)
        assert answer.ok == (refusal == ""), f"{answer}: {refusal}"
        assert all(reason in refusal for reason in answer.reasons)


def test_backends_that_are_elsewhere_say_what_is_missing(answers):
    assert any(answer.ok for answer in answers if answer.name == "triton")
    elsewhere = set(BACKENDS) - set(backends_for("cpu"))
    query = torch.randn(1, 4, LENGTH, 8)
    for name in elsewhere:
        with pytest.raises(BackendRefusal, match="triton"):
            hf_relpos.attention(query, query, query, backend=name)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_families_do_what_they_say(family, answers):
    host = tiny_config(family)
    for number, method in enumerate(hf_relpos.list_encodings()):
        if number % len(ARCHITECTURES) != sorted(ARCHITECTURES).index(family):
            continue
        (answer,) = (a for a in answers if (a.method, a.name) == (method, family))
        values = {**host.to_dict(), "rel_pos": {"type": method}, "absolute": "drop", "model_type": f"relpos_{family}"}
        config_class = hf_relpos.auto_class(family, "Model").config_class
        try:
            hf_relpos.auto_class(family, "Model")(config_class(**values))
            refusal = ""
        except ValueError as error:
            refusal = str(error)
        assert answer.ok == (refusal == ""), f"{answer}: {refusal}"


def test_a_refusal_is_told_with_its_reason():
    class NarrowOptions(EncodingOptions):
        def resolve(self, host):
            if host.causal:
                raise ValueError("order is no secret here")
            return self

    class Narrow(Encoding[NarrowOptions]):
        name = "narrow"
        Options = NarrowOptions
        card = hf_relpos.encoding_card("none")

    register_encoding(Narrow)
    try:
        found = family_answers("narrow")
    finally:
        _REGISTRY.pop("narrow")
    assert cell(found, "narrow", ("family", "bert")) == "yes"
    assert cell(found, "narrow", ("family", "gpt2")) == "no"
    (told,) = [told for told in refusals(found) if told.startswith("gpt2")]
    assert "order is no secret here" in told
    assert refusals(found)[told] == ["narrow (decoder)"]


def test_what_was_not_measured_is_said_so(answers):
    for answer in answers:
        note = BACKENDS[answer.name].note if answer.kind == "backend" else ""
        assert answer.note == note
        assert answer.to_dict()["note"] == note
    assert notes(answers) == {name: backend.note for name, backend in BACKENDS.items() if backend.note}
    assert all("not measured on a GPU yet" in notes(answers)[name] for name in ("flex", "triton"))


def test_some_method_is_refused_by_some_backend(answers):
    """Else the tests above would say nothing."""
    assert any(answer.kind == "backend" and not answer.ok for answer in answers)
    assert issubclass(BackendRefusal, ValueError)


@pytest.mark.parametrize("name", hf_relpos.list_encodings())
def test_each_option_has_a_default_and_valid_values(name):
    rows = option_table(_REGISTRY[name].Options)
    assert {option for option, _, _ in rows} >= set(_REGISTRY[name].Options().to_dict())
    assert all(allowed and "class" not in allowed for _, _, allowed in rows)
    assert [option for option, _, _ in rows][-2:] == ["share_layers", "heads"]


def test_valid_values_are_found_by_asking():
    allowed = {option: valid for option, _, valid in option_table(_REGISTRY["t5"].Options)}
    assert allowed["num_buckets"] == "an even integer of at least 4"
    assert allowed["scaling"] == "one of 'host', 'paper'"
    assert allowed["max_distance"] == "an integer, larger than num_buckets=32"
