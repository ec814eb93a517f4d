"""The linear-memory backend where it has several blocks and tiles: equal to the dense oracle, the same bits each time, and linear indeed."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from cases import HEADS, HIDDEN, WIDTH, all_cases, build, extras, label, tensors
from torch.utils._python_dispatch import TorchDispatchMode

import hf_relpos
from hf_relpos.attention import by_distance, fused_kernel, linear_memory
from hf_relpos.attention.backends import BACKENDS, BackendRefusal, choose
from hf_relpos.attention.call import AttentionCall, Mask
from hf_relpos.attention.functional import optional_inputs
from hf_relpos.encodings.inputs import Contribution, EncodingInputs
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import DistanceTable, KeyBuckets, KeyVector, PairBuckets, QueryBuckets

CASES = all_cases()
every_case = pytest.mark.parametrize("case", CASES, ids=label)
LENGTH = 23


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch):
    sizes = {
        "SMALLEST_BLOCK": 5,
        "TILE_ROWS": 4,
        "TILE_COLS": 6,
        "KEY_TILE_COLS": 3,
        "FAR_COLS": 3,
        "MOST_ELEMENTS": 260,
        "CHUNK_ELEMENTS": 260,
    }
    for name, size in sizes.items():
        monkeypatch.setattr(by_distance, name, size)
    for name, size in {"SMALLEST_BLOCK": 5, "MOST_ELEMENTS": 900, "FEW_QUERIES": 0}.items():
        monkeypatch.setattr(linear_memory, name, size)


def masks():
    """Ways in which keys are hidden, by name."""
    ones = torch.ones(2, LENGTH)
    left, right, ragged, empty = (ones.clone() for _ in range(4))
    left[1, :9] = 0
    right[0, -7:] = 0
    ragged[0, :3] = ragged[1, -11:] = 0
    empty[1] = 0
    holes = ones.clone()
    holes[0, [3, 4, 11]] = 0
    documents = torch.tensor([0] * 9 + [1] * 4 + [2] * 10).expand(2, -1)
    uneven = torch.stack((documents[0], torch.tensor([5] * 2 + [4] * 21)))
    scattered = torch.tensor([0, 1] * 11 + [0]).expand(2, -1)
    return {
        "all": {},
        "left": {"attention_mask": left},
        "right": {"attention_mask": right},
        "ragged": {"attention_mask": ragged},
        "empty": {"attention_mask": empty},
        "holes": {"attention_mask": holes},
        "documents": {"document_ids": documents},
        "uneven documents": {"document_ids": uneven, "attention_mask": ragged},
        "scattered documents": {"document_ids": scattered},
        "window": {"window": 4},
        "window and padding": {"window": 6, "attention_mask": ragged},
        "window and documents": {"window": 6, "document_ids": documents},
    }


def gradients(output, inputs):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs, allow_unused=True)


def run(encoding, backend, groups=HEADS, queries=LENGTH, **arguments):
    query, key, value = (x.requires_grad_() for x in tensors(queries, LENGTH, groups=groups))
    given = extras(LENGTH)
    given["hidden_states"].requires_grad_()
    given["relation_ids"] = given["relation_ids"][:, LENGTH - queries :]
    output = hf_relpos.attention(query, key, value, encoding, backend=backend, **given, **arguments)
    inputs = [query, key, value, given["hidden_states"], *encoding.parameters()]
    return output, gradients(output, inputs)


def compare(encoding, **arguments):
    expected, theirs = run(encoding, "eager", **arguments)
    output, ours = run(encoding, "linear_memory", **arguments)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-11)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


def one_of_each_kind():
    """The first case for each combination of kinds of terms, so that every path is walked without walking it for every method."""
    found = {}
    for case in CASES:
        encoding = build(*case)
        query, key, _ = tensors(4, 4)
        positions = Positions.consecutive(4, 4)
        inputs = EncodingInputs(query, key, positions, 1.0, **optional_inputs(encoding, positions, **extras(4)))
        added = encoding(inputs, Contribution(query, key, 1.0))
        kinds = tuple(type(term).__name__ for term in (*added.score_terms, *added.value_terms))
        if not added.row_maps:
            found.setdefault((kinds, any(True for _ in encoding.parameters()), case[1]), case)
    return list(found.values())


every_kind = pytest.mark.parametrize("case", one_of_each_kind(), ids=label)


@every_case
def test_every_case_under_padding(case):
    encoding = build(*case)
    try:
        compare(encoding, is_causal=case[1], groups=2, **masks()["ragged"])
    except BackendRefusal:
        pytest.skip("it maps whole rows of scores")


@pytest.mark.parametrize("name", masks())
@every_kind
def test_every_kind_of_term_under_every_mask(case, name):
    compare(build(*case), is_causal=case[1], groups=2, **masks()[name])


@every_kind
def test_queries_that_go_on_from_a_cache(case):
    for offset in (LENGTH - 9, 3):
        compare(build(*case), is_causal=case[1], groups=1, queries=9, query_offset=offset, key_offset=0)


@every_kind
def test_the_same_bits_every_time(case):
    encoding = build(*case, dtype=torch.float32)
    runs = []
    for _ in range(2):
        query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH, dtype=torch.float32))
        given = extras(LENGTH, dtype=torch.float32)
        output = hf_relpos.attention(query, key, value, encoding, backend="linear_memory", is_causal=case[1], **given)
        runs.append((output, *gradients(output, [query, key, value, *encoding.parameters()])))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_kind
def test_half_precision_stays_close(case, dtype):
    """Outputs and gradients, beside the dense oracle on the same rounded numbers in float32."""
    encoding = build(*case, dtype=torch.float32)
    for parameter in encoding.parameters():
        parameter.data.mul_(0.2)
    rounded = build(*case, dtype=torch.float32)
    rounded.load_state_dict(encoding.state_dict())
    rounded = rounded.to(dtype)
    encoding.load_state_dict(rounded.state_dict())
    results = []
    for module, kind, backend in ((encoding, torch.float32, "eager"), (rounded, dtype, "linear_memory")):
        drawn = [x.to(dtype).to(kind).requires_grad_() for x in tensors(LENGTH, LENGTH)]
        given = extras(LENGTH, dtype=dtype)
        given["hidden_states"] = given["hidden_states"].to(kind)
        output = hf_relpos.attention(*drawn, module, backend=backend, is_causal=case[1], **given)
        results.append((output, *gradients(output.float(), drawn)))
    for exact, close in zip(*results, strict=True):
        torch.testing.assert_close(close.float(), exact, rtol=0.05, atol=0.06)


@every_kind
def test_autocast_keeps_scores_precise(case):
    encoding = build(*case, dtype=torch.float32)
    query, key, value = tensors(LENGTH, LENGTH, dtype=torch.float32)
    given = {"is_causal": case[1], "backend": "linear_memory", **extras(LENGTH, dtype=torch.float32)}
    exact = hf_relpos.attention(query, key, value, encoding, **given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = hf_relpos.attention(query, key, value, encoding, **given)
    torch.testing.assert_close(cast.float(), exact, rtol=0.1, atol=0.2)


@every_kind
def test_dropout_is_recomputed_as_it_was(case):
    """The gradient of what was dropped is that of the same forward pass: a finite difference tells."""
    encoding = build(*case)
    query, key, value = tensors(LENGTH, LENGTH)
    given = {"is_causal": case[1], "backend": "linear_memory", "dropout_p": 0.4, **extras(LENGTH)}
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)

    def loss(step):
        torch.manual_seed(3)
        return hf_relpos.attention(query, key, value + step * direction, encoding, **given).square().sum()

    value.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(0.0), value)
    with torch.no_grad():
        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the most bytes that any one new tensor holds."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@every_kind
def test_no_tensor_grows_with_the_square_of_length(case, monkeypatch):
    for name, size in {"SMALLEST_BLOCK": 64, "TILE_ROWS": 64, "TILE_COLS": 64, "KEY_TILE_COLS": 64}.items():
        monkeypatch.setattr(by_distance, name, size)
    monkeypatch.setattr(linear_memory, "SMALLEST_BLOCK", 64)
    for module in (by_distance, linear_memory):
        monkeypatch.setattr(module, "MOST_ELEMENTS", 2**14)
    encoding = build(*case, dtype=torch.float32)
    if encoding.max_length is not None or "relation_ids" in encoding.needs:
        pytest.skip("it is defined for short texts, or its own input is quadratic")
    largest = []
    for length in (512, 1024):
        query, key, value = (torch.randn(1, HEADS, length, WIDTH).requires_grad_() for _ in range(3))
        given = {
            "hidden_states": torch.randn(1, length, HIDDEN),
            "segment_ids": torch.zeros(1, length, dtype=torch.long),
        }
        with LargestTensor() as watch:
            output = hf_relpos.attention(
                query, key, value, encoding, backend="linear_memory", is_causal=case[1], **given
            )
            output.square().sum().backward()
        largest.append(watch.bytes)
    assert largest[1] <= 2.2 * largest[0]
    assert largest[1] < 4 * 1024 * 1024


@every_kind
def test_the_kernel_reads_its_mask_in_place(case, monkeypatch):
    """A mask whose last stride is neither 1 nor 0 would be copied, whole, where no tensor is seen to be made."""
    fused, inner, strides = linear_memory.scaled_dot_product_attention, by_distance.flash, []

    def watch(*args, attn_mask=None, **kwargs):
        strides.append(0 if attn_mask is None else attn_mask.stride(-1))
        return fused(*args, attn_mask=attn_mask, **kwargs)

    def watch_inner(query, key, value, mask, *args):
        strides.append(0 if mask is None else mask.stride(-1))
        return inner(query, key, value, mask, *args)

    assert fused_kernel.kernel_works()
    monkeypatch.setattr(linear_memory, "scaled_dot_product_attention", watch)
    monkeypatch.setattr(by_distance, "flash", watch_inner)
    with torch.no_grad():
        encoding = build(*case)
        query, key, value = tensors(LENGTH, LENGTH)
        given = {"is_causal": case[1], "backend": "linear_memory", **extras(LENGTH)}
        hf_relpos.attention(query, key, value, encoding, **given)
    assert set(strides) <= {0, 1}


def test_auto_takes_it_where_it_is_the_better_choice(monkeypatch):
    monkeypatch.setattr(linear_memory, "FEW_QUERIES", 8)
    linear, dense, eager = BACKENDS["linear_memory"], BACKENDS["sdpa"], BACKENDS["eager"]

    def call(length, queries=None, terms=(), dtype=torch.float32, **options):
        queries = queries or length
        positions = Positions.consecutive(queries, length)
        shape = (1, 12, queries, 4)
        query, key = torch.zeros(shape, dtype=dtype), torch.zeros(1, 12, length, 4, dtype=dtype)
        return AttentionCall(query, key, key, Mask(positions, causal=True), 1.0, terms, **options)

    positions = Positions.consecutive(64, 64)
    table = DistanceTable(torch.zeros(12, 127), positions)
    content = QueryBuckets(torch.zeros(1, 12, 64, 4), torch.zeros(127, 4), None, positions)
    pairs = PairBuckets(torch.zeros(1, 12, 64, 2), torch.zeros(1, 64, 64, dtype=torch.long))
    # by distance: from the crossovers on; what must be recomputed for its gradient: only where scores are many; a handful of queries: always
    gates = KeyVector(torch.zeros(1, 12, 64), positions)
    for term, (keys, scores) in zip((gates, table, content), linear_memory.CROSSOVERS.values(), strict=True):
        square = math.ceil((scores / 12) ** 0.5)
        assert choose("auto", call(square, terms=(term,))) is linear
        assert choose("auto", call(square - 1, terms=(term,))) is (dense if term is table else eager)
        assert choose("auto", call(square, terms=(term,), dropout=0.1)) is linear
        with torch.no_grad():
            assert choose("auto", call(keys, terms=(term,))) is linear
            assert choose("auto", call(keys - 1, terms=(term,))) is dense
    learned = replace(table, table=table.table.clone().requires_grad_())
    assert choose("auto", call(64, terms=(learned,))) is eager
    assert choose("auto", call(2048, terms=(pairs,))) is eager
    assert choose("auto", call(4096, terms=(pairs,))) is linear
    assert choose("auto", call(64, 1, terms=(content,))) is linear
    assert choose("auto", call(64, 1, terms=(table,), dtype=torch.bfloat16)) is linear
    with torch.no_grad():
        assert choose("auto", call(linear_memory.CROSSOVERS["vectors"][0], terms=(pairs,))) is linear
        assert choose("auto", call(linear_memory.CROSSOVERS["vectors"][0] - 1, terms=(pairs,))) is dense
    # nothing added and nothing hidden but the future: PyTorch's kernel, unless it would hold the scores
    plain = call(4096)
    everything = replace(plain, mask=replace(plain.mask, causal=False))
    for one in (call(64), plain, everything):
        assert choose("auto", one) is dense
    for one in (
        replace(plain, dropout=0.1),
        replace(plain, value=torch.zeros(1, 12, 4096, 2)),
        replace(plain, mask=replace(plain.mask, window=5)),
        replace(everything, mask=replace(everything.mask, key_padding=torch.ones(1, 4096, dtype=torch.bool))),
    ):
        assert choose("auto", one) is linear


@pytest.mark.parametrize(
    "rel_pos", [{"type": "none"}, {"type": "t5"}, {"type": "shaw", "max_distance": 3}, {"type": "relative_key_query"}]
)
@pytest.mark.parametrize("causal", [True, False])
def test_dropout_is_the_same_in_its_gradient(rel_pos, causal):
    encoding = build(rel_pos, causal)
    query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH, groups=2))
    inputs = [query, key, value, *encoding.parameters()]
    weights = torch.randn(query.shape, dtype=query.dtype)

    def loss():
        torch.manual_seed(5)
        output = hf_relpos.attention(
            query, key, value, encoding, is_causal=causal, dropout_p=0.3, backend="linear_memory"
        )
        return (output * weights).sum()

    found = torch.autograd.grad(loss(), inputs)
    generator = torch.Generator().manual_seed(1)
    for leaf, gradient in zip(inputs, found, strict=True):
        step = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) * 1e-5
        with torch.no_grad():
            leaf += step
            above = loss()
            leaf -= 2 * step
            below = loss()
            leaf += step
        torch.testing.assert_close((above - below) / 2, (gradient * step).sum(), rtol=1e-6, atol=1e-12)
    torch.manual_seed(6)
    other = hf_relpos.attention(query, key, value, encoding, is_causal=causal, dropout_p=0.3, backend="linear_memory")
    assert not torch.allclose((other * weights).sum(), loss())


def test_dropout_leaves_out_the_share_that_it_is_told():
    length, share = 400, 0.25
    query, key = (
        torch.zeros(1, 1, length, 400, dtype=torch.float64),
        torch.zeros(1, 1, length, 400, dtype=torch.float64),
    )
    value = torch.eye(length, dtype=torch.float64)[None, None]
    weights = hf_relpos.attention(query, key, value, dropout_p=share, backend="linear_memory")[0, 0] * length
    kept = weights > 0
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / (1 - share)))
    assert abs(kept.double().mean() - (1 - share)) < 4 * (share * (1 - share) / length**2) ** 0.5


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "every second": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "heads inside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["t5", "relative_key_query", "fox", "none"])
def test_any_layout_of_its_inputs(name, layout):
    encoding = build({"type": name}, True)
    results = []
    for backend, lay in (("eager", lambda x: x), ("linear_memory", LAYOUTS[layout])):
        inputs = [lay(x).detach().requires_grad_() for x in tensors(LENGTH, LENGTH)]
        output = hf_relpos.attention(*inputs, encoding, is_causal=True, backend=backend, **extras(LENGTH))
        results.append((output, *gradients(output, [*inputs, *encoding.parameters()])))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("clip", [(-2, 0), (0, 2), (-3, 3), (-9, -4), (4, 9)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 7}, {"causal": True, "window": 9}], ids=str)
@pytest.mark.parametrize("term", [QueryBuckets, KeyBuckets])
def test_tables_whose_edges_lie_anywhere(term, clip, options):
    positions = Positions.consecutive(LENGTH, LENGTH)
    bucket = positions.distances().clamp(*clip) - clip[0]
    results = []
    for name in ("eager", "linear_memory"):
        query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH))
        table = torch.randn(clip[1] - clip[0] + 1, WIDTH, generator=torch.Generator().manual_seed(2), dtype=query.dtype)
        table.requires_grad_()
        terms = (term(query if term is QueryBuckets else key, table, bucket, positions),)
        call = AttentionCall(query, key, value, Mask(positions, **options), 0.3, terms)
        output = BACKENDS[name].run(call)[0]
        results.append((output, *gradients(output, [query, key, value, table])))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "arguments", [{"attention_mask": torch.zeros(2, LENGTH)}, {"is_causal": True, "key_offset": 50}]
)
@pytest.mark.parametrize("name", ["t5", "shaw", "none", "relation"])
def test_where_nothing_is_seen_gradients_are_zero(name, arguments):
    query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH))
    arguments = {"query_offset": 0, **extras(LENGTH), **arguments}
    encoding = build({"type": name}, arguments.get("is_causal", False))
    output = hf_relpos.attention(query, key, value, encoding, backend="linear_memory", **arguments)
    assert not output.any()
    output.sum().backward()
    assert not any(x.grad.any() for x in (query, key, value))


@pytest.mark.parametrize("name", ["t5", "relative_key_query", "fox"])
def test_gradients_of_gradients_are_refused(name):
    encoding = build({"type": name}, True)
    query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH))
    output = hf_relpos.attention(query, key, value, encoding, is_causal=True, backend="linear_memory", **extras(LENGTH))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(output.sum(), query, create_graph=True)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gates_learn_as_exactly_as_in_eager(dtype, padded, monkeypatch):
    """Their gradients are sums over the whole text: what rounding leaves of each number must cancel there. With tiles as they are, whose sums are long."""
    monkeypatch.undo()
    length, found = 300, {}
    for name, precision in (("exact", torch.float64), ("eager", dtype), ("linear_memory", dtype)):
        encoding = build({"type": "fox"}, True, dtype=torch.float64).to(precision)
        generator = torch.Generator().manual_seed(3)
        shapes = (*[(1, HEADS, length, WIDTH)] * 3, (1, length, HIDDEN))
        query, key, value, states = (
            torch.randn(shape, generator=generator).to(dtype).to(precision).requires_grad_() for shape in shapes
        )
        mask = torch.ones(1, length)
        mask[:, :9] = 0 if padded else 1
        output = hf_relpos.attention(
            query,
            key,
            value,
            encoding,
            is_causal=True,
            attention_mask=mask,
            hidden_states=states,
            backend="eager" if name == "exact" else name,
        )
        # one draw for all precisions, which would otherwise draw other numbers
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(output.dtype)
        learned = torch.autograd.grad((output * weights).sum(), list(encoding.parameters()))
        found[name] = [x.double() for x in learned]
    for exact, eager, ours in zip(found["exact"], found["eager"], found["linear_memory"], strict=True):
        assert (ours - exact).norm() <= 3 * (eager - exact).norm() + 1e-6 * exact.norm()


@pytest.mark.parametrize("name", ["t5", "fox", "relative_key_query", "none"])
def test_scales_that_are_no_usual_ones(name):
    encoding = build({"type": name}, True)
    for scale in (0.0, -0.3, 2.0):
        outputs = []
        for backend in ("eager", "linear_memory"):
            query, key, value = (x.requires_grad_() for x in tensors(LENGTH, LENGTH))
            output = hf_relpos.attention(
                query, key, value, encoding, is_causal=True, scale=scale, backend=backend, **extras(LENGTH)
            )
            outputs.append((output, *gradients(output, [query, key, value, *encoding.parameters()])))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-10)


def test_nearly_everything_dropped_is_still_a_number():
    output = hf_relpos.attention(*tensors(LENGTH, LENGTH), dropout_p=1 - 1e-9, backend="linear_memory")
    assert output.isfinite().all()


FIRST_USES = {
    "inference": "with torch.inference_mode(): call()",
    "checkpoint": "torch.utils.checkpoint.checkpoint(call, *leaves, use_reentrant=False).sum().backward()",
    "math": "from torch.nn.attention import SDPBackend, sdpa_kernel\nwith sdpa_kernel(SDPBackend.MATH): call()",
}


@pytest.mark.slow
@pytest.mark.parametrize("use", FIRST_USES)
def test_the_first_use_may_be_anywhere(use):
    """The kernel is tried out once for a process, untouched by what the caller is in the middle of."""
    code = f"""
