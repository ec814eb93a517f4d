"""What layers share is computed once in a forward of the model: counted, with equal outputs and gradients, and never where it would not be sound."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cases import all_cases, build, label
from families import FAMILIES, model, tokens
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from hf_relpos.encodings.encoding import Encoding
from hf_relpos.encodings.inputs import OncePerForward
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.registry import registered_encodings

close = {"rtol": 0, "atol": 1e-9}
SHARED = {
    "t5": {"type": "t5", "num_buckets": 8},
    "fire": {"type": "fire"},
    "tupe": {"type": "tupe", "max_position_embeddings": 64, "relative": True},
}
each_shared = pytest.mark.parametrize("method", SHARED)


@pytest.fixture
def computed(monkeypatch):
    """The slots for which score terms are computed, as it happens."""
    seen = []
    for cls in registered_encodings().values():
        if cls.by_place:

            def watch(self, inputs, own=cls.score_terms):
                seen.append(inputs.positions.identity)
                return own(self, inputs)

            monkeypatch.setattr(cls, "score_terms", watch)
    return seen


def without(monkeypatch):
    monkeypatch.setattr(OncePerForward, "get", lambda self, key, compute: compute())


def outcome(ours, *args, **kwargs):
    ours.zero_grad()
    logits = ours(*args, **kwargs).logits
    logits.square().sum().backward()
    return logits, {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}


def assert_equal(one, other):
    torch.testing.assert_close(one[0], other[0], **close)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], msg=lambda text, name=name: f"{name}: {text}", **close)


@each_shared
@pytest.mark.parametrize("family", FAMILIES)
def test_one_computation_serves_all_layers(family, method, computed, monkeypatch):
    ours = model(family, SHARED[method], num_hidden_layers=3)
    ids, mask = tokens(length=14), torch.ones(2, 14, dtype=torch.long)
    mask[0, :4] = 0
    found = outcome(ours, ids, attention_mask=mask)
    assert len(computed) == 1
    without(monkeypatch)
    computed.clear()
    expected = outcome(ours, ids, attention_mask=mask)
    assert len(computed) == 3
    assert_equal(found, expected)
    assert any("relpos." in name and gradient.abs().sum() > 0 for name, gradient in found[1].items())


@each_shared
def test_new_parameters_count_at_once(method):
    ours = model("bert", SHARED[method])
    ids = tokens(length=9)
    first = ours(ids).logits
    for name, parameter in ours.named_parameters():
        if "relpos." in name:
            parameter.data.mul_(-1.5)
    assert (ours(ids).logits - first).abs().max() > 1e-4


@each_shared
def test_each_step_of_decoding_has_its_own(method, computed):
    ours = model("gpt2", SHARED[method], num_hidden_layers=3)
    ids, cache, parts = tokens(length=9), DynamicCache(), []
    with torch.no_grad():
        full = ours(ids).logits
        computed.clear()
        for start, stop in ((0, 5), (5, 6), (6, 9)):
            parts.append(ours(ids[:, start:stop], past_key_values=cache, use_cache=True).logits)
    assert [place[:3] for place in computed] == [(5, 5, 0), (1, 6, 5), (3, 9, 6)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, **close)


def test_layers_with_other_slots_have_their_own(computed):
    options = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    ours = model(
        "qwen3", SHARED["t5"], num_hidden_layers=4, layer_types=["full_attention", "sliding_attention"] * 2, **options
    )
    ids, cache = tokens(length=9), DynamicCache(config=ours.config)
    with torch.no_grad():
        full = ours(ids).logits
        computed.clear()
        first = ours(ids[:, :7], past_key_values=cache, use_cache=True).logits
        rest = ours(ids[:, 7:], past_key_values=cache, use_cache=True).logits
    # a sliding cache holds fewer keys by then
    assert [place[:2] for place in computed] == [(7, 7), (2, 9), (2, 5)]
    torch.testing.assert_close(torch.cat((first, rest), dim=1), full, **close)


def still(ours):
    """Training mode without dropout."""
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    ours.config.use_cache = False
    return ours


@each_shared
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_checkpointing_by_transformers(family, reentrant, method, computed):
    """Tables stand outside of what is recomputed; where layers first run without gradients, each computes its own."""
    ours = still(model(family, SHARED[method], num_hidden_layers=3, attention_probs_dropout_prob=0.0, attn_pdrop=0.0))
    ids = tokens()
    expected = outcome(ours, ids)
    computed.clear()
    ours.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    ours.enable_input_require_grads()
    assert_equal(outcome(ours, ids), expected)
    assert len(computed) == (6 if reentrant else 1)


@each_shared
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,), (2,)])
def test_checkpointing_by_others(layers, reentrant, method):
    """Layers wrapped one by one, of which transformers knows nothing, and some of them only."""
    ours = still(model("bert", SHARED[method], num_hidden_layers=3, attention_probs_dropout_prob=0.0))
    ids = tokens()
    expected = outcome(ours, ids)
    ours.enable_input_require_grads()
    for number in layers:
        layer = ours.bert.encoder.layer[number]

        def wrapped(*args, forward=layer.forward, **kwargs):
            return checkpoint(partial(forward, **kwargs), *args, use_reentrant=reentrant)

        layer.forward = wrapped
    assert_equal(outcome(ours, ids), expected)


def test_a_checkpointed_model(computed):
    ours = still(model("bert", SHARED["t5"], num_hidden_layers=3, attention_probs_dropout_prob=0.0))
    ids = tokens()
    expected = outcome(ours, ids)
    computed.clear()
    forward = ours.bert.forward
    ours.bert.forward = lambda **kwargs: checkpoint(forward, use_reentrant=False, **kwargs)
    assert_equal(outcome(ours, ids), expected)
    assert len(computed) == 1


def test_transforms_of_functions(computed):
    ours = model("bert", SHARED["t5"], num_hidden_layers=3)
    ids = tokens()
    parameters = {name: parameter.detach() for name, parameter in ours.named_parameters()}
    expected = outcome(ours, ids)[1]
    computed.clear()
    ours.set_attn_implementation("sdpa")

    def loss(parameters):
        return torch.func.functional_call(ours, parameters, (ids,)).logits.square().sum()

    found = torch.func.grad(loss)(parameters)
    assert len(computed) == 3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **close)


@pytest.mark.parametrize("case", all_cases(), ids=label)
def test_who_says_that_it_reads_places_alone(case):
    """Exactly those whose terms need no more than slots, indices, scale and dtype."""
    encoding = build(*case)
    positions = Positions.consecutive(5, 5)
    places = SimpleNamespace(positions=positions, dtype=torch.float64, scale=0.5, query_index=None, key_index=None)
    places.indices = lambda: (positions.query, positions.key)
    try:
        able = bool(encoding.score_terms(places))
    except AttributeError:
        able = False
    if type(encoding).score_terms is not Encoding.score_terms:
        assert able == encoding.by_place


def test_ids_of_relations_are_looked_at_once(monkeypatch):
    looks = []
    aminmax = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda self, *args, **kwargs: looks.append(1) or aminmax(self))
    for family in ("bert", "gpt2"):
        ours = model(family, {"type": "relation", "num_relations": 5}, num_hidden_layers=3)
        looks.clear()
        ids = tokens(length=6)
        ours(ids, relation_ids=torch.zeros(2, 6, 6, dtype=torch.long))
        assert len(looks) == 1
        with pytest.raises(ValueError, match="relation_ids holds 5"):
            ours(ids, relation_ids=torch.full((2, 6, 6), 5))
