"""Every method in every family: it runs, learns, ignores padding, decodes with a cache as without, and survives saving."""

import pytest
import torch
from cases import variants
from families import DECODERS, FAMILIES, model, tokens
from transformers import DynamicCache

import hf_relpos
from hf_relpos.models.model_inputs import example_inputs

close = {"rtol": 0, "atol": 1e-9}


def given(ours, ids):
    """What a model must be told beyond its tokens; relations that depend on both places."""
    found = example_inputs(ours.base_model, ids)
    for value in found.values():
        places = torch.arange(ids.shape[1])
        value.copy_((2 * places[:, None] + places[None]) % 5)
    return found


def part(found, rows, cols):
    return {name: value[:, rows, cols] for name, value in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", hf_relpos.list_encodings())
def test_every_method_in_every_family(method, family, tmp_path):
    ours = model(family, variants(method)[0])
    ids = tokens(length=9)
    extra = given(ours, ids)
    logits = ours(ids, **extra).logits
    assert logits.isfinite().all()
    logits.square().sum().backward()
    silent = [
        name for name, parameter in ours.named_parameters() if "relpos." in name and not parameter.grad.abs().sum() > 0
    ]
    assert not silent

    with torch.no_grad():
        ours.set_attn_implementation("eager")
        torch.testing.assert_close(ours(ids, **extra).logits, logits, **close)
        ours.set_attn_implementation(None)
        padded = torch.cat((torch.full((2, 3), 1), ids), dim=1)
        wider = {name: torch.nn.functional.pad(value, (3, 0, 3, 0)) for name, value in extra.items()}
        left = ours(padded, attention_mask=(padded != 1).long(), **wider).logits[:, 3:]
        torch.testing.assert_close(left, logits, **close)
        if family in DECODERS:
            cache, parts = DynamicCache(config=ours.config), []
            for start, stop in ((0, 4), (4, 5), (5, 9)):
                some = part(extra, slice(start, stop), slice(0, stop))
                parts.append(ours(ids[:, start:stop], past_key_values=cache, use_cache=True, **some).logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), logits, **close)

        ours.float().save_pretrained(tmp_path)
        again = type(ours).from_pretrained(tmp_path).eval()
        assert torch.equal(again(ids, **extra).logits, ours(ids, **extra).logits)
        assert again.config.rel_pos == ours.config.rel_pos
