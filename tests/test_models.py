"""Laws of whole models: every family with one method for each kind of term."""

import copy
import pickle

import pytest
import torch
from families import (
    DECODERS,
    ENCODERS,
    FAMILIES,
    KINDS,
    TABLE,
    config,
    host_config,
    language_head,
    model,
    randomise,
    tokens,
)
from transformers import AutoModel, DynamicCache, StaticCache

import hf_relpos
from hf_relpos.attention.backends import BackendRefusal, list_backends
from hf_relpos.encodings.encoding import Encoding, SharedPart
from hf_relpos.encodings.rope import Rope
from hf_relpos.models import routing
from hf_relpos.models.architectures import ARCHITECTURES
from hf_relpos.models.compact_mask import CompactMask
from hf_relpos.models.families import MODEL_CLASSES, classes_of, host_class

each_family = pytest.mark.parametrize("family", FAMILIES)
each_decoder = pytest.mark.parametrize("family", DECODERS)
each_encoder = pytest.mark.parametrize("family", ENCODERS)
each_kind = pytest.mark.parametrize("kind", KINDS)
close = {"rtol": 0, "atol": 1e-9}


@each_kind
@each_family
def test_backends_agree_beyond_the_host_table(family, kind):
    """Also under padding, in outputs and gradients; a backend that refuses says so."""
    ours = model(family, KINDS[kind])
    ids = tokens(length=TABLE + 6)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    real = mask.bool()[..., None]
    results = {}
    for backend in ("auto", *list_backends()):
        ours.set_attn_implementation(backend)
        ours.zero_grad()
        try:
            plain, padded = ours(ids).logits, ours(ids, attention_mask=mask).logits
        except BackendRefusal:
            assert backend in ("sdpa", "linear_memory", "flex", "triton")
            continue
        (plain.square().mean() + (padded * real).square().mean()).backward()
        gradients = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
        results[backend] = (plain, padded * real, gradients)
    assert {"auto", "eager"} <= set(results)
    for backend, found in results.items():
        for one, other in zip(found, results["eager"], strict=True):
            torch.testing.assert_close(one, other, **close, msg=lambda text, name=backend: f"{name}: {text}")
    assert ours.config.rel_pos != {"type": "none"}


@each_kind
@each_family
def test_the_encoding_matters_and_every_parameter_learns(family, kind):
    ours = model(family, KINDS[kind])
    bare = model(family, {"type": "none"})
    bare.load_state_dict({key: value for key, value in ours.state_dict().items() if ".relpos." not in f".{key}"})
    ids = tokens()
    logits = ours(ids).logits
    assert (logits - bare(ids).logits).abs().max() > 1e-3
    logits.square().sum().backward()
    silent = [
        name for name, parameter in ours.named_parameters() if "relpos." in name and not parameter.grad.abs().sum() > 0
    ]
    assert not silent


@each_family
def test_dropped_positions_are_gone(family):
    """Without positions a bidirectional model is equivariant to permutations of its tokens; so is the last token of a causal one,
    which sees all others, invariant to their order, at every length."""
    ours = model(family, {"type": "none"}, num_hidden_layers=1)
    ids = tokens(length=TABLE + 8)
    order = torch.cat((torch.randperm(TABLE + 7), torch.tensor([TABLE + 7])))
    straight, shuffled = ours(ids).logits, ours(ids[:, order]).logits
    if family in ENCODERS:
        torch.testing.assert_close(shuffled, straight[:, order], **close)
    else:
        torch.testing.assert_close(shuffled[:, -1], straight[:, -1], **close)


