"""Masks of models stay what they are made of on the way to attention: nothing quadratic in length is made for them, and they hide what a dense one hides.

The backend ``linear_memory`` refuses a call with a dense mask, so that a model which runs with it has none.
"""

from contextlib import nullcontext

import pytest
import torch
from families import DECODERS, FAMILIES, KINDS, model, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

from hf_relpos.attention import linear_memory
from hf_relpos.models import routing
from hf_relpos.models.architectures import is_causal

BATCH, LENGTH, WINDOW = 2, 300, 7
close = {"rtol": 0, "atol": 1e-9}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_decoder = pytest.mark.parametrize("family", DECODERS)
SLIDING = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 0,
    "layer_types": ["full_attention", "sliding_attention"],
}


class Watch(TorchDispatchMode):
    """Fails at a new tensor that holds as many elements as there are pairs of ``queries`` and ``keys``."""

    def __init__(self, queries, keys):
        super().__init__()
        self.pairs = queries * keys

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if type(tensor) is torch.Tensor:
                held = tensor.untyped_storage().nbytes() // tensor.element_size()
                assert held < self.pairs, f"{function} made {list(tensor.shape)}"
        return result


@pytest.fixture(autouse=True)
def linear(monkeypatch):
    """Texts are long enough for linear memory to be chosen, whatever its price."""
    monkeypatch.setattr(linear_memory, "CROSSOVERS", dict.fromkeys(linear_memory.CROSSOVERS, (9, 9)))


@pytest.fixture
def masks(monkeypatch):
    """The masks that attention is given, as they come."""
    seen = []
    attend = routing.attend

    def watch(query, key, value, encodings, mask, **given):
        seen.append(mask)
        return attend(query, key, value, encodings, mask, **given)

    monkeypatch.setattr(routing, "attend", watch)
    return seen


def padding(side, length=LENGTH):
    mask = torch.ones(BATCH, length, dtype=torch.long)
    if side == "left":
        mask[1, :5] = 0
    if side == "right":
        mask[0, -9:] = 0
    return mask


def dense(mask, causal, window=None, documents=None):
    """The same by query and key, ``[B, 1, T, T]``."""
    i, j = torch.arange(mask.shape[1])[:, None], torch.arange(mask.shape[1])
    visible = mask[:, None, None].bool() & torch.ones_like(i == j)
    if causal:
        visible = visible & (j <= i)
    if window is not None:
        visible = visible & ((i - j).abs() < window)
    if documents is not None:
        visible = visible & (documents[:, None, :, None] == documents[:, None, None])
    return visible


@pytest.mark.parametrize("side", ["none", "left", "right"])
@each_family
def test_padding(family, side, masks):
    ours = model(family, KINDS["distance"])
    ids, mask = tokens(BATCH, LENGTH), padding(side)
    with torch.no_grad(), Watch(LENGTH, LENGTH):
        logits = ours(ids, attention_mask=None if side == "none" else mask).logits
    assert masks
    assert all(found.dense is None and found.window is None for found in masks)
    with torch.no_grad():
        expected = ours(ids, attention_mask=dense(mask, family in DECODERS)).logits
    assert masks[-1].dense is not None
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **close)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_sliding_windows(side, causal, masks):
    ours = model("qwen3", KINDS["distance"], is_causal=causal, **SLIDING)
    assert is_causal(ours.config) == causal
    ids, mask = tokens(BATCH, LENGTH), padding(side)
    with torch.no_grad(), Watch(LENGTH, LENGTH):
        logits = ours(ids, attention_mask=mask).logits
    # hosts see so far on both sides where there are two
    reach = WINDOW if causal else WINDOW + 1
    assert [(found.dense, found.window) for found in masks] == [(None, None), (None, reach)]
    by_type = {
        "full_attention": dense(mask, causal),
        "sliding_attention": dense(mask, causal, reach),
    }
    with torch.no_grad():
        expected = ours(ids, attention_mask=by_type).logits
    # by another backend than a dense mask takes: the host normalises in float32, where sums in another order may round to the next number
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-6)
    ours.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **close)


