"""Checkpoints of transformers 4 with relative positions give transformers 4.57.6's own numbers.

References were written by ``tests/fixtures/make_legacy_fixtures.py`` with the real transformers 4.57.6. Only real tokens are
compared: 4.57 lets a left-padded decoder row, which sees no key, attend to all of them evenly.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

import hf_relpos

FIXTURES = Path(__file__).parent / "fixtures" / "legacy"
CLASSES = {
    "bert_relative_key": hf_relpos.RelPosBertForMaskedLM,
    "bert_relative_key_query": hf_relpos.RelPosBertForMaskedLM,
    "roberta_relative_key_query": hf_relpos.RelPosRobertaForMaskedLM,
    "electra_relative_key": hf_relpos.RelPosElectraForMaskedLM,
    "bert_decoder_relative_key": hf_relpos.RelPosBertForCausalLM,
    "bert_decoder_relative_key_query": hf_relpos.RelPosBertForCausalLM,
    "bert_qa_relative_key_query": hf_relpos.RelPosBertForQuestionAnswering,
}
CASES = ("none", "right", "left", "max_length")
BACKENDS = ("eager", "sdpa")


def run(model, ids, mask=None):
    output = model(input_ids=ids, attention_mask=mask, use_cache=False) if model.config.is_decoder else model(ids, mask)
    if hasattr(output, "start_logits"):
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    return output.logits


def load(name, **kwargs):
    return CLASSES[name].from_pretrained(FIXTURES / name, **kwargs).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CLASSES)
def test_logits_and_gradients_equal_transformers_4(name, backend):
    reference = load_file(FIXTURES / name / "reference.safetensors")
    single = load(name, attn_implementation=backend)
    double = load(name, attn_implementation=backend).double()
    for case in CASES:
        ids, mask = reference[f"{case}.input_ids"], reference.get(f"{case}.attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        with torch.no_grad():
            logits = run(single, ids, mask)
        torch.testing.assert_close(logits[real], reference[f"{case}.logits_float32"][real], rtol=0, atol=2e-5)

        double.zero_grad()
        logits = run(double, ids, mask)
        torch.testing.assert_close(logits[real], reference[f"{case}.logits_float64"][real], rtol=0, atol=1e-12)
        weights = reference["loss_weights"][: ids.shape[1], : logits.shape[-1]]
        (logits * weights * real[..., None]).sum().backward()
        if case == "left" and double.config.is_decoder:
            continue  # the reference's gradient holds the rows that see no key
        tables = [parameter.grad for key, parameter in double.named_parameters() if key.endswith("distance_embedding")]
        for layer, gradient in enumerate(tables):
            torch.testing.assert_close(gradient, reference[f"{case}.grad_float64.layer.{layer}"], rtol=1e-9, atol=1e-12)


def test_the_absolute_table_is_not_added():
    model = load("bert_relative_key")
    assert model.config.absolute == "drop"
    assert not any("position_embeddings" in key for key in model.state_dict())


@pytest.mark.parametrize("name", CLASSES)
def test_saves_again_without_loss(name, tmp_path):
    model = load(name)
    model.save_pretrained(tmp_path)
    again = CLASSES[name].from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 18)[None] % 23
    assert torch.equal(run(model, ids), run(again, ids))
    assert set(load_file(tmp_path / "model.safetensors")) <= set(model.state_dict())


@pytest.mark.parametrize("name", ["bert_decoder_relative_key", "bert_decoder_relative_key_query"])
def test_cached_decoding_equals_the_full_pass(name):
    """transformers 4 is wrong here: with a cache it takes the last position for every query."""
    model = load(name).double()
    ids = torch.randint(3, 23, (2, 20), generator=torch.Generator().manual_seed(0))
    full = run(model, ids)
    cache, parts = DynamicCache(config=model.config), []
    for start, end in ((0, 7), (7, 8), (8, 20)):
        parts.append(model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-12)


def test_longer_than_the_table_clips_or_raises_as_asked():
    ids = torch.randint(3, 23, (1, 40), generator=torch.Generator().manual_seed(0))
    model = load("bert_relative_key_query")
    assert model(ids).logits.isfinite().all()
    strict = hf_relpos.RelPosBertForMaskedLM.from_pretrained(
        FIXTURES / "bert_relative_key_query", rel_pos={"type": "relative_key_query", "beyond": "error"}
    )
    with pytest.raises(ValueError, match=r"40 tokens is longer than the distance table .* at most 24"):
        strict(ids)
    assert strict(ids[:, :24]).logits.isfinite().all()


def test_an_ordinary_checkpoint_needs_rel_pos_and_absolute():
    path = FIXTURES / "bert_absolute"
    with pytest.raises(ValueError, match="ordinary weights"):
        hf_relpos.RelPosBertForMaskedLM.from_pretrained(path)
    with pytest.raises(ValueError, match="absolute='keep' or 'drop'"):
        hf_relpos.RelPosBertForMaskedLM.from_pretrained(path, rel_pos={"type": "t5"})


def test_an_ordinary_checkpoint_with_kept_positions_and_no_encoding_is_itself():
    reference = load_file(FIXTURES / "bert_absolute" / "reference.safetensors")
    model = hf_relpos.RelPosBertForMaskedLM.from_pretrained(
        FIXTURES / "bert_absolute", rel_pos={"type": "none"}, absolute="keep"
    ).eval()
    logits = run(model, reference["none.input_ids"])
    torch.testing.assert_close(logits, reference["none.logits_float32"], rtol=0, atol=2e-5)
