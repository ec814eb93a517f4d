"""The FlexAttention backend. On a CPU its uncompiled reference is compared with the oracle; what a GPU would run is compiled where there is a C++ compiler, and
gradients are those of the operator that GPUs use, past PyTorch's check of the device."""

import os
import shutil

import pytest
import torch
from cases import HEADS, HIDDEN, all_cases, build, extras, label, tensors
from families import FAMILIES, KINDS, model, tokens
from test_linear_memory import LargestTensor, gradients, masks, one_of_each_kind
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as pytorch
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertModel, StaticCache

import hf_relpos
from hf_relpos.attention import flex
from hf_relpos.attention.attend import attend
from hf_relpos.attention.backends import BACKENDS, BackendRefusal, choose
from hf_relpos.attention.call import AttentionCall, Mask
from hf_relpos.attention.functional import optional_inputs
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import DistanceTable, PairFunction, QueryBuckets
from hf_relpos.models.routing import backend_of, implementation_name

LENGTH = 23
# PyTorch means to hide it, which it cannot where warnings are errors: it looks at the gradients of what a kernel captures
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def runs(case):
    """Whether the backend has no objection to a method but that it will not train here."""
    try:
        with torch.no_grad():
            hf_relpos.attention(*tensors(4, 4), build(*case), backend="flex", is_causal=case[1], **extras(4))
    except BackendRefusal:
        return False
    return True


def gpu_cases():
    """A method for each kind of term, in a decoder and an encoder where it is defined for both."""
    learned = [
        {"type": "none"},
        {"type": "t5"},
        {"type": "alibi", "learned": True},
        {"type": "relative_key_query", "max_position_embeddings": 16},
        {"type": "relation", "values": False, "num_relations": 5},
        [{"type": "t5", "heads": [0, 2]}, {"type": "rope", "heads": [2, 4]}],
    ]
    return [*((rel_pos, causal) for rel_pos in learned for causal in (False, True)), ({"type": "fox"}, True)]


every_kind = pytest.mark.parametrize("case", list(filter(runs, one_of_each_kind())), ids=label)
every_mask = pytest.mark.parametrize("name", masks())


@pytest.fixture(autouse=True)
def no_few_queries(monkeypatch):
    monkeypatch.setattr(flex, "FEW_QUERIES", 0)


