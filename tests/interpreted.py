"""The triton backend in Triton's interpreter: equal to the dense oracle in float64, outputs and gradients, over several tiles.

Run by ``test_triton.py`` in a process of its own, since Triton reads TRITON_INTERPRET when it is imported; by hand, also every law for every method (minutes):
``TRITON_INTERPRET=1 pytest tests/interpreted.py`` and ``TRITON_INTERPRET=1 pytest tests/test_laws.py -k triton``.
"""

import math
from dataclasses import fields, replace

import pytest
import test_laws as laws
import torch
from cases import build, tensors
from families import model, tokens
from test_linear_memory import LargestTensor
from triton.runtime import interpreter

import hf_relpos
from hf_relpos.attention import triton as backend
from hf_relpos.attention.backends import backends_for
from hf_relpos.attention.call import AttentionCall, Mask, with_content_biases
from hf_relpos.attention.eager import run as eager
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import DistanceTable, KeyBuckets, KeyVector, OnHeads, QueryBuckets

HEADS, GROUPS, WIDTH, LENGTH = 2, 1, 8, 23
EVERYTHING = ("table", "tables", "query", "queries", "key", "vector", "heads")


@pytest.fixture(autouse=True, scope="module")
def patched_once():
    """The interpreter swaps the language's functions anew for every helper that a kernel calls, which takes half of its time; once is enough."""
    seen = set()

    def call(self, *args, **kwargs):
        if id(self.fn.__globals__) not in seen:
            seen.add(id(self.fn.__globals__))
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(
    kinds=(), *, queries=LENGTH, keys=LENGTH, offset=0, batch=2, heads=HEADS, groups=GROUPS, width=WIDTH, out=WIDTH,
    dtype=torch.float64, **mask,
):  # fmt: skip
    """A call with terms of some kinds, and the tensors that learn."""
    dropout = mask.pop("dropout", 0.0)
    positions = Positions.consecutive(queries, keys, query_offset=offset, key_offset=0)
    distances = queries + keys - 1
    number = torch.promote_types(dtype, torch.float32)
    leaves = []

    def leaf(*shape, kind=dtype):
        leaves.append(draw(*shape, seed=len(leaves), dtype=kind).requires_grad_())
        return leaves[-1]

    query = leaf(batch, heads, queries, width)
    key, value = leaf(batch, groups, keys, width), leaf(batch, groups, keys, out)
    bucket = torch.arange(distances) // 3 % 5
    found = []
    for kind in kinds:
        if kind == "table":
            found.append(DistanceTable(leaf(heads, distances, kind=number), positions))
        elif kind == "tables":
            found.append(DistanceTable(leaf(1, distances, kind=number), positions))
        elif kind == "query":
            found.append(QueryBuckets(query, leaf(5, width), bucket, positions))
        elif kind == "queries":
            found.append(QueryBuckets(leaf(batch, heads, queries, 3), leaf(heads, distances, 3), None, positions))
        elif kind == "key":
            found.append(KeyBuckets(leaf(batch, heads, keys, 5), leaf(heads, 5, 5), bucket, positions))
        elif kind == "vector":
            lines = leaf(batch, heads, queries, kind=number)
            found.append(KeyVector(leaf(1, heads, keys, kind=number), positions, lines))
        elif kind == "heads":
            inner = QueryBuckets(leaf(batch, 1, queries, 4), leaf(5, 4), bucket, positions)
            table = DistanceTable(leaf(1, distances, kind=number), positions)
            found += [OnHeads(inner, 1, 2, heads), OnHeads(table, 0, 1, heads)]
    call = AttentionCall(query, key, value, Mask(positions, **mask), 0.31, tuple(found), dropout=dropout)
    return call, leaves


def solve(call, leaves, run):
    output = run(call)[0]
    weights = draw(*output.shape, seed=99, dtype=output.dtype)
    return output, torch.autograd.grad((output * weights).sum(), leaves, allow_unused=True)


def compare(kinds, tolerance=1e-10, **settings):
    call, leaves = make(kinds, **settings)
    assert not backend.objections(call)
    expected, theirs = solve(call, leaves, eager)
    output, ours = solve(call, leaves, backend.run)
    torch.testing.assert_close(output, expected, rtol=0, atol=tolerance)
    for mine, other in zip(ours, theirs, strict=True):
        # of what is the same for all keys of a query, which the softmax does not see
        mine = torch.zeros_like(other) if mine is None else mine
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


