"""What dense backends add to scores: the terms and the mask, number by number, and made once for layers that share it."""

import math
from dataclasses import replace

import pytest
import torch
from families import model, tokens

from hf_relpos.attention import added as module
from hf_relpos.attention.added import added
from hf_relpos.attention.call import AttentionCall, Mask
from hf_relpos.encodings.inputs import OncePerForward
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import DistanceTable, KeyVector, QueryBuckets

MASKS = {
    "none": {},
    "causal": {"causal": True},
    "window": {"window": 3},
    "causal window": {"causal": True, "window": 2},
}
# sums of the same numbers in another order
close = {"rtol": 0, "atol": 1e-12}
ROWS, COLS = slice(1, 4), slice(2, 7)


def made(queries=5, keys=8, terms="distance key", **options):
    """A call of two samples and three heads, and generators' draws for its terms."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = Positions.consecutive(queries, keys, query_offset=keys - queries)
    query, key = draw(2, 3, queries, 4), draw(2, 3, keys, 4)
    kinds = {
        "distance": DistanceTable(draw(3, positions.num_distances), positions),
        "key": KeyVector(draw(2, 3, keys), positions),
        "query": QueryBuckets(query, draw(positions.num_distances, 4), None, positions),
    }
    found = tuple(kinds[name] for name in terms.split())
    return AttentionCall(query, key, key, Mask(positions, **options), 0.5, found)


def by_hand(call):
    """Every pair by itself, ``[B, H, Tq, Tk]``: the sum of the terms' numbers, minus infinity where the mask hides the key."""
    shape = (*call.query.shape[:3], call.key.shape[2])
    b, h, i, j = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    total = sum(term.at(b, h, i, j) for term in call.score_terms) + torch.zeros(shape, dtype=torch.float64)
    return total.masked_fill(~call.mask.at(b, h, i, j), -math.inf)


def put_together(found, shape):
    bias = torch.zeros(shape, dtype=torch.float64) if found.bias is None else found.bias.expand(shape)
    return bias if found.visible is None else bias.masked_fill(~found.visible, -math.inf)


@pytest.mark.parametrize("terms", ["distance", "distance key", "key distance query", "key", "query", ""])
@pytest.mark.parametrize("mask", MASKS)
def test_terms_and_mask_number_by_number(mask, terms):
    padding = torch.ones(2, 8, dtype=torch.bool)
    padding[0, :3] = False
    for call in (made(terms=terms, **MASKS[mask]), made(terms=terms, key_padding=padding, **MASKS[mask])):
        expected = by_hand(call)
        torch.testing.assert_close(put_together(added(call), expected.shape), expected, **close)
        block = expected[:, :, ROWS, COLS]
        torch.testing.assert_close(put_together(added(call, ROWS, COLS), block.shape), block, **close)


@pytest.mark.parametrize("terms", ["distance", "distance key"])
def test_what_hides_by_distance_is_in_the_table(terms):
    found = added(made(terms=terms, causal=True, window=2))
    assert found.visible is None
    assert found.bias.isneginf().any()
    assert found.blind is None
    # the keys of the first two queries end before their windows begin
    positions = Positions.consecutive(4, 3, query_offset=4, key_offset=0)
    table = DistanceTable(torch.zeros(3, positions.num_distances), positions)
    call = AttentionCall(*(torch.zeros(1, 3, n, 4) for n in (4, 3, 3)), Mask(positions, window=4), 1.0, (table,))
    assert added(call).blind[0, 0, :, 0].tolist() == [False, False, True, True]


def test_no_gradient_passes_what_is_hidden():
    call = made(terms="distance", causal=True)
    table = call.score_terms[0].table.clone().requires_grad_()
    call = replace(call, score_terms=(replace(call.score_terms[0], table=table),))
    added(call).bias.exp().sum().backward()
    hidden = call.mask.positions.distances() < 0
    assert not table.grad[:, hidden].any()
    assert table.grad[:, ~hidden].all()


@pytest.fixture
def folded(monkeypatch):
    """How often something dense is made of terms by distance."""
    seen, own = [], module._folded
    monkeypatch.setattr(module, "_folded", lambda *given: seen.append(1) or own(*given))
    return seen


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_layers_that_share_terms_share_the_dense_sum(family, backend, folded):
    for share, times in ((True, 1), (False, 3)):
        ours = model(family, {"type": "t5", "num_buckets": 8, "share_layers": share}, num_hidden_layers=3)
        ours.set_attn_implementation(backend)
        ids, mask = tokens(length=9), torch.ones(2, 9, dtype=torch.long)
        mask[0, :4] = 0
        folded.clear()
        loss = ours(ids, attention_mask=mask).logits.square().sum()
        assert len(folded) == times
        loss.backward()


def test_a_sum_of_other_terms_is_not_kept():
    forward = OncePerForward()
    shared = forward.get("terms", lambda: made(terms="distance").score_terms)
    call = replace(made(terms="distance"), score_terms=shared, forward=forward)
    assert added(call).bias is added(call).bias
    # heads that another encoding adds to have a term of their own in each layer
    other = made(terms="key").score_terms
    beside = replace(call, score_terms=(*shared, *other))
    assert added(beside).bias is not added(beside).bias
    causal = replace(call, mask=replace(call.mask, causal=True))
    assert added(causal).bias is not added(call).bias
