"""A handful of queries over many keys: equal to the dense oracle, gradients included, with keys and values read where they lie."""

import pytest
import torch
from cases import HEADS, WIDTH, all_cases, build, extras, label, tensors
from torch.utils._python_dispatch import TorchDispatchMode

import hf_relpos
from hf_relpos.attention import few_queries
from hf_relpos.attention.backends import BackendRefusal
from hf_relpos.attention.call import Mask
from hf_relpos.encodings.positions import Positions

LENGTH = 23


def cases_without_row_maps():
    """Cases without a row map, which this way of computing refuses."""
    query, key, value = tensors(LENGTH, LENGTH)
    found = []
    for case in all_cases():
        try:
            hf_relpos.attention(query, key, value, build(*case), backend="linear_memory", **extras(LENGTH))
        except BackendRefusal:
            continue
        found.append(case)
    return found


CASES = cases_without_row_maps()
# a table, one with minus infinity, a product with queries, one with keys, values, gates, pairs
KINDS = ("t5", "alibi", "shaw", "relative_key_query", "fox", "relation", "tupe")


def masks():
    """Ways in which keys are hidden, by name."""
    left, holes, empty = (torch.ones(2, LENGTH) for _ in range(3))
    left[1, :9] = 0
    holes[0, [3, 4, 11]] = holes[1, -1] = 0
    empty[1] = 0
    documents = torch.tensor([0] * 9 + [1] * 14).expand(2, -1)
    return {
        "all": {},
        "left": {"attention_mask": left},
        "holes": {"attention_mask": holes},
        "empty": {"attention_mask": empty},
        "window": {"window": 4},
        "wide window": {"window": 40},
        "documents": {"document_ids": documents},
    }


def run(encoding, backend, queries, start, groups, dtype=torch.float64, **arguments):
    query, key, value = (x.requires_grad_() for x in tensors(queries, LENGTH, groups=groups, dtype=dtype))
    given = extras(LENGTH, dtype=dtype)
    given["hidden_states"].requires_grad_()
    given["relation_ids"] = given["relation_ids"][:, start : start + queries]
    output = hf_relpos.attention(
        query, key, value, encoding, backend=backend, query_offset=start, key_offset=0, **given, **arguments
    )
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    inputs = [query, key, value, given["hidden_states"], *encoding.parameters()]
    return output, torch.autograd.grad((output * weights).sum(), inputs, allow_unused=True)


def compare(encoding, shapes=None, **arguments):
    """The last query, one among the keys and several, with shared keys and without, unless ``shapes`` says otherwise."""
    for queries, start, groups in shapes or ((1, LENGTH - 1, HEADS), (1, 13, 2), (3, LENGTH - 3, HEADS), (5, 12, 1)):
        given = {"queries": queries, "start": start, "groups": groups, **arguments}
        output, ours = run(encoding, "linear_memory", **given)
        expected, theirs = run(encoding, "eager", **given)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine is None) == (other is None)
            if other is not None:
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_case(case):
    compare(build(*case), is_causal=case[1], **masks()["holes"])


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("case", [case for case in CASES if case[0]["type"] in KINDS], ids=label)
def test_every_mask(case, name, kernel, monkeypatch):
    """By plain products, and by the fused kernel, which takes their place where its own are faster."""
    if kernel:
        monkeypatch.setattr(few_queries, "_kernel_is_faster", lambda call: not call.value_terms)
    compare(build(*case), is_causal=case[1], **masks()[name])