def masks():
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    left, ragged, empty, holes = (padding.clone() for _ in range(4))
    left[1, :18] = False
    ragged[0, :3] = ragged[1, -11:] = False
    empty[1] = False
    holes[0, [3, 4, 11, 20]] = False
    documents = torch.tensor([0] * 7 + [1] * 4 + [2] * 12).expand(2, -1)
    uneven = torch.stack((documents[0], torch.tensor([5] * 18 + [4] * 5)))
    scattered = torch.tensor([0, 1] * 11 + [0]).expand(2, -1)

    def packed(ids, **more):
        return {"query_documents": ids, "key_documents": ids, **more}

    return {
        "all": {},
        "left": {"key_padding": left},
        "ragged": {"key_padding": ragged},
        "empty": {"key_padding": empty},
        "holes": {"key_padding": holes, "causal": True},
        "documents": packed(documents, causal=True),
        "uneven documents": packed(uneven, key_padding=ragged),
        "scattered documents": packed(scattered),
        "window": {"window": 4},
        "causal window": {"window": 3, "causal": True},
        "window and documents": packed(documents, window=6),
    }


def test_it_runs_here():
    assert "triton" in backends_for("cpu")


@pytest.mark.parametrize("kind", EVERYTHING)
def test_each_kind_of_term(kind):
    compare((kind,), causal=True, batch=1)


@pytest.mark.parametrize("name", masks())
def test_all_kinds_at_once_under_every_mask(name):
    compare(EVERYTHING, **masks()[name])


@pytest.mark.parametrize(("queries", "keys", "offset"), [(5, 21, 16), (1, 18, 17), (1, 1, 0), (18, 3, 0), (4, 20, 2)])
def test_queries_that_go_on_from_a_cache(queries, keys, offset):
    """Or that stand before some of the keys; windows end on both sides of them."""
    for mask in ({"causal": True}, {"window": 5}):
        compare(("table", "query", "key"), queries=queries, keys=keys, offset=offset, batch=1, **mask)


@pytest.mark.parametrize(("width", "out"), [(32, 32), (48, 20), (128, 64), (256, 256)])
def test_head_widths(width, out):
    compare(("table", "query"), width=width, out=out, batch=1, causal=True, tolerance=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_stay_close(dtype):
    """To the oracle in float64 on the same rounded numbers."""
    kinds = ("table", "query", "key", "vector")
    call, leaves = make(kinds, dtype=dtype, causal=True, batch=1)
    output, ours = solve(call, leaves, backend.run)
    assert output.dtype == dtype
    exact, exact_leaves = make(kinds, causal=True, batch=1)
    with torch.no_grad():
        for mine, other in zip(leaves, exact_leaves, strict=True):
            other.copy_(mine)
    expected, theirs = solve(exact, exact_leaves, eager)
    near = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(output.double(), expected, rtol=near, atol=near)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            scale = other.abs().max().clamp(min=1.0)
            torch.testing.assert_close(mine.double() / scale, other / scale, rtol=0, atol=near)


def test_the_same_bits_every_time():
    runs = []
    for _ in range(2):
        call, leaves = make(EVERYTHING, dtype=torch.float32, dropout=0.2, **masks()["uneven documents"])
        torch.manual_seed(5)
        output, gradients = solve(call, leaves, backend.run)
        runs.append([output, *(x for x in gradients if x is not None)])
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


def test_queries_without_keys_give_zero_and_no_gradient():
    call, leaves = make(("table", "query", "key"), **masks()["empty"])
    output, (query, key, value, *others) = solve(call, leaves, backend.run)
    assert (output[1] == 0).all()
    assert all((x[1] == 0).all() for x in (query, key, value))
    assert all(x.isfinite().all() for x in (output, query, key, value, *others))
    call, leaves = make(queries=4, keys=3, offset=-9, causal=True)
    output, gradients = solve(call, leaves, backend.run)
    assert not output.any()
    assert not any(x.any() for x in gradients)


def test_entries_of_minus_infinity_hide_keys():
    call, leaves = make(("table",), batch=1)
    with torch.no_grad():
        leaves[-1][:, 20:] = -math.inf
        leaves[-1][1] = -math.inf
    expected, theirs = solve(call, leaves, eager)
    output, ours = solve(call, leaves, backend.run)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)