@each_family
def test_kept_positions_are_the_hosts_own(family):
    """With nothing added and positions kept, the model is its host."""
    ours = model(family, {"type": "none"}, absolute="keep")
    host = host_class(type(ours))(host_config(family)).double().eval()
    host.load_state_dict(ours.state_dict())
    ids, mask = tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[1, -3:] = 0
    theirs, mine = host(ids, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(mine[mask.bool()], theirs[mask.bool()], **close)


@each_family
def test_kept_tables_refuse_longer_texts(family):
    ours = model(family, {"type": "t5"}, absolute="keep")
    if ARCHITECTURES[family].native == "rotary":
        assert ours(tokens(length=TABLE + 5)).logits.isfinite().all()
        return
    with pytest.raises(ValueError, match=r"longer than the table of \d+ absolute positions"):
        ours(tokens(length=TABLE + 5))


@each_kind
@each_family
def test_padding_on_either_side_changes_nothing(family, kind):
    ours = model(family, KINDS[kind])
    ids = tokens(length=9)
    alone = ours(ids).logits
    for side in ("left", "right"):
        pad = torch.full((2, 4), 1)
        padded = torch.cat((pad, ids) if side == "left" else (ids, pad), dim=1)
        mask = (padded != 1).long()
        logits = ours(padded, attention_mask=mask).logits
        torch.testing.assert_close(logits[mask.bool()].view_as(alone), alone, **close)


def _cached(ours, ids, cache, chunks):
    parts, start = [], 0
    for size in chunks:
        parts.append(ours(ids[:, start : start + size], past_key_values=cache, use_cache=True).logits)
        start += size
    return torch.cat(parts, dim=1)


@each_kind
@each_decoder
def test_cached_decoding_equals_the_full_pass(family, kind):
    ours = model(family, KINDS[kind])
    ids = tokens(length=TABLE + 6)
    full = ours(ids).logits
    chunks = (9, 1, 1, 12, 1, 6)
    dynamic = _cached(ours, ids, DynamicCache(config=ours.config), chunks)
    torch.testing.assert_close(dynamic, full, **close)
    static = _cached(ours, ids, StaticCache(config=ours.config, max_cache_len=40), chunks)
    torch.testing.assert_close(static, full, **close)


@each_kind
def test_sliding_window_cache_equals_the_full_pass(kind):
    ours = model(
        "qwen3",
        KINDS[kind],
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=0,
        layer_types=["sliding_attention"] * 2,
    )
    ids = tokens(length=20)
    full = ours(ids).logits
    unlimited = model("qwen3", KINDS[kind])
    assert (full - unlimited(ids).logits).abs().max() > 1e-4
    cache = DynamicCache(config=ours.config)
    torch.testing.assert_close(_cached(ours, ids, cache, (7, 1, 1, 6, 1, 4)), full, **close)


@pytest.mark.parametrize("rel_pos", [{"type": "rope"}, [{"type": "rope", "fraction": 0.5}, {"type": "rope"}]])
def test_keys_enter_a_cache_as_they_are_rotated_once(rel_pos, monkeypatch):
    ours = model("gpt2", rel_pos)
    rotated = []
    rotate = Rope.map_key
    monkeypatch.setattr(
        Rope, "map_key", lambda self, key, inputs: rotated.append(key.shape[2]) or rotate(self, key, inputs)
    )
    ids = tokens(length=12)
    full = ours(ids, use_cache=False).logits
    rotated.clear()
    cache = DynamicCache(config=ours.config)
    torch.testing.assert_close(_cached(ours, ids, cache, (9, 1, 2)), full, **close)
    each = ours.config.n_layer * (len(rel_pos) if isinstance(rel_pos, list) else 1)
    assert rotated == [9] * each + [1] * each + [2] * each


@pytest.mark.parametrize(
    "rel_pos",
    [
        {"type": "rope", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"type": "rope", "heads": [0, 2]},
        [{"type": "rope"}, {"type": "relative_key"}],
    ],
    ids=["by-length", "some-heads", "beside-what-reads-keys"],
)
def test_keys_that_cannot_be_rotated_once_are_rotated_at_every_step(rel_pos):
    ours = model("gpt2", rel_pos)
    ids = tokens(length=12)
    cache = DynamicCache(config=ours.config)
    ours(ids[:, :9], past_key_values=cache, use_cache=True)
    raw = ours.transformer.h[0].attn.c_attn(ours.transformer.h[0].ln_1(ours.transformer.wte(ids[:, :9])))
    keys = raw.chunk(3, dim=-1)[1].unflatten(-1, (ours.config.n_head, -1)).transpose(1, 2)
    torch.testing.assert_close(cache.layers[0].keys, keys, **close)


@each_kind
@each_decoder
def test_generate_with_cache_without_and_left_padded(family, kind):
    ours = model(family, KINDS[kind])
    ids = tokens(length=7)
    settings = {"max_new_tokens": 8, "pad_token_id": 1, "eos_token_id": None}
    greedy = ours.generate(ids, do_sample=False, **settings)
    assert torch.equal(ours.generate(ids, do_sample=False, use_cache=False, **settings), greedy)
    assert torch.equal(
        ours.generate(ids, do_sample=False, cache_implementation="static", disable_compile=True, **settings), greedy
    )
    padded = torch.cat((torch.full((2, 3), 1), ids), dim=1)
    left = ours.generate(padded, attention_mask=(padded != 1).long(), do_sample=False, **settings)
    assert torch.equal(left[:, 3:], greedy)
    beams = ours.generate(ids, num_beams=3, do_sample=False, **settings)
    assert torch.equal(ours.generate(ids, num_beams=3, do_sample=False, use_cache=False, **settings), beams)
    torch.manual_seed(1)
    sampled = ours.generate(ids, do_sample=True, **settings)
    torch.manual_seed(1)
    assert torch.equal(ours.generate(ids, do_sample=True, use_cache=False, **settings), sampled)


@each_kind
@each_family
def test_packed_sequences_equal_the_same_sequences_apart(family, kind):
    ours = model(family, KINDS[kind])
    ids = tokens(batch=1, length=14)
    position_ids = torch.cat((torch.arange(5), torch.arange(9)))[None]
    without_cache = {"use_cache": False} if family in DECODERS else {}
    packed = ours(ids, position_ids=position_ids, **without_cache).logits
    for part in (slice(0, 5), slice(5, 14)):
        torch.testing.assert_close(packed[:, part], ours(ids[:, part]).logits, **close)


@each_family
def test_attention_weights_on_request(family):
    ours = model(family, KINDS["distance"])
    ids = tokens()
    output = ours(ids, output_attentions=True)
    assert len(output.attentions) == 2
    for weights in output.attentions:
        assert weights.shape == (2, 4, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    torch.testing.assert_close(output.logits, ours(ids).logits, **close)


@each_kind
@each_family
def test_save_and_load_bit_equal(family, kind, tmp_path):
    ours = model(family, KINDS[kind]).float()
    ids = tokens()
    logits = ours(ids).logits
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, logits)
    assert again.config.rel_pos == ours.config.rel_pos
    assert not [name for name, _ in again.named_buffers() if "relpos" in name]
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is type(ours.base_model)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(ids).logits, logits)


