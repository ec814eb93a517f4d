"""Keys that are left out because their weights vanish in rounding: which they are, that nothing else is, and that the results are the oracle's."""

import math

import pytest
import torch

import hf_relpos
from hf_relpos.attention import by_distance, by_kernel, far_keys, linear_memory

HEADS, WIDTH, HIDDEN = 8, 8, 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 16 queries, so that a short text has many."""
    for module in (by_distance, linear_memory):
        monkeypatch.setattr(module, "SMALLEST_BLOCK", 16)
    monkeypatch.setattr(by_distance, "BLOCKS", 100)


@pytest.fixture
def read(monkeypatch):
    """Scores that the kernel computes for a sample, added up."""
    counts = []
    for module in (by_distance, by_kernel):
        inner = module.flash

        def watch(query, key, *rest, inner=inner):
            counts.append(query.shape[1] * query.shape[2] * key.shape[2])
            return inner(query, key, *rest)

        monkeypatch.setattr(module, "flash", watch)
    return counts


def build(rel_pos, causal, dtype=torch.float64):
    torch.manual_seed(1)
    encoding = hf_relpos.build_encoding(rel_pos, num_heads=HEADS, head_dim=WIDTH, causal=causal, hidden_size=HIDDEN).to(
        dtype
    )
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoding


def tensors(length, groups=1, batch=2, dtype=torch.float64, size=1.0):
    torch.manual_seed(2)
    shapes = [(batch, HEADS, length, WIDTH), *[(batch, HEADS // groups, length, WIDTH)] * 2]
    query, key, value = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return [x.requires_grad_() for x in (query * size, key * size, value)]


def outcome(encoding, leaves, backend, **given):
    """Output and gradients of everything that has one."""
    states = torch.linspace(-2, 2, leaves[0].shape[2] * HIDDEN, dtype=leaves[0].dtype).sin()
    if "hidden_states" in encoding.needs:
        given["hidden_states"] = states.view(1, -1, HIDDEN).expand(leaves[0].shape[0], -1, -1)
    output = hf_relpos.attention(*leaves, encoding, backend=backend, **given)
    torch.manual_seed(3)
    return [
        output.detach(),
        *torch.autograd.grad((output * torch.randn_like(output)).sum(), [*leaves, *encoding.parameters()]),
    ]


# at least one head falls far enough, in double precision, within so many tokens
LONG = 450
CASES = {
    "alibi": ({"type": "alibi"}, False),
    "alibi-learned": ({"type": "alibi", "learned": True}, False),
    "alibi-one_sided": ({"type": "alibi", "direction": "one_sided"}, False),
    "alibi-causal": ({"type": "alibi"}, True),
    "alibi-causal-learned": ({"type": "alibi", "learned": True}, True),
    "kerple_power": ({"type": "kerple_power"}, False),
    "fox": ({"type": "fox"}, True),
    "cable": ({"type": "cable"}, True),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("hidden", ["nothing", "padding", "documents"])
@pytest.mark.parametrize("name", CASES)
def test_it_changes_nothing_that_can_be_seen(name, hidden, groups, read):
    rel_pos, causal = CASES[name]
    encoding, leaves = build(rel_pos, causal), tensors(LONG, groups, size=0.3)
    given = {"is_causal": causal}
    if hidden == "padding":
        given["attention_mask"] = torch.ones(2, LONG)
        given["attention_mask"][1, :40] = 0
    if hidden == "documents":
        given["document_ids"] = torch.arange(LONG).ge(170).long().expand(2, -1)
    expected = outcome(encoding, leaves, "eager", **given)
    found = outcome(encoding, leaves, "linear_memory", **given)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    if groups == 1 and hidden == "nothing" and name != "kerple_power":
        assert sum(read) < 0.95 * HEADS * (LONG * (LONG + 16) / 2 if causal else LONG * LONG)


@pytest.mark.parametrize("name", CASES)
def test_content_that_lifts_far_keys_keeps_them(name):
    """Ten times the queries and keys: what is far may well be what is looked for."""
    rel_pos, causal = CASES[name]
    encoding, leaves = build(rel_pos, causal), tensors(LONG, size=10.0)
    expected = outcome(encoding, leaves, "eager", is_causal=causal)
    found = outcome(encoding, leaves, "linear_memory", is_causal=causal)
    for mine, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max().clamp(min=1.0)
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sample", [0, 1])
def test_one_key_that_is_looked_for_is_found_behind_any_distance(sample):
    """A far key which every query wants: its content outweighs the slope, and nothing else does."""
    length, slope = 200, 1.0
    query = torch.zeros(2, 1, length, WIDTH, dtype=torch.float64)
    key = torch.zeros_like(query)
    # in one of two samples, whichever, which share the table
    query[sample, ..., 0], key[sample, :, 0, 0] = 20.0, 20.0
    value = torch.ones_like(key)
    distance = torch.arange(length - 1, -length, -1, dtype=torch.float64)
    table = -slope * distance.abs()[None]
    assert bool((far_keys.without_far(table, query, key, value, 1.0) == table).all())
    # without the content it would be far
    assert bool((far_keys.without_far(table, query, key * 0, value, 1.0) == -math.inf).any())


def test_the_bound_is_kept_exactly():
    """Keys that are left out weigh less than eps together, for content drawn at random and content that is as far apart as the bound allows."""
    cuts = 0
    for seed in range(50):
        torch.manual_seed(seed)
        size = 10 ** float(torch.empty(()).uniform_(-2, 1))
        query, key = (torch.randn(1, 2, 40, 3, dtype=torch.float64) * size for _ in range(2))
        if seed % 2:
            query, key = query.sign() * size, key.sign() * size
        table = -torch.rand(2, 1, dtype=torch.float64) * 10 * torch.arange(79, dtype=torch.float64).sub(39).abs()
        cut = far_keys.without_far(table, query, key, torch.ones_like(key), 0.7)
        cuts += int((cut == -math.inf).sum())
        index = torch.arange(40)[:, None] + torch.arange(39, -1, -1)
        weights = (0.7 * query @ key.mT + table[:, index]).softmax(-1)
        lost = weights.masked_fill(cut[:, index] > -math.inf, 0.0).sum(-1)
        assert float(lost.max()) < torch.finfo(torch.float64).eps
    assert cuts > 100


@pytest.mark.parametrize("what", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["alibi", "alibi-causal", "fox"])
def test_what_is_no_number_is_not_hidden(name, what):
    """A far key that is no number is seen by every query, as in eager."""
    rel_pos, causal = CASES[name]
    encoding = build(rel_pos, causal, torch.float32)
    query, key, value = (x.detach() for x in tensors(300, dtype=torch.float32))
    key[:, :, 3] = what
    given = {"is_causal": causal}
    if name == "fox":
        given["hidden_states"] = torch.zeros(2, 300, HIDDEN)
    with torch.no_grad():
        found, expected = (
            hf_relpos.attention(query, key, value, encoding, backend=backend, **given).isfinite()
            for backend in ("linear_memory", "eager")
        )
    assert bool((found == expected).all())
    assert not bool(expected.all())


def test_the_same_bits_every_time():
    for rel_pos, causal in (CASES["alibi-learned"], CASES["fox"]):
        encoding, leaves = build(rel_pos, causal, torch.float32), tensors(300, dtype=torch.float32)
        first, second = (outcome(encoding, leaves, "linear_memory", is_causal=causal) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_running_maxima_are_those_of_windows():
    torch.manual_seed(0)
    for count, width in ((7, 1), (7, 7), (7, 3), (12, 4), (13, 5), (30, 29)):
        table = torch.randn(3, count)
        expected = table.unfold(-1, width, 1).amax(-1)
        assert torch.equal(far_keys.window_maximum(table, width), expected)


def test_heads_that_read_alike_go_together():
    def runs(costs, groups=1):
        return [(run.start, run.stop) for run in far_keys.alike(costs, groups)]

    assert runs([5, 10, 8, 11, 90, 60, 5]) == [(0, 3), (3, 4), (4, 6), (6, 7)]
    assert runs([10, 5, 4]) == [(0, 2), (2, 3)]
    assert runs([1, 50, 2, 2], groups=2) == [(0, 2), (2, 4)]
    assert runs([1, 50, 60, 2], groups=2) == [(0, 4)]
    # ALiBi's twelve slopes, two geometric rows
    assert len(runs([52, 103, 205, 409, 817, 1633, 2048, 2048, 73, 146, 290, 578])) == 6
    # in no order
    assert runs([10, 100] * 4) == [(0, 8)]


def test_gates_are_compared_with_a_key_that_all_queries_of_a_block_see():
    columns = torch.tensor([0.0, 30.0, 1.0, 2.0, 50.0, 60.0, 70.0, 71.0])[None, None]
    # blocks of two: their first queries are 0, 2, 4 and 6, the highest keys up to them 0, 30, 50 and 70
    starts = far_keys.first_near_keys(columns, torch.tensor([[25.0]]), 2)
    assert starts.tolist() == [[[0, 1, 1, 4]]]
    unknown = far_keys.first_near_keys(columns, torch.tensor([[math.nan]]), 2)
    assert unknown.tolist() == [[[0, 0, 0, 0]]]
    # a gate that is no number, from its own key on
    columns[..., 5] = math.nan
    starts = far_keys.first_near_keys(columns, torch.tensor([[25.0]]), 2)
    assert starts.tolist() == [[[0, 1, 1, 0]]]


@pytest.mark.parametrize(
    ("rel_pos", "queries", "keys", "options"),
    [
        ({"type": "t5"}, 12, 100, {"is_causal": True, "window": 20, "query_offset": 88}),
        ({"type": "t5"}, 12, 100, {"window": 20}),
        ({"type": "alibi"}, 14, 400, {"is_causal": True, "query_offset": 386}),
        ({"type": "alibi"}, 10, 400, {}),
        ({"type": "alibi"}, 60, 400, {}),
    ],
)
def test_fewer_queries_than_keys(rel_pos, queries, keys, options):
    """One block of queries that leaves keys out, and several."""
    encoding = build(rel_pos, options.get("is_causal", False)).requires_grad_(False)
    key, value = tensors(keys)[1:]
    query = tensors(queries)[0]
    found = []
    for backend in ("eager", "linear_memory"):
        output = hf_relpos.attention(query, key, value, encoding, backend=backend, **options)
        torch.manual_seed(3)
        found.append([output, *torch.autograd.grad((output * torch.randn_like(output)).sum(), (query, key, value))])
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_values_that_stand_out_keep_their_keys():
    """A far value may be so large that a weight of next to nothing counts."""
    query = torch.zeros(1, 1, 200, WIDTH)
    value = torch.ones_like(query)
    table = -0.5 * torch.arange(199.0, -200, -1).abs()[None]
    counts = []
    for size in (1.0, 1e12, math.inf):
        value[:, :, 0] = size
        counts.append(int((far_keys.without_far(table, query, query, value, 1.0) == -math.inf).sum()))
    assert counts[0] > counts[1] > counts[2] == 0


def test_nothing_at_all():
    query = torch.zeros(0, HEADS, 40, WIDTH)
    output = hf_relpos.attention(
        query, query, query, build({"type": "alibi"}, False, torch.float32), backend="linear_memory"
    )
    assert output.shape == (0, HEADS, 40, WIDTH)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_take_another_way():
    """Inside of vmap and torch.func numbers cannot be looked at."""
    encoding = build({"type": "alibi"}, True)
    query = tensors(600)[0].detach()

    def loss(x):
        return hf_relpos.attention(x, x, x, encoding, is_causal=True).square().sum()

    with pytest.raises(ValueError, match=r"inside of torch.func or vmap"):
        torch.func.vmap(lambda x: hf_relpos.attention(x, x, x, encoding, backend="linear_memory"))(query[:, None])
    expected = torch.autograd.functional.jacobian(loss, query)
    torch.testing.assert_close(torch.func.grad(loss)(query), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.func.vmap(loss)(query[:, None]).sum(), loss(query), rtol=1e-9, atol=0)