def test_dropout_drops_the_same_in_both_passes():
    """Values that are the unit matrix show the weights, and so what was dropped; with that mask everything is computed once more, densely."""
    rate, kinds = 0.3, ("table", "query", "key")
    call, leaves = make(kinds, out=LENGTH, groups=HEADS, dropout=rate, causal=True)
    unit = torch.eye(LENGTH, dtype=torch.float64).expand(2, HEADS, -1, -1)
    torch.manual_seed(3)
    shown = backend.run(replace(call, value=unit))[0].transpose(1, 2)
    weights = eager(replace(call, dropout=0.0))[1]
    kept = shown != 0
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand_as(kept)
    torch.testing.assert_close(shown, weights * kept / (1 - rate), rtol=0, atol=1e-7)
    count = int(seen.sum())
    assert abs(int((kept & seen).sum()) / count - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / count)
    patterns = kept[seen].view(2 * HEADS, -1)
    assert len({tuple(row.tolist()) for row in patterns}) == 2 * HEADS
    assert not torch.equal(backend.run(replace(call, value=unit))[0].transpose(1, 2) != 0, kept)

    def replay(call):
        weights = eager(replace(call, dropout=0.0))[1] * kept / (1 - rate)
        return (weights @ call.value).transpose(1, 2), None

    expected, theirs = solve(call, leaves, replay)
    torch.manual_seed(3)
    output, ours = solve(call, leaves, backend.run)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_only_gradients_that_are_wanted_are_computed(monkeypatch):
    launched = []
    launch = backend._launch
    monkeypatch.setattr(backend, "_launch", lambda kernel, *rest: (launched.append(kernel), launch(kernel, *rest)))
    call, leaves = make(("table",), queries=5, keys=5)
    fixed = replace(call, score_terms=(replace(call.score_terms[0], table=leaves[-1].detach()),))
    backend.run(fixed)[0].sum().backward()
    assert len(launched) == 3
    expected, _ = solve(fixed, leaves[:3], eager)
    torch.testing.assert_close(backend.run(fixed)[0], expected, rtol=0, atol=1e-10)


def test_tensors_with_strides_are_read_in_place():
    call, _ = make(("table",), queries=9, keys=9)
    mixed = replace(
        call,
        **{
            name: getattr(call, name).detach().transpose(1, 2).contiguous().transpose(1, 2)
            for name in ("query", "key", "value")
        },
    )
    torch.testing.assert_close(backend.run(mixed)[0], eager(mixed)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kinds", [("table",), ("query", "key")])
def test_no_tensor_grows_with_the_square_of_length(kinds):
    largest = []
    for length in (64, 128):
        call, leaves = make(
            kinds, queries=length, keys=length, batch=1, heads=1, groups=1, causal=True, dtype=torch.float32
        )
        with LargestTensor() as watch:
            solve(call, leaves, backend.run)
        largest.append(watch.bytes)
    assert largest[1] <= 2.2 * largest[0]


# one of each kind of terms that the kernels take
METHODS = [
    ({"type": "t5", "num_buckets": 8, "max_distance": 9}, False),
    ({"type": "cable"}, True),
    ({"type": "deberta", "max_relative_positions": 9}, False),
    ({"type": "transformer_xl"}, True),
]


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case[0]["type"])
def test_the_laws_hold(case, monkeypatch):
    monkeypatch.setattr(laws, "BACKENDS", ["triton"])
    assert not backend.objections(call_of(case))
    laws.test_equals_the_oracle_in_outputs_and_gradients(case)
    for law in (
        laws.test_padding_on_either_side_changes_nothing,
        laws.test_packed_sequences_equal_the_same_sequences_apart,
        laws.test_bfloat16_stays_close_to_float32_at_slot_4096,
        laws.test_a_query_without_keys_gives_zero_and_no_gradient,
    ):
        law(case, "triton")


def call_of(case):
    encoding = build(*case)
    query, key, value = tensors(5, 5)
    added = laws.contribution(encoding, query, key, Positions.consecutive(5, 5))
    mask = Mask(Positions.consecutive(5, 5))
    return with_content_biases(
        AttentionCall(query, key, value, mask, 1.0, added.score_terms, added.value_terms, added.row_maps)
    )


def test_one_token_at_a_time_equals_the_full_pass():
    laws.test_one_token_at_a_time_equals_the_full_pass(METHODS[3], "triton")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_models_take_it_by_name(family):
    ours = model(family, {"type": "t5", "num_buckets": 8, "max_distance": 16})
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    results = []
    for name in ("eager", "triton"):
        ours.set_attn_implementation(name)
        ours.zero_grad()
        logits = ours(ids, attention_mask=mask).logits * mask[..., None]
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in ours.parameters() if p.grad is not None)])
    assert len(results[0]) > 4
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)


def test_auto_leaves_it_alone(caplog):
    call, _ = make(("table",), queries=5, keys=5)
    assert not backend.suits(call)
    assert [field.name for field in fields(backend._Terms)] == list(backend.NAMES[3:])
    caplog.set_level("INFO", logger="hf_relpos")
    hf_relpos.attention(*tensors(5, 5))
    assert "chose the attention backend 'triton'" not in caplog.text
