"""Frequencies of scaled RoPE: transformers' own numbers, which the oracle of attention takes, against the papers' formulas."""

import pytest
import torch
from cases import OTHERS
from oracles import rope

from hf_relpos.encodings.rope_scaling import scaled_frequencies

ROTATING = 8
SCALINGS = [{"original_max_position_embeddings": 6, **scaling} for scaling in OTHERS["rope_scaling"]]


@pytest.mark.parametrize("longest", [5, 6, 7, 40])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_the_formula_in_float64_agrees_with_transformers_numbers(scaling, longest):
    expected, attention_factor = rope.scaled(ROTATING, 10000.0, scaling, longest)
    theta, factor = rope.reference(ROTATING, 10000.0, scaling, longest)
    assert factor == pytest.approx(attention_factor, rel=1e-12)
    assert theta == pytest.approx(expected, rel=3e-7)
    assert theta != expected or scaling["rope_type"] == "ntk"


@pytest.mark.parametrize("longest", [5, 40])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_the_package_takes_transformers_numbers_bit_for_bit(scaling, longest):
    theta, factor = scaled_frequencies(scaling, 10000.0, ROTATING, longest, torch.device("cpu"))
    expected, attention_factor = rope.reference(ROTATING, 10000.0, scaling, longest)
    assert factor == attention_factor
    torch.testing.assert_close(theta.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)