import torch, torch.utils.checkpoint, hf_relpos
from hf_relpos.attention.fused_kernel import kernel_works
encoding = hf_relpos.build_encoding({{"type": "t5"}}, num_heads=2, head_dim=8, causal=True)
leaves = [torch.randn(1, 2, 20, 8, requires_grad=True) for _ in range(3)]
def call(*given):
    return hf_relpos.attention(*(given or leaves), encoding, is_causal=True, backend="linear_memory")
{FIRST_USES[use]}
assert kernel_works()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("learns", ["nothing", "gates", "states"])
@pytest.mark.parametrize("options", [{}, {"window": 9}, {"attention_mask": "left"}, {"dropout_p": 0.2}], ids=str)
def test_gates_of_which_only_some_learn(options, learns):
    """Frozen gates, and gates that learn beside frozen queries: as in eager, or with dropout, which is drawn in another way, without an error."""
    if "attention_mask" in options:
        options = masks()["left"]
    found = []
    for backend in ("eager", "linear_memory"):
        encoding = build({"type": "fox"}, True).requires_grad_(learns == "gates")
        query, key, value = tensors(LENGTH, LENGTH)
        given = extras(LENGTH)
        given["hidden_states"].requires_grad_(learns == "states")
        leaves = {"nothing": [query, value], "gates": list(encoding.parameters()), "states": [given["hidden_states"]]}
        inputs = [x.requires_grad_() for x in leaves[learns]]
        output = hf_relpos.attention(query, key, value, encoding, is_causal=True, backend=backend, **given, **options)
        found.append(gradients(output, inputs))
    if "dropout_p" not in options:
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-11)
