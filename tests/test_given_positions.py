"""Positions that are drawn or read off the tokens: randomised slots, random absolute positions, segments."""

import importlib
import inspect

import pytest
import torch
from cases import WIDTH, build, tensors
from families import DECODERS, FAMILIES, TABLE, model, tokens
from transformers import DynamicCache, StaticCache

import hf_relpos
from hf_relpos.attention.attend import attend
from hf_relpos.attention.backends import BackendRefusal, list_backends
from hf_relpos.attention.call import Mask
from hf_relpos.attention.functional import optional_inputs
from hf_relpos.encodings.inputs import Tokens
from hf_relpos.encodings.positions import Positions
from hf_relpos.models.architectures import ARCHITECTURES

close = {"rtol": 0, "atol": 1e-9}
# long enough for the fused paths to be taken
LENGTH, LIMIT, SEED = 11, 23, 5
INNER = [
    {"type": "transformer_xl"},
    {"type": "alibi"},
    {"type": "t5", "num_buckets": 8, "max_distance": 16},
    {"type": "relative_key_query", "max_position_embeddings": 6},
    {"type": "shaw", "max_distance": 3},
    {"type": "rope"},
    {"type": "fire", "init_length": 4},
    {"type": "cope", "npos": 4},
]


def drawn(seed=SEED):
    return torch.randperm(LIMIT, generator=torch.Generator().manual_seed(seed))[:LENGTH].sort().values


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner["type"])
def test_randomized_positions_are_sorted_draws_in_training_only(inner, causal):
    """In training every inner method equals its oracle at the drawn slots; otherwise it is the inner method."""
    encoding = build({"type": "randomized", "encoding": inner, "max_position": LIMIT}, causal)
    query, key, value = tensors(LENGTH, LENGTH)
    positions = Positions.consecutive(LENGTH, LENGTH)
    mask = Mask(positions, causal=causal)

    def outputs():
        given = {"seed": SEED, **optional_inputs(encoding, positions)}
        for backend in ("auto", *list_backends()):
            try:
                found = attend(query, key, value, (encoding,), mask, scale=WIDTH**-0.5, backend=backend, **given)
            except BackendRefusal:
                continue
            yield found[0].transpose(1, 2)

    alone = build(inner, causal)
    alone.load_state_dict(encoding.inner.state_dict())
    plain = hf_relpos.attention(query, key, value, alone, is_causal=causal)
    for output in outputs():
        torch.testing.assert_close(output, plain, rtol=0, atol=1e-12)

    encoding.train()
    oracle = importlib.import_module(f"oracles.{inner['type']}")
    slots = drawn()
    index = (slots - slots[0])[None].expand(2, -1)
    known = {"query_index": index, "key_index": index}
    allowed = torch.ones(2, LENGTH, LENGTH, dtype=torch.bool)
    expected = oracle.attention(
        query,
        key,
        value,
        dict(alone.named_parameters()),
        alone.config(),
        slots.tolist(),
        slots.tolist(),
        allowed.tril() if causal else allowed,
        WIDTH**-0.5,
        **{name: value for name, value in known.items() if name in inspect.signature(oracle.attention).parameters},
    )
    for output in outputs():
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


def test_all_positions_drawn_are_the_positions():
    encoding = build({"type": "randomized", "encoding": {"type": "alibi"}, "max_position": LENGTH}, True).train()
    query, key, value = tensors(LENGTH, LENGTH)
    drawn_all = hf_relpos.attention(query, key, value, encoding, is_causal=True)
    torch.testing.assert_close(drawn_all, hf_relpos.attention(query, key, value, encoding.eval(), is_causal=True))
    longer = tensors(LENGTH + 1, LENGTH + 1)
    with pytest.raises(
        ValueError, match=f"{LENGTH + 1} tokens cannot have distinct random positions below max_position={LENGTH}"
    ):
        hf_relpos.attention(*longer, encoding.train(), is_causal=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_and_recomputation_share_a_draw(family):
    """With one draw for a forward, gradient checkpointing finds the same scores again; another forward draws anew."""
    ours = model(family, {"type": "randomized", "encoding": {"type": "alibi"}, "max_position": 400})
    ids = tokens()
    evaluated = ours(ids).logits
    ours.train()
    for module in ours.modules():
        for name in ("attention_dropout", "dropout", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    ours.config.use_cache = False
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            ours.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            ours.enable_input_require_grads()
        torch.manual_seed(2)
        ours.zero_grad()
        logits = ours(ids).logits
        logits.square().sum().backward()
        gradients.append(next(parameter.grad.clone() for parameter in ours.parameters() if parameter.grad is not None))
    assert (logits - evaluated).abs().max() > 1e-4
    assert (ours(ids).logits - logits).abs().max() > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], **close)