@pytest.mark.parametrize(
    ("dtype", "can", "faster"),
    [
        (torch.bfloat16, {"amx_bf16": True}, True),
        (torch.bfloat16, {"avx512_bf16": True}, False),
        (torch.float16, {"amx_bf16": True}, False),
        (torch.float32, {"amx_bf16": True}, False),
    ],
)
def test_the_kernel_is_taken_where_it_multiplies_bfloat16(dtype, can, faster, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    calls = []
    monkeypatch.setattr(
        few_queries,
        "scaled_dot_product_attention",
        lambda *args, inner=few_queries.scaled_dot_product_attention, **options: (
            calls.append(1) or inner(*args, **options)
        ),
    )
    query, key, value = (x.to(dtype) for x in tensors(1, LENGTH))
    for rel_pos, dropout, expected in (
        ({"type": "t5"}, 0.0, faster),
        ({"type": "t5"}, 0.1, False),
        ({"type": "shaw"}, 0.0, False),
    ):
        calls.clear()
        encoding = build(rel_pos, True).to(dtype)
        given = {"is_causal": True, "query_offset": LENGTH - 1, "dropout_p": dropout}
        hf_relpos.attention(query, key, value, encoding, backend="linear_memory", **given)
        assert bool(calls) == expected


@pytest.mark.parametrize("rel_pos", [{"type": "relative_key_query"}, [{"type": "relative_key_query"}] * 2])
@pytest.mark.parametrize("table", [3, 11, 20, 40])
@pytest.mark.parametrize("start", [LENGTH - 1, 13, 0])
def test_what_far_keys_meet_goes_into_the_query(rel_pos, table, start, monkeypatch):
    """Also where nearly all keys are far, and where too few are for it to pay."""
    options = [
        {**part, "max_position_embeddings": table} for part in (rel_pos if isinstance(rel_pos, list) else [rel_pos])
    ]
    encoding = hf_relpos.build_encoding(options, num_heads=HEADS, head_dim=WIDTH, hidden_size=HEADS * WIDTH).double()
    moved = []
    into_query = few_queries._into_query

    def watch(call):
        after, near = into_query(call)
        moved.append(len(call.score_terms) - len(after.score_terms))
        return after, near

    monkeypatch.setattr(few_queries, "_into_query", watch)
    for causal in (True, False):
        compare(encoding, [(1, start, HEADS)], is_causal=causal)
    far = start - table + 1
    assert set(moved) == {len(options) if 2 * (far + 1) >= LENGTH else 0}


class Largest(TorchDispatchMode):
    """Notes the most elements that one new tensor holds."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, HEADS])
@pytest.mark.parametrize("kernel", [False, True])
def test_keys_and_values_are_neither_repeated_nor_copied(groups, dtype, kernel, monkeypatch):
    monkeypatch.setattr(few_queries, "_kernel_is_faster", lambda call: kernel)
    query, key, value = (x.to(dtype) for x in tensors(1, 200, groups=groups))
    encoding = hf_relpos.build_encoding({"type": "t5"}, num_heads=HEADS, head_dim=WIDTH, hidden_size=32)
    with torch.no_grad(), Largest() as watch:
        hf_relpos.attention(query, key, value, encoding, backend="linear_memory", is_causal=True, query_offset=199)
    scores = 2 * HEADS * 200
    assert watch.elements <= scores < key.numel()


def test_nothing_is_looked_for_where_nothing_can_be_hidden(monkeypatch):
    monkeypatch.setattr(Mask, "tile", None)
    query, key, value = tensors(1, LENGTH)
    for given in ({"is_causal": True}, {"is_causal": True, "window": LENGTH}, {}):
        hf_relpos.attention(query, key, value, backend="linear_memory", query_offset=LENGTH - 1, **given)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("start", [0, 9, LENGTH - 3])
@pytest.mark.parametrize("window", [None, 2, 12, 30])
@pytest.mark.parametrize("causal", [True, False])
def test_what_sees_all_keys(queries, start, window, causal):
    mask = Mask(Positions(queries, LENGTH, start, 0, torch.device("cpu")), causal, window)
    visible = mask.tile()
    assert few_queries._sees_all(mask) == (visible is None or bool(visible.all()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    encoding = hf_relpos.build_encoding({"type": "t5"}, num_heads=HEADS, head_dim=WIDTH, hidden_size=32)
    drawn = [x.to(dtype) for x in tensors(1, LENGTH)]
    arguments = {"is_causal": True, "query_offset": LENGTH - 1}
    exact = hf_relpos.attention(*(x.float() for x in drawn), encoding, backend="eager", **arguments)
    close = hf_relpos.attention(*drawn, encoding, backend="linear_memory", **arguments)
    assert close.dtype == dtype
    torch.testing.assert_close(close.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "linear_memory"])
@pytest.mark.parametrize("rel_pos", [None, {"type": "t5"}, {"type": "rope"}])
def test_without_any_key_the_output_is_zero(rel_pos, backend):
    encoding = None if rel_pos is None else hf_relpos.build_encoding(rel_pos, num_heads=2, head_dim=8, causal=False)
    query, nothing = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 0, 8)
    with torch.no_grad():
        output = hf_relpos.attention(query, nothing, nothing, encoding, backend=backend)
    assert torch.equal(output, torch.zeros(1, 2, 3, 8))


def test_half_precision_decodes_in_a_graph():
    """What the CPU can is not asked inside of one."""
    encoding = hf_relpos.build_encoding({"type": "t5"}, num_heads=HEADS, head_dim=WIDTH, hidden_size=32)
    drawn = [x.to(torch.bfloat16) for x in tensors(1, LENGTH)]

    def call(query, key, value):
        return hf_relpos.attention(
            query, key, value, encoding, backend="linear_memory", is_causal=True, query_offset=LENGTH - 1
        )

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(call, fullgraph=True, backend="eager")(*drawn)
        torch.testing.assert_close(compiled, call(*drawn), rtol=0.02, atol=0.02)