@each_family
def test_packed_texts(family, masks):
    options = SLIDING if family == "qwen3" else {}
    ours = model(family, KINDS["distance"], **options)
    documents = torch.tensor([0] * 40 + [1] * 160 + [2] * 100).expand(BATCH, -1)
    places = torch.cat((torch.arange(40), torch.arange(160), torch.arange(100))).expand(BATCH, -1)
    without_cache = {"use_cache": False} if family in DECODERS else {}
    ids = tokens(BATCH, LENGTH)
    with torch.no_grad(), Watch(LENGTH, LENGTH):
        logits = ours(ids, position_ids=places, **without_cache).logits
    assert all(found.dense is None for found in masks)
    whole = dense(padding("none"), family in DECODERS, documents=documents)
    by_type = {"full_attention": whole, "sliding_attention": dense(padding("none"), True, WINDOW, documents)}
    with torch.no_grad():
        mask = by_type if options else whole
        expected = ours(ids, position_ids=places, attention_mask=mask, **without_cache).logits
    torch.testing.assert_close(logits, expected, **close)


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("static", [False, True])
@each_decoder
def test_caches(family, static, side, masks):
    """In pieces, with what the pieces do not fill of a static cache; windows too."""
    options = SLIDING if family == "qwen3" else {}
    ours = model(family, KINDS["distance"], **options)
    ids, mask = tokens(BATCH, LENGTH), padding(side)
    cache = DynamicCache(config=ours.config)
    if static:
        cache = StaticCache(config=ours.config, max_cache_len=LENGTH + 50)
    parts, start = [], 0
    for size in (260, 1, 30, 9):
        stop = start + size
        with torch.no_grad():
            some = {"attention_mask": mask[:, :stop], "past_key_values": cache, "use_cache": True}
            # later pieces are smaller than the cache that they read
            with Watch(size, stop) if start == 0 else nullcontext():
                parts.append(ours(ids[:, start:stop], **some).logits)
        start = stop
    assert all(found.dense is None for found in masks)
    # keys that are not written yet are left out
    assert max(found.positions.num_keys for found in masks) == LENGTH
    with torch.no_grad():
        expected = ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask.bool()], expected[mask.bool()], **close)


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
@each_decoder
def test_generation(family, implementation, masks):
    options = SLIDING if family == "qwen3" else {}
    ours = model(family, KINDS["distance"], **options)
    ids = tokens(BATCH, 20)
    padded = torch.cat((torch.full((BATCH, 6), 1), ids), dim=1)
    settings = {"max_new_tokens": 6, "pad_token_id": 1, "eos_token_id": None, "do_sample": False}
    expected = ours.generate(ids, use_cache=False, **settings)
    masks.clear()
    mask = (padded != 1).long()
    left = ours.generate(
        padded, attention_mask=mask, cache_implementation=implementation, disable_compile=True, **settings
    )
    assert len(masks) == 12
    assert all(found.dense is None for found in masks)
    assert torch.equal(left[:, 6:], expected)


def inputs_while_tracing(family):
    """Arguments that reach a compiled model, by name."""
    places = torch.cat((torch.arange(4), torch.arange(8))).expand(BATCH, -1)
    return {
        "alone": {},
        "left": {"attention_mask": padding("left", 12)},
        "right": {"attention_mask": padding("right", 12)},
        "packed": {"position_ids": places, **({"use_cache": False} if family in DECODERS else {})},
    }


@pytest.mark.parametrize("name", inputs_while_tracing("bert"))
@each_family
def test_tracing(family, name):
    """A graph has no dense mask either, and hides the same."""
    options = SLIDING if family == "qwen3" else {}
    ours = model(family, KINDS["distance"], **options)
    ids, given = tokens(BATCH, 12), inputs_while_tracing(family)[name]
    with torch.no_grad():
        expected = ours(ids, **given).logits
        ours.set_attn_implementation("linear_memory")
        logits = torch.compile(ours, backend="eager")(ids, **given).logits
    real = given.get("attention_mask", torch.ones(BATCH, 12)).bool()
    torch.testing.assert_close(logits[real], expected[real], **close)


@each_decoder
def test_tracing_with_a_static_cache(family):
    ours = model(family, KINDS["distance"])
    ids, mask = tokens(BATCH, 12), padding("left", 12)
    ours.set_attn_implementation("linear_memory")
    with torch.no_grad():
        expected = ours(ids, attention_mask=mask).logits
        cache = StaticCache(config=ours.config, max_cache_len=20)
        compiled = torch.compile(ours, backend="eager")
        first = compiled(ids[:, :7], attention_mask=mask[:, :7], past_key_values=cache, use_cache=True).logits
        rest = [
            compiled(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=cache, use_cache=True).logits
            for i in range(7, 12)
        ]
    logits = torch.cat((first, *rest), dim=1)
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **close)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_export(family):
    ours = model(family, KINDS["distance"])
    ours.set_attn_implementation("linear_memory")
    ours.config.use_cache = False
    ids, mask = tokens(BATCH, 12), padding("left", 12)
    with torch.no_grad():
        exported = torch.export.export(ours, (), {"input_ids": ids, "attention_mask": mask}, strict=False).module()
        logits, expected = exported(input_ids=ids, attention_mask=mask).logits, ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **close)


def test_what_a_host_lays_over_a_mask_is_kept(masks):
    """A mask by key given as such stays one; any other that the caller makes is dense, and counts alone."""
    ours = model("gpt2", KINDS["distance"])
    ids, mask = tokens(BATCH, 12), padding("left", 12).bool()
    with torch.no_grad():
        by_key = ours(ids, attention_mask=mask[:, None, None]).logits
        assert [(found.dense, found.causal) for found in masks] == [(None, False)] * 2
        full = ours(ids, attention_mask=dense(mask, causal=False)).logits
        assert masks[-1].dense is not None
    torch.testing.assert_close(by_key, full, **close)