@each_kind
@each_family
def test_ordinary_weights_get_an_encoding_initialised_as_the_method_says(family, kind, tmp_path):
    """Run with new memory filled by NaN (see conftest): whatever initialisation forgets shows."""
    head = hf_relpos.auto_class(family, language_head(family))
    host = host_class(head)(host_config(family))
    host.save_pretrained(tmp_path)
    ours = head.from_pretrained(tmp_path, rel_pos=KINDS[kind], absolute="drop").eval()
    for name, parameter in ours.named_parameters():
        assert parameter.isfinite().all(), name
    owners = [module for module in ours.modules() if isinstance(module, (Encoding, SharedPart))]
    assert owners
    for module in owners:
        fresh = copy.deepcopy(module)
        fresh.reset_parameters()
        for (name, loaded), drawn in zip(
            module.named_parameters(recurse=False), fresh.parameters(recurse=False), strict=True
        ):
            assert loaded.abs().max() <= 8 * drawn.abs().max(), name
            constant = (drawn == drawn.flatten()[0]).all()
            assert torch.equal(loaded, drawn) if constant and drawn.numel() > 1 else loaded.abs().sum() > 0, name
    assert ours(tokens(length=TABLE + 4)).logits.isfinite().all()
    kept = {key: value for key, value in host.state_dict().items() if key in ours.state_dict()}
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in kept.items())


@pytest.mark.parametrize("kind", ["list", "gates", "shared-part", "layers"])
@pytest.mark.parametrize("reentrant", [False, True])
@each_family
def test_gradient_checkpointing_gives_the_same_gradients(family, reentrant, kind):
    ours = model(family, KINDS[kind])
    ours.train()
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ours.config.use_cache = False
    for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"):
        if hasattr(ours.config, name):
            setattr(ours.config, name, 0.0)
    for module in ours.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    ids = tokens()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            ours.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
            ours.enable_input_require_grads()
        ours.zero_grad()
        ours(ids).logits.square().sum().backward()
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in ours.named_parameters() if parameter.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}", **close)


@each_family
def test_bfloat16_stays_close_to_float32(family):
    ours = model(family, KINDS["list"]).float()
    for parameter in ours.parameters():
        parameter.data.mul_(0.3)
    exact = ours(tokens()).logits
    rounded = ours.to(torch.bfloat16)(tokens()).logits
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.02


