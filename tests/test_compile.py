"""Compiled models: the same outputs and gradients, padding included."""

import os
import shutil

import pytest
import torch
from families import KINDS, model, tokens

# PyTorch's own, while it traces transformers' code; it comes once in a process, wherever that is
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

PADDED = 4
# the one that torch.compile asks for
COMPILER = os.environ.get("CXX", "g++")


def outcome(ours, compiled):
    """Logits of a text alone and of a padded one, and the gradients of all parameters."""
    ids, mask = tokens(length=12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :PADDED] = 0
    ours.zero_grad()
    alone, padded = compiled(ids).logits, compiled(ids, attention_mask=mask).logits * mask[..., None]
    (alone.square().mean() + padded.square().mean()).backward()
    return alone, padded, torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])


def compare(family, backend, tolerance, dtype):
    torch.compiler.reset()
    ours = model(family, KINDS["distance"]).to(dtype)
    ours.config.use_cache = False
    expected = outcome(ours, ours)
    for found, other in zip(outcome(ours, torch.compile(ours, backend=backend)), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_traced_with_its_backward_pass(family):
    compare(family, "aot_eager", 1e-9, torch.float64)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"no C++ compiler {COMPILER} on this machine: nothing is compiled"
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_compiled(family):
    compare(family, "inductor", 1e-4, torch.float32)
