"""A vector that all keys meet: added to the queries where that is the same, a number for each key elsewhere."""

from dataclasses import replace

import pytest
import torch

from hf_relpos.attention.call import AttentionCall, Mask, with_content_biases
from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import ContentBias, KeyVector

BATCH, HEADS, LENGTH, WIDTH, SCALE = 2, 4, 5, 6, 0.4


def made(groups=HEADS, scale=SCALE, **options):
    """A call with one bias of the given scale, in float64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    positions = Positions.consecutive(LENGTH, LENGTH)
    query, key, vector = draw(BATCH, HEADS, LENGTH, WIDTH), draw(BATCH, groups, LENGTH, WIDTH), draw(HEADS, WIDTH)
    term = ContentBias(vector, key, scale, positions)
    return AttentionCall(query, key, key, Mask(positions), SCALE, (term,), **options)


def scores(call):
    key = call.key.repeat_interleave(call.groups, dim=1)
    total = call.scale * call.query @ key.transpose(-1, -2)
    return total + sum(term.tile() for term in call.score_terms)


def by_hand(call, scale=SCALE):
    """Each pair by itself: ``(SCALE q + scale u) . k``."""
    (term,), found = call.score_terms, torch.empty(BATCH, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        key = call.key[b, h // call.groups, j]
        found[b, h, i, j] = (SCALE * call.query[b, h, i] + scale * term.vector[h]) @ key
    return found


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_stands_in_the_queries_where_keys_are_as_they_were(groups):
    call = made(groups)
    after = with_content_biases(call)
    assert not after.score_terms
    torch.testing.assert_close(scores(after), by_hand(call), rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("case", ["mapped keys", "another scale", "scores computed anew"])
def test_is_a_number_for_each_key_elsewhere(groups, case):
    scale = 1.0 if case == "another scale" else SCALE
    call = made(groups, scale)
    expected = by_hand(call, scale)
    if case == "mapped keys":
        query, key = call.query, -call.key
        # queries and keys turned alike, as a rotation does, which the vector is not
        call = replace(call, query=-query, key=key)
    elif case == "scores computed anew":
        call = replace(call, row_maps=(lambda content, bias, visible, factor: content,))
    after = with_content_biases(call)
    assert [type(term) for term in after.score_terms] == [KeyVector]
    torch.testing.assert_close(scores(after), expected, rtol=0, atol=1e-12)


def test_other_terms_stay_in_their_places():
    call = made()
    numbers = call.score_terms[0].numbers()
    call = replace(call, score_terms=(numbers, *call.score_terms, numbers))
    assert with_content_biases(call).score_terms == (numbers, numbers)


@pytest.mark.parametrize("groups", [4, 2])
def test_one_pair_is_what_the_block_has(groups):
    (term,) = made(groups).score_terms
    b, h, i, j = torch.meshgrid(*map(torch.arange, (BATCH, HEADS, LENGTH, LENGTH)), indexing="ij")
    torch.testing.assert_close(term.at(b, h, i, j), term.tile(), rtol=0, atol=0)
    torch.testing.assert_close(term.tile(slice(1, 3), slice(2, 5)), term.tile()[:, :, 1:3, 2:5], rtol=0, atol=0)