@pytest.fixture
def trains(monkeypatch):
    """Lets the backend train on a CPU, through the operator's own backward pass, traced as for a GPU. What is learned would be refused there with
    deterministic algorithms, which these tests ask for."""
    traced = torch.compile(pytorch.flex_attention, backend="eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(pytorch, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex, "TRAINS_ON", ("cpu", "cuda"))
    monkeypatch.setattr(flex, "_kernel", lambda device: traced)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both(case, queries=LENGTH, groups=2, dtype=torch.float64, learn=True, **arguments):
    """Output and gradients of the dense oracle and of this backend."""
    encoding, results = build(*case, dtype=dtype), []
    for backend in ("eager", "flex"):
        query, key, value = (x.requires_grad_(learn) for x in tensors(queries, LENGTH, groups=groups, dtype=dtype))
        given = extras(LENGTH, dtype=dtype)
        given["hidden_states"].requires_grad_(learn)
        given["relation_ids"] = given["relation_ids"][:, LENGTH - queries :]
        with torch.set_grad_enabled(learn):
            output = hf_relpos.attention(
                query, key, value, encoding, backend=backend, is_causal=case[1], **given, **arguments
            )
        inputs = [query, key, value, given["hidden_states"], *encoding.parameters()]
        results.append([output, *(gradients(output, inputs) if learn else ())])
    return zip(*results, strict=True)


def assert_equal(pairs, **tolerance):
    for expected, ours in pairs:
        assert (expected is None) == (ours is None)
        if expected is not None:
            torch.testing.assert_close(ours, expected, **(tolerance or {"rtol": 0, "atol": 1e-11}))


@every_mask
@pytest.mark.parametrize("causal", [False, True])
def test_every_mask(name, causal):
    assert_equal(both(({"type": "t5"}, causal), learn=False, **masks()[name]))


@pytest.mark.parametrize("name", ["ragged", "uneven documents"])
@every_kind
def test_every_kind_of_term(case, name):
    assert_equal(both(case, learn=False, **masks()[name]))


@every_kind
def test_queries_that_go_on_from_a_cache(case):
    for offset in (LENGTH - 9, torch.tensor(LENGTH - 9), 3):
        assert_equal(both(case, queries=9, groups=1, learn=False, query_offset=offset, key_offset=0))


@every_kind
def test_gradients(case, trains):
    """Under padding that leaves rows without a key, of queries, keys, values, hidden states and every parameter."""
    for name in ("ragged", "empty"):
        assert_equal(both(case, **masks()[name]))


@pytest.mark.parametrize("name", ["all", "holes", "uneven documents", "window and padding"])
def test_gradients_under_masks(name, trains):
    case = next(case for case in all_cases() if case[0]["type"] == "t5" and case[1])
    assert_equal(both(case, **masks()[name]))


def test_one_row_for_all_samples():
    """Padding and documents may be the same for all, as a mask of one sample is."""
    query, key, value = tensors(LENGTH, LENGTH)
    ids = (torch.arange(LENGTH) // 9)[None]
    mask = Mask(Positions.consecutive(LENGTH, LENGTH), True, None, ids != 1, ids, ids)
    expected, ours = (attend(query, key, value, (), mask, scale=0.3, backend=name)[0] for name in ("eager", "flex"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_a_row_without_a_key_gives_zero_and_no_gradient(trains):
    """Also where the terms hide what the mask would show."""
    query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH))
    positions = Positions.consecutive(LENGTH, LENGTH)
    numbers = torch.zeros(HEADS, 2 * LENGTH - 1, dtype=torch.float64)
    numbers[1, : LENGTH + 2] = -torch.inf
    numbers.requires_grad_()
    call = AttentionCall(query, key, value, Mask(positions), 0.3, (DistanceTable(numbers, positions),))
    output, _ = flex.run(call)
    assert (output[:, :3, 1] == 0).all()
    assert (output[:, 3:] != 0).any(-1).all()
    output.square().sum().backward()
    assert (query.grad[:, 1, :3] == 0).all()
    for x in (query, key, value, numbers):
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_kind
def test_half_precision_stays_close(case, dtype):
    """Far from the first slot, beside the oracle in float32 on the same rounded numbers."""
    exact, rounded = build(*case, dtype=torch.float32), build(*case, dtype=torch.float32)
    for parameter in rounded.parameters():
        parameter.data.mul_(0.2)
    rounded = rounded.to(dtype)
    exact.load_state_dict(rounded.state_dict())
    far = 4096 if exact.max_length is None else 10
    results = []
    for encoding, kind, backend in ((exact, torch.float32, "eager"), (rounded, dtype, "flex")):
        given = extras(LENGTH, dtype=dtype)
        given["hidden_states"] = given["hidden_states"].to(kind)
        drawn = (x.to(dtype).to(kind) for x in tensors(LENGTH, LENGTH))
        with torch.no_grad():
            output = hf_relpos.attention(
                *drawn, encoding, backend=backend, is_causal=case[1], query_offset=far, key_offset=far, **given
            )
        assert output.dtype == kind
        results.append(output.float())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0.08)


@pytest.mark.parametrize("inner", ["t5", "shaw_keys", "kerple_log"])
def test_slots_given_anew(inner):
    """Distances of drawn slots, which have gaps, beside a mask that goes by the places of keys."""
    inner = {"type": "shaw", "values": False, "max_distance": 4} if inner == "shaw_keys" else {"type": inner}
    encoding = build({"type": "randomized", "encoding": inner, "max_position": 80}, True).train()
    query, key, value = tensors(LENGTH, LENGTH)
    mask = Mask(Positions.consecutive(LENGTH, LENGTH), causal=True)
    given = {"scale": 0.3, "seed": 7, **optional_inputs(encoding, mask.positions)}
    with torch.no_grad():
        expected, ours = (
            attend(query, key, value, (encoding,), mask, backend=backend, **given)[0] for backend in ("eager", "flex")
        )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def plain(length, queries=None, offset=None, **conditions):
    queries = queries or length
    return Mask(
        Positions.consecutive(queries, length, query_offset=length - queries if offset is None else offset),
        **conditions,
    )


def block_masks():
    """Masks of some blocks of 8, by name; those whose conditions leave something of a block only one at a time come last."""
    ones = torch.ones(2, 45, dtype=torch.bool)
    left, right, holes = (ones.clone() for _ in range(3))
    left[1, :19] = False
    right[0, -7:] = False
    holes[0, [3, 4, 11]] = False
    documents = torch.tensor([0] * 9 + [1] * 20 + [2] * 16).expand(2, -1)
    dense = torch.rand(2, HEADS, 45, 45, generator=torch.Generator().manual_seed(0)) > 0.9
    dense[:, :2, 8:24, :16] = True
    packed = {"query_documents": documents, "key_documents": documents}
    return {
        "all": plain(45),
        "causal": plain(45, causal=True),
        "causal, whole blocks": plain(48, causal=True),
        "window": plain(45, window=11),
        "causal window": plain(45, window=17, causal=True),
        "from a cache": plain(45, 20, causal=True),
        "key and query offset": Mask(Positions.consecutive(20, 45, query_offset=7, key_offset=3), causal=True),
        "static cache": Mask(Positions.consecutive(20, 45, query_offset=torch.tensor(9), key_offset=0), causal=True),
        "left": plain(45, key_padding=left),
        "right": plain(45, key_padding=right),
        "holes": plain(45, key_padding=holes),
        "documents": plain(45, **packed),
        "dense": plain(45, dense=dense),
        "one dense for all": plain(45, dense=dense[:1, :1]),
        "left, causal": plain(45, key_padding=left, causal=True),
        "scattered documents": plain(
            45, query_documents=torch.arange(45).expand(2, -1) % 3, key_documents=torch.arange(45).expand(2, -1) % 2
        ),
        "all conditions": plain(45, key_padding=left, causal=True, window=9, dense=dense, **packed),
    }


EXACT = list(block_masks())[:-3]


@pytest.mark.parametrize("name", block_masks())
def test_blocks_of_a_mask_are_those_that_pytorch_finds(name, monkeypatch):
    """PyTorch asks for every pair, which is quadratic; we must pass over no block that it needs, and take none for whole that is not."""
    monkeypatch.setattr(flex, "BLOCK", 8)
    mask = block_masks()[name]
    ours = flex.block_mask(mask)
    batch, heads = ours.kv_num_blocks.shape[:2]
    lengths = (mask.positions.num_queries, mask.positions.num_keys)
    theirs = pytorch.create_block_mask(ours.mask_mod, batch, heads, *lengths, device="cpu", BLOCK_SIZE=8)
    assert ours.shape == theirs.shape

    def blocks(found):
        lists = ((found.kv_num_blocks, found.kv_indices), (found.full_kv_num_blocks, found.full_kv_indices))
        sets = []
        for counts, indices in lists:
            named = torch.arange(indices.shape[-1]) < counts[..., None]
            sets.append(torch.zeros(indices.shape, dtype=torch.bool).scatter(-1, indices.long(), named))
        return sets

    (part, whole), (their_part, their_whole) = blocks(ours), blocks(theirs)
    assert not (part & whole).any()
    assert ((part | whole) | ~(their_part | their_whole)).all()
    assert (their_whole | ~whole).all()
    if name in EXACT:
        assert torch.equal(part, their_part)
        assert torch.equal(whole, their_whole)


def test_blocks_cost_no_tensor_of_all_pairs():
    length = 8192
    documents = (torch.arange(length) // 1000).expand(2, -1)
    padding = torch.ones(2, length, dtype=torch.bool)
    with LargestTensor() as watch:
        flex.block_mask(
            plain(length, causal=True, key_padding=padding, query_documents=documents, key_documents=documents)
        )
    assert watch.bytes <= 8 * 2 * (length // 128) ** 2 + 8 * 2 * length


def test_the_blocks_of_a_shape_are_kept_where_they_depend_on_nothing_else():
    causal = flex.block_mask(plain(64, causal=True))
    assert flex.block_mask(plain(64, causal=True)) is causal
    shifted = Mask(Positions.consecutive(64, 64, query_offset=5, key_offset=5), causal=True)
    assert flex.block_mask(shifted) is causal
    for other in (plain(65, causal=True), plain(64), plain(64, causal=True, window=3), plain(64, 60, causal=True)):
        assert flex.block_mask(other) is not causal
    padded = plain(64, key_padding=torch.ones(1, 64, dtype=torch.bool))
    assert flex.block_mask(padded) is not flex.block_mask(padded)
    with torch.inference_mode():
        kept = flex.block_mask(plain(77, causal=True))
    assert not kept.kv_indices.is_inference()


def test_pytorch_has_no_backward_pass_on_a_cpu():
    """The reason for the objection; when it is gone, this backend can train here."""
    query = torch.zeros(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
        pytorch.flex_attention(query, query, query)


def test_objections(monkeypatch):
    positions = Positions.consecutive(32, 32)

    def reasons(device="cuda", dtype=torch.float32, width=16, terms=(), learn=(), **options):
        with FakeTensorMode(allow_non_fake_inputs=True):
            query = torch.zeros(1, 2, 32, width, dtype=dtype, device=device, requires_grad="query" in learn)
            made = tuple(
                term(lambda *size: torch.zeros(size, device=device, requires_grad="term" in learn)) for term in terms
            )
            return flex.objections(AttentionCall(query, query, query, Mask(positions), 1.0, made, **options))

    def table(zeros):
        return DistanceTable(zeros(2, 63), positions)

    def far(zeros):
        return QueryBuckets(zeros(1, 2, 32, 16), zeros(63, 16), None, positions)

    def pairs(zeros):
        return PairFunction(lambda query, key: query - key, zeros(1, 32, 2), zeros(1, 32, 2))

    assert reasons() == reasons("cpu") == reasons(terms=(table,)) == reasons(learn=("query",)) == []
    for expected, given in {
        "dropout": {"dropout": 0.1},
        "weights are asked for": {"need_weights": True},
        "adds to the values": {"value_terms": (None,)},
        "whole rows": {"row_maps": (None,)},
        "a vector for every distance": {"terms": (far,)},
        "all heads at once": {"terms": (table, pairs)},
        "not meta": {"device": "meta"},
        "no backward pass on devices of type cpu": {"device": "cpu", "learn": ("query",)},
        "not in float64": {"dtype": torch.float64},
        "at least, not 8": {"width": 8},
        "in any order": {"terms": (table,), "learn": ("query", "term")},
    }.items():
        (reason,) = reasons(**given)
        assert expected in reason
    assert "no backward pass" in reasons("cpu", terms=(table,), learn=("term",))[0]
    with torch.no_grad():
        assert reasons("cpu", terms=(table,), learn=("query", "term")) == reasons(terms=(table,), learn=("term",)) == []
    torch.use_deterministic_algorithms(False)
    try:
        assert reasons(terms=(table,), learn=("term",)) == []
    finally:
        torch.use_deterministic_algorithms(True)


def test_auto_does_not_take_it(caplog):
    for device in ("cpu", "cuda"):
        with FakeTensorMode(allow_non_fake_inputs=True):
            query = torch.zeros(1, 2, 32, 16, device=device)
            call = AttentionCall(query, query, query, Mask(Positions.consecutive(32, 32)), 1.0, dropout=0.0)
            assert not flex.objections(call)
            assert choose("flex", call) is BACKENDS["flex"]
            assert choose("auto", call) is not BACKENDS["flex"]
    assert "not measured on a GPU yet" in BACKENDS["flex"].note


def test_more_kernels_than_are_kept_are_an_error(monkeypatch):
    """PyTorch would go on uncompiled."""
    traced = torch.compile(pytorch.flex_attention, backend="eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(flex, "_compile", lambda: traced)
    monkeypatch.setattr(flex, "_kernel", lambda device: flex._compiled)
    monkeypatch.setattr(flex, "MOST_KERNELS", 2)
    torch._dynamo.reset()
    with torch.no_grad():
        for length in (20, 21, 20):
            hf_relpos.attention(*tensors(length, length), backend="flex")
        with pytest.raises(RuntimeError, match="more than 2 kinds of call"):
            hf_relpos.attention(*tensors(22, 22), backend="flex")
    torch._dynamo.reset()


def test_a_gpu_gets_compiled_kernels_only():
    assert flex._kernel(torch.device("cuda")) is flex._compiled
    assert flex._kernel(torch.device("cpu")) is flex._reference


COMPILER = os.environ.get("CXX", "g++")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"no C++ compiler {COMPILER} on this machine: nothing is compiled"
)
@pytest.mark.skipif(
    not torch.cpu._is_avx2_supported(), reason="PyTorch compiles FlexAttention for processors with AVX2 only"
)
def test_compiled(monkeypatch):
    """What can be asked of a kernel, all in one: every kind of term, grouped keys, blocks that are passed over, and a sample without keys."""
    monkeypatch.setattr(flex, "_kernel", lambda device: flex._compiled)
    length = 150
    parts = [
        {"type": "t5", "heads": [1, 3]},
        {"type": "relative_key_query", "max_position_embeddings": 6},
        {"type": "fox"},
        {"type": "relation", "values": False, "num_relations": 5},
    ]
    encoding = build(
        [{"type": "randomized", "encoding": "kerple_log", "max_position": 200}, *parts], True, torch.float32
    )
    query, key, value = tensors(length, length, groups=2, dtype=torch.float32)
    padding = torch.ones(2, length, dtype=torch.bool)
    padding[0, :140] = False
    padding[1] = False
    given = extras(length, dtype=torch.float32)
    mask = Mask(Positions.consecutive(length, length), causal=True, key_padding=padding)
    for training in (False, True):
        # in training slots are drawn, and have gaps
        encoding.train(training)
        given = optional_inputs(encoding, mask.positions, padding, **extras(length, dtype=torch.float32))
        with torch.no_grad():
            expected, ours = (
                attend(query, key, value, (encoding,), mask, scale=0.3, seed=7, backend=backend, **given)[0]
                for backend in ("eager", "flex")
            )
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        assert (ours[1] == 0).all()
        assert (ours[0, :140] == 0).all()
        assert (ours[0, 140:] != 0).any(-1).all()


def test_inside_of_what_users_compile():
    """PyTorch's own function is traced with everything around it, the blocks of the mask included."""
    encoding = build({"type": "relative_key", "max_position_embeddings": 6}, True)
    query, key, value = tensors(LENGTH, LENGTH, groups=2)

    def attention(query, mask):
        return hf_relpos.attention(query, key, value, encoding, attention_mask=mask, is_causal=True, backend="flex")

    with torch.no_grad():
        for mask in (None, masks()["ragged"]["attention_mask"]):
            compiled = torch.compile(attention, backend="eager", fullgraph=True)(query, mask)
            torch.testing.assert_close(compiled, attention(query, mask), rtol=0, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_models(family, monkeypatch):
    """`attn_implementation="flex_attention"` is this backend, with a mask that stays compact; what it objects to is refused by the model too."""
    seen = []
    made = flex.block_mask
    monkeypatch.setattr(flex, "block_mask", lambda mask: seen.append(mask) or made(mask))
    ids = tokens(length=14)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    ran = []
    for kind, rel_pos in KINDS.items():
        ours = model(family, rel_pos)
        with torch.no_grad():
            expected = [ours(ids).logits, ours(ids, attention_mask=mask).logits]
            ours.set_attn_implementation("flex_attention")
            try:
                found = [ours(ids).logits, ours(ids, attention_mask=mask).logits]
            except BackendRefusal:
                continue
        ran.append(kind)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-9)
        real = mask.bool()
        torch.testing.assert_close(found[1][real], expected[1][real], rtol=0, atol=1e-9)
    assert {"distance", "query", "query-and-key", "rotation", "shared-part"} <= set(ran)
    assert {"key-vector", "values", "rows", "index"}.isdisjoint(ran)
    assert len(seen) >= 2 * 2 * len(ran)
    assert all(each.dense is None for each in seen)
    assert any(each.key_padding is not None for each in seen)
    with pytest.raises(BackendRefusal, match="no backward pass on devices of type cpu"):
        model(family, KINDS["distance"], attn_implementation="flex_attention")(ids)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding(family, monkeypatch):
    """Token by token the scores are plain products, as elsewhere; a static cache hands over a counter and a dense mask."""
    monkeypatch.undo()
    ours = model(family, KINDS["query"])
    ids = tokens(length=12)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    expected = ours.generate(ids, **settings)
    ours.set_attn_implementation("flex_attention")
    assert torch.equal(ours.generate(ids, **settings), expected)
    with torch.no_grad():
        full = ours(ids).logits
        cache = StaticCache(config=ours.config, max_cache_len=20)
        parts = [ours(part, past_key_values=cache).logits for part in ids.split((2, 10), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-9)


def test_stock_models_keep_their_own():
    ours = model("bert", KINDS["distance"], attn_implementation="flex_attention")
    assert ours.config._attn_implementation == "relpos_flex"
    stock = BertModel._from_config(BertConfig(num_hidden_layers=1), attn_implementation="flex_attention")
    assert stock.config._attn_implementation == "flex_attention"
    for table in (AttentionInterface(), AttentionMaskInterface()):
        assert table["flex_attention"].__module__.startswith("transformers.")
        assert table["relpos_flex"] is not table["flex_attention"]


def test_the_name_of_the_implementation_leads_back_to_it():
    for name in ("flex_attention", "flex"):
        assert implementation_name(name) == "relpos_flex"
    assert backend_of("relpos_flex") == "flex"
    with pytest.raises(ValueError, match="valid: eager, flex_attention"):
        implementation_name("flex_attention_2")


HIDINGS = ("all", "causal", "left", "empty", "documents", "window")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def beside_float64(case, name, dtype, device):
    """Output and gradients of the dense oracle in float64 and of this backend, on the same rounded numbers, with several blocks and a ragged end."""
    rel_pos, causal = case
    length, width = 300, 32
    sizes = {"num_heads": HEADS, "head_dim": width, "hidden_size": HIDDEN, "max_position_embeddings": 64}
    encoding, exact = (hf_relpos.build_encoding(rel_pos, **sizes, causal=causal).to(device) for _ in range(2))
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.normal_(std=0.3)
    encoding.to(dtype)
    exact.double().load_state_dict(encoding.state_dict())
    drawn = [torch.randn(2, heads, length, width, device=device).to(dtype) for heads in (HEADS, 2, 2)]
    drawn.append(torch.randn(2, length, HIDDEN, device=device).to(dtype))
    weights = torch.randn(2, HEADS, length, width, device=device).to(dtype)
    padding = torch.ones(2, length, device=device)
    if name in ("left", "empty"):
        padding[1, : 140 if name == "left" else length] = 0
    hidings = {
        "causal": {"is_causal": True},
        "documents": {"document_ids": (torch.arange(length, device=device) // 110).expand(2, -1)},
        "window": {"window": 50},
    }
    given = {"is_causal": causal, "relation_ids": torch.randint(5, (2, length, length), device=device)}
    given |= {"attention_mask": padding} if name in ("left", "empty") else hidings.get(name, {})
    results = []
    for module, kind, backend in ((exact, torch.float64, "eager"), (encoding, dtype, "flex")):
        inputs = [x.to(kind, copy=True).requires_grad_() for x in drawn]
        output = hf_relpos.attention(*inputs[:3], module, hidden_states=inputs[3], backend=backend, **given)
        wanted = [*inputs, *module.parameters()]
        results.append([output, *torch.autograd.grad((output * weights).sum(), wanted, allow_unused=True)])
    tolerance = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}[dtype]
    for expected, ours in zip(*results, strict=True):
        assert (expected is None) == (ours is None)
        if expected is not None:
            # sums over many pairs are exact to a part of the largest
            size = max(1.0, float(expected.detach().abs().max()))
            torch.testing.assert_close(ours.double() / size, expected / size, rtol=0, atol=tolerance)
    if name == "empty":
        assert all((found[1] == 0).all() for found in results[1][:4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_in_every_precision(dtype, trains):
    beside_float64(({"type": "relative_key_query", "max_position_embeddings": 16}, True), "empty", dtype, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine: nothing ran on a GPU")
@pytest.mark.parametrize(
    ("case", "name", "dtype"),
    [
        *((case, "left", torch.float32) for case in gpu_cases()),
        *((({"type": "t5"}, False), name, torch.float32) for name in HIDINGS),
        *((case, "empty", dtype) for case in gpu_cases()[3:7] for dtype in DTYPES[1:]),
    ],
    ids=str,
)
def test_on_a_gpu(case, name, dtype):
    """Compiled forward and backward passes."""
    torch._dynamo.reset()
    # the order in which what is learned is summed is not fixed, which the backend refuses where a fixed one is asked for
    torch.use_deterministic_algorithms(False)
    try:
        beside_float64(case, name, dtype, "cuda")
    finally:
        torch.use_deterministic_algorithms(True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine: nothing ran on a GPU")
def test_memory_on_a_gpu_is_linear():
    """Forward and backward with a learned table at 32,768 tokens, whose scores alone would take 17 GB."""
    encoding = hf_relpos.build_encoding("t5", num_heads=8, head_dim=64, causal=True).cuda().bfloat16()
    query, key, value = (
        torch.randn(1, 8, 32768, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
    )
    torch.use_deterministic_algorithms(False)
    try:
        torch.cuda.reset_peak_memory_stats()
        hf_relpos.attention(query, key, value, encoding, is_causal=True, backend="flex").square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(True)
    assert torch.cuda.max_memory_allocated() < 2 * 2**30
    assert all(parameter.grad.isfinite().all() for parameter in encoding.parameters())
