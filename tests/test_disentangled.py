"""DeBERTa's tables in short texts, which meet a row for each distance, and in long ones, whose far distances share a row."""

import pytest
import test_laws as laws
import torch
from cases import build

from hf_relpos.encodings.positions import Positions
from hf_relpos.encodings.terms import skew

NAMES = {"deberta": [{"p2c_distance": "code"}, {"p2c_distance": "paper"}], "deberta_v2": [{"position_buckets": None}]}
CASES = [({"type": name, **options, "p2c": True}, False) for name, some in NAMES.items() for options in some]


@pytest.mark.parametrize("reach", [laws.LENGTH, 4], ids=["short", "long"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_oracle_whatever_the_length(case, reach):
    rel_pos, causal = case
    laws.test_equals_the_oracle_in_outputs_and_gradients(({**rel_pos, "max_relative_positions": reach}, causal))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("reach", "own"), [(laws.LENGTH, True), (4, False)], ids=["short", "long"])
def test_rows_are_picked_where_distances_share_one_only(case, reach, own):
    rel_pos, causal = case
    encoding = build({**rel_pos, "max_relative_positions": reach}, causal)
    query, key, _ = laws.tensors(laws.LENGTH, laws.LENGTH)
    found = laws.contribution(encoding, query, key, Positions.consecutive(laws.LENGTH, laws.LENGTH))
    assert [term.bucket is None for term in found.score_terms] == [own, own]
    assert all(term.ends for term in found.score_terms)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 9), (1, 1, 4), (2, 2, 2)])
def test_skewed_numbers_and_their_gradients_equal_those_of_an_index(shape):
    values = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    # in memory the other way round too
    for given in (values, values.mT.contiguous().mT):
        count = shape[-1] - shape[-2] + 1
        rows, columns = torch.arange(shape[-2])[:, None], torch.arange(count)
        index = (columns - rows + shape[-2] - 1).expand(*shape[:-2], -1, -1)
        found, expected = skew(given, count), given.gather(-1, index)
        assert torch.equal(found, expected)
        weights = torch.randn_like(expected)
        mine, theirs = (torch.autograd.grad((one * weights).sum(), values)[0] for one in (found, expected))
        assert torch.equal(mine, theirs)
    assert torch.autograd.gradgradcheck(lambda some: skew(some, shape[-1] - shape[-2] + 1).square(), values)