@each_family
def test_every_head_runs(family):
    for head, cls in classes_of(family).items():
        labels = (
            {}
            if head in ("ForQuestionAnswering", "ForNextSentencePrediction", "ForMultipleChoice")
            else {"num_labels": 3}
        )
        made = config(family, KINDS["distance"], **labels)
        ours = cls(made).eval()
        ids = tokens()[:, None].repeat(1, 2, 1) if head == "ForMultipleChoice" else tokens()
        output = ours(ids)
        assert next(iter(output.values())).isfinite().all(), head
    assert host_class(type(ours)).__module__.startswith("transformers.models")


def test_every_head_of_transformers_has_a_class():
    """A head that a later transformers adds to a family shows up here."""
    import transformers

    for family in FAMILIES:
        base = host_class(classes_of(family)["Model"])
        prefix = base.__name__.removesuffix("Model")
        module = __import__(base.__module__, fromlist=["*"])
        heads = [
            name
            for name in module.__all__
            if name.startswith(f"{prefix}For") or name.endswith(("LMHeadModel", "DoubleHeadsModel"))
        ]
        ours = {host_class(cls).__name__ for cls in MODEL_CLASSES.values()}
        missing = [name for name in heads if name not in ours and hasattr(transformers, name)]
        assert not missing


def test_absolute_sinusoid_at_the_input():
    """``add_absolute`` adds PE of the token's place in its own text: left padding and cached decoding leave it alone."""
    for family in ("bert", "roberta", "gpt2", "opt", "llama"):
        with_input = model(family, {"type": "sinusoidal_bias", "add_absolute": True})
        without = model(family, {"type": "sinusoidal_bias"})
        without.load_state_dict(with_input.state_dict())
        ids = tokens(length=9)
        logits = with_input(ids).logits
        assert (logits - without(ids).logits).abs().max() > 1e-3
        padded = torch.cat((torch.full((2, 3), 1), ids), dim=1)
        mask = (padded != 1).long()
        left = with_input(padded, attention_mask=mask).logits[:, 3:]
        torch.testing.assert_close(left, logits, **close)
        if family in DECODERS:
            cache = DynamicCache(config=with_input.config)
            torch.testing.assert_close(_cached(with_input, ids, cache, (4, 1, 4)), logits, **close)


def test_switching_the_implementation_behind_the_models_back_is_refused():
    ours = model("bert", KINDS["distance"])
    ours.config._attn_implementation = "sdpa"
    with pytest.raises(RuntimeError, match="behind the model's back"):
        ours(tokens())
    for name in ("flash_attention_2", "nonsense"):
        with pytest.raises(ValueError, match="valid"):
            model("bert", KINDS["distance"]).set_attn_implementation(name)
    with pytest.raises(ValueError, match="would drop"):
        hf_relpos.RelPosBertModel._from_config(
            config("bert", KINDS["distance"]), attn_implementation="flash_attention_2"
        )


@each_family
def test_add_relative_positions_equals_loading(family, tmp_path):
    head = hf_relpos.auto_class(family, language_head(family))
    host = randomise(host_class(head)(host_config(family)))
    host.save_pretrained(tmp_path)
    before, old = host.config.to_dict(), host.config
    ours = hf_relpos.add_relative_positions(host, {"type": "alibi"}, absolute="drop")
    assert ours is host
    assert type(ours) is head
    assert ours.config is not old
    assert old.to_dict() == before
    loaded = head.from_pretrained(tmp_path, rel_pos={"type": "alibi"}, absolute="drop").eval()
    assert torch.equal(ours(tokens()).logits, loaded(tokens()).logits)
    ours.save_pretrained(tmp_path / "again")
    assert torch.equal(head.from_pretrained(tmp_path / "again").eval()(tokens()).logits, loaded(tokens()).logits)


def test_a_checkpoint_changes_its_encoding_when_asked(tmp_path):
    ours = model("bert", KINDS["distance"]).float()
    ours.save_pretrained(tmp_path)
    other = type(ours).from_pretrained(tmp_path, rel_pos={"type": "kerple_log"})
    assert other.config.rel_pos["type"] == "kerple_log"
    assert other.config.absolute == "drop"