@pytest.mark.parametrize("kind", ["offset", "sorted"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if ARCHITECTURES[name].native == "table"])
def test_absolute_positions_are_drawn_in_training(family, kind):
    """The host sees other rows of its table in training, a shifted run or sorted ones, also under padding; in evaluation its own."""
    rel_pos = {"type": "randomized", "encoding": {"type": "none"}, "absolute": kind}
    ours = model(family, rel_pos, absolute="keep")
    plain = model(family, {"type": "none"}, absolute="keep")
    plain.load_state_dict(ours.state_dict())
    ids = tokens(length=6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    torch.testing.assert_close(ours(ids).logits, plain(ids).logits, **close)
    seen = []
    path = ARCHITECTURES[family].position_module

    def watch(module, args, kwargs):
        seen.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))

    base = ours.base_model
    table = base.get_submodule(path)
    handle = table.register_forward_pre_hook(watch, with_kwargs=True)
    base.train()
    for seed in range(4):
        torch.manual_seed(seed)
        ours(ids, attention_mask=mask)
    ours(ids)
    handle.remove()
    if family == "opt":
        # its table is given the mask beside the positions
        assert len(seen) == 5
        return
    first = 2 if family == "roberta" else 0
    for positions in seen:
        row = positions[0]
        assert (row.diff() > 0).all()
        assert int(row.min()) >= first
        assert int(row.max()) < TABLE
        assert kind == "sorted" or (row.diff() == 1).all()
    assert len({tuple(positions[0].tolist()) for positions in seen}) > 2
    assert seen[0][1, 2] == seen[0][0, 0]


def test_random_absolute_positions_need_a_table():
    rel_pos = {"type": "randomized", "encoding": {"type": "none"}, "absolute": "offset"}
    for family, absolute in (("bert", "drop"), ("llama", "keep")):
        with pytest.raises(ValueError, match="draws absolute positions at random"):
            model(family, rel_pos, absolute=absolute)


SEGMENTED = {"type": "bipe", "separator_ids": [5, 7], "max_segment": 4}


def segmented_tokens():
    ids = tokens(length=14) % 90 + 8
    ids[0, [2, 3, 9]] = 5
    ids[1, [0, 6, 7]] = torch.tensor([7, 5, 7])
    return ids


@pytest.mark.parametrize("inter", ["rope", "alibi"])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_are_read_off_the_tokens(family, inter):
    ours = model(family, {**SEGMENTED, "inter": inter})
    ids = segmented_tokens()
    logits = ours(ids).logits
    # the same segments, told
    told = model(family, {**SEGMENTED, "inter": inter, "separator_ids": []})
    told.load_state_dict(ours.state_dict())
    ends = (ids == 5) | (ids == 7)
    segments = ends.long().cumsum(-1) - ends.long()
    torch.testing.assert_close(told(ids, segment_ids=segments).logits, logits, **close)
    with pytest.raises(ValueError, match="needs segment_ids"):
        told(ids)
    # a token moves to another segment when its separator becomes an ordinary token
    merged = ids.clone()
    merged[0, 9] = 11
    assert (ours(merged).logits - logits)[0, 10:].abs().max() > 1e-4
    padded = torch.cat((torch.full((2, 3), 1), ids), dim=1)
    left = ours(padded, attention_mask=(padded != 1).long()).logits[:, 3:]
    torch.testing.assert_close(left, logits, **close)
    if family in DECODERS:
        for cache in (DynamicCache(config=ours.config), StaticCache(config=ours.config, max_cache_len=20)):
            parts, start = [], 0
            for size in (4, 1, 1, 3, 1, 4):
                step = ids[:, start : start + size]
                parts.append(ours(step, past_key_values=cache, use_cache=True).logits)
                start += size
            torch.testing.assert_close(torch.cat(parts, dim=1), logits, **close)
        cache = DynamicCache(config=ours.config)
        told(ids[:, :4], segment_ids=segments[:, :4], past_key_values=cache)
        with pytest.raises(ValueError, match="cannot go on from a cache"):
            told(ids[:, 4:], segment_ids=segments[:, 4:], past_key_values=cache)


def test_places_within_segments_pick_the_rows_that_are_added():
    encoding = build(SEGMENTED, True)
    ids = segmented_tokens()
    index = torch.arange(14)[None]
    added = encoding.input_term(index, encoding.intra_table.shape[1], Tokens(input_ids=ids), None)
    for b in range(2):
        place = 0
        for t in range(14):
            row = encoding.intra_table[min(place, 3)]
            assert torch.equal(added[b, t], row), (b, t)
            place = 0 if int(ids[b, t]) in (5, 7) else place + 1