@each_family
def test_relations_reach_attention(family):
    """Ids given for each pair matter, are those of the pair, and cannot be left out."""
    rel_pos = [{"type": "relation", "num_relations": 3, "scalars": True}, {"type": "alibi"}]
    ours = model(family, rel_pos)
    ids = tokens(length=6)
    relations = torch.randint(3, (2, 6, 6), generator=torch.Generator().manual_seed(3))
    logits = ours(ids, relation_ids=relations).logits
    changed = relations.clone()
    changed[:, 4, 2] = (changed[:, 4, 2] + 1) % 3
    assert (ours(ids, relation_ids=changed).logits - logits)[:, 4].abs().max() > 1e-4
    with pytest.raises(ValueError, match="needs relation_ids"):
        ours(ids)
    with pytest.raises(ValueError, match=r"relation_ids has shape \[2, 5, 6\]"):
        ours(ids, relation_ids=relations[:, 1:])
    with pytest.raises(ValueError, match="no encoding of this model reads them"):
        model(family, {"type": "alibi"})(ids, relation_ids=relations)
    if family in DECODERS:
        cache = DynamicCache(config=ours.config)
        first = ours(ids[:, :4], past_key_values=cache, relation_ids=relations[:, :4, :4]).logits
        second = ours(ids[:, 4:], past_key_values=cache, relation_ids=relations[:, 4:]).logits
        torch.testing.assert_close(torch.cat((first, second), dim=1), logits, **close)


@each_family
def test_layers_may_differ(family, tmp_path):
    """Values take turns over the layers; what two layers share is one module."""
    rel_pos = {
        "layers": [
            {"type": "t5", "num_buckets": 8, "max_distance": 16},
            [{"type": "t5", "num_buckets": 8, "max_distance": 16}, "fox"],
            "none",
        ]
    }
    ours = model(family, rel_pos, num_hidden_layers=4)
    owners = [
        name
        for name, module in ours.named_modules()
        if isinstance(module, Encoding) and name.startswith(ours.base_model_prefix)
    ]
    assert sum(".members." in name and "layer" not in name.split("relpos")[0] for name in owners) == 2
    ids = tokens()
    logits = ours(ids).logits
    for module in ours.modules():
        if isinstance(module, Encoding) and module.name == "t5":
            with torch.no_grad():
                module.bias.add_(torch.randn(module.bias.shape, dtype=module.bias.dtype))
    assert (ours(ids).logits - logits).abs().max() > 1e-4
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path).double().eval()
    torch.testing.assert_close(again(ids).logits, ours(ids).logits, **close)
    with pytest.raises(ValueError, match="encodings for 3 layers, but the model has 2"):
        model(family, rel_pos, num_hidden_layers=2)


@each_family
def test_masks_stay_compact_on_the_way_to_attention(family, monkeypatch):
    """Padding, causality and packing reach attention as what they are; whoever touches the mask gets its numbers."""
    ours = model(family, KINDS["distance"])
    ours.set_attn_implementation("sdpa")
    ids = tokens(length=10)
    padding = torch.ones_like(ids)
    padding[1, :3] = 0
    packed = torch.cat((torch.arange(4), torch.arange(6)))[None].expand(2, -1)
    seen = []
    attend = routing.attend

    def watch(query, key, value, encodings, mask, **given):
        seen.append(mask)
        return attend(query, key, value, encodings, mask, **given)

    monkeypatch.setattr(routing, "attend", watch)
    ours(ids)
    ours(ids, attention_mask=padding)
    ours(ids, position_ids=packed, **({"use_cache": False} if family in DECODERS else {}))
    assert len(seen) >= 6
    assert all(mask.dense is None for mask in seen)
    assert all(mask.causal == (family in DECODERS) for mask in seen)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_a_compact_mask_is_its_numbers_to_everybody_else(causal, window):
    padding = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 2, 2]])
    mask = CompactMask(2, 3, 5, causal=causal, window=window, offset=2, padding=padding, documents=documents)
    i, j = torch.arange(3)[:, None] + 2, torch.arange(5)
    expected = padding[:, None, None] & (documents[:, 2:, None] == documents[:, None])[:, None]
    if causal:
        expected = expected & (j <= i)
    if window is not None:
        expected = expected & ((i - j).abs() < window)
    assert mask.shape == (2, 1, 3, 5)
    assert torch.equal(mask.dense(), expected)
    assert torch.equal(mask[..., 1:4], expected[..., 1:4])
    assert torch.equal(mask | ~mask, torch.ones_like(expected))
    assert torch.equal(torch.where(mask, 0.0, 1.0), 1.0 - expected.float())
    assert torch.equal(mask.detach(), expected)
