"""Sequence to sequence: an encoder and a decoder with relative positions, cross-attention without."""

import pytest
import torch
from families import KINDS, VOCABULARY, config, host_config, randomise, tokens
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from without_package import run_python

import hf_relpos

FAMILIES = ("bert", "roberta", "electra", "gpt2")
close = {"rtol": 0, "atol": 1e-9}


def pair(decoder_family="bert", rel_pos=KINDS["distance"], absolute="drop"):
    encoder = hf_relpos.RelPosBertModel(config("bert", rel_pos, absolute))
    crossed = config(decoder_family, rel_pos, absolute, is_decoder=True, add_cross_attention=True)
    decoder = hf_relpos.auto_class(crossed, "CausalLM")(crossed)
    model = hf_relpos.RelPosEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    model.config.pad_token_id = model.generation_config.pad_token_id = 1
    model.generation_config.eos_token_id = None
    return randomise(model).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_padding_and_caches_agree(family, kind):
    model = pair(family, KINDS[kind])
    source, target = tokens(length=9), tokens(length=7, seed=1)
    logits = model(source, decoder_input_ids=target).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(source, decoder_input_ids=target).logits, logits, **close)
    model.set_attn_implementation("auto")
    padded = torch.cat((torch.full((2, 3), 1), source), dim=1)
    left = model(padded, attention_mask=(padded != 1).long(), decoder_input_ids=target).logits
    torch.testing.assert_close(left, logits, **close)
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
    made = model.generate(source, **settings)
    assert torch.equal(model.generate(source, use_cache=False, **settings), made)
    assert made.shape == (2, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_cross_attention_has_no_relative_term(kind):
    """With encoder states that hold no order, the order of the encoder's tokens cannot matter to the decoder."""
    model = pair(rel_pos=KINDS[kind])
    states, target = torch.randn(2, 9, 32, dtype=torch.float64), tokens(length=7)
    order = torch.randperm(9)
    straight = model(encoder_outputs=(states,), decoder_input_ids=target).logits
    shuffled = model(encoder_outputs=(states[:, order],), decoder_input_ids=target).logits
    torch.testing.assert_close(shuffled, straight, **close)
    names = [name for name, _ in model.named_parameters() if "relpos" in name]
    assert not any("crossattention" in name for name in names)


def test_it_learns_and_every_encoding_gets_a_gradient():
    model = pair(rel_pos=KINDS["query-and-key"])
    target = tokens(length=7)
    output = model(tokens(), decoder_input_ids=target)
    loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), target.flatten())
    loss.backward()
    encodings = {name: parameter for name, parameter in model.named_parameters() if "relpos." in name}
    assert len(encodings) == 4
    assert all(parameter.grad.abs().sum() > 0 for parameter in encodings.values())


# transformers' own class says so of every model that is given labels
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way to train encoder-decoder:FutureWarning")
def test_seq2seq_trainer_trains_generates_and_saves(tmp_path):
    """It learns to repeat what it reads, which takes order; predictions are generated, and what is saved loads bit-equal."""
    torch.manual_seed(0)
    model = pair(rel_pos=KINDS["distance"]).float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in tokens(64, 5).clamp(max=8)]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        max_steps=60,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        predict_with_generate=True,
    )
    model.generation_config.max_length = 6

    def collate(batch):
        return {name: torch.tensor([row[name] for row in batch]) for name in ("input_ids", "labels")}

    run = Seq2SeqTrainer(model=model, args=arguments, data_collator=collate, train_dataset=rows, eval_dataset=rows[:8])
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    found = run.predict(rows[:8])
    right = torch.tensor(found.predictions)[:, 1:] == torch.tensor([row["labels"] for row in rows[:8]])
    assert right.float().mean() > 0.7
    assert found.metrics["test_loss"] < losses[0]
    run.save_model(tmp_path / "saved")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").eval()
    batch = collate(rows[:4])
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


LOADER = """
import torch, transformers
reference = torch.load("reference.pt")
model = transformers.AutoModelForSeq2SeqLM.from_pretrained("saved", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
with torch.no_grad():
    logits = model(reference["source"], decoder_input_ids=reference["target"]).logits
assert torch.equal(logits, reference["logits"])
model.save_pretrained("again")
again = transformers.AutoModelForSeq2SeqLM.from_pretrained("again", trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(reference["source"], decoder_input_ids=reference["target"]).logits, reference["logits"])
print("loaded")
"""


def test_saves_its_code_and_loads_with_and_without_the_package(tmp_path):
    model = pair("gpt2", KINDS["list"]).float()
    source, target = tokens(), tokens(length=7)
    with torch.no_grad():
        logits = model(source, decoder_input_ids=target).logits
    model.save_pretrained(tmp_path / "saved")
    for loader in (hf_relpos.RelPosEncoderDecoderModel, AutoModelForSeq2SeqLM):
        again = loader.from_pretrained(tmp_path / "saved")
        assert type(again) is hf_relpos.RelPosEncoderDecoderModel
        with torch.no_grad():
            assert torch.equal(again(source, decoder_input_ids=target).logits, logits)
        assert again.config.decoder.rel_pos == model.config.decoder.rel_pos
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card
    assert hf_relpos.encoding_card("kerple_log").bibtex in card
    torch.save({"source": source, "target": target, "logits": logits}, tmp_path / "reference.pt")
    done = run_python(LOADER, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_made_from_ordinary_checkpoints(tmp_path):
    host = BertModel(host_config("bert"))
    host.save_pretrained(tmp_path)
    model = hf_relpos.RelPosEncoderDecoderModel.from_encoder_decoder_pretrained(
        tmp_path,
        tmp_path,
        encoder_rel_pos={"type": "t5"},
        encoder_absolute="drop",
        decoder_rel_pos={"type": "alibi"},
        decoder_absolute="drop",
    )
    assert model.config.encoder.rel_pos["direction"] == "bidirectional"
    assert model.config.decoder.rel_pos["direction"] == "causal"
    assert model.config.decoder.is_decoder
    assert torch.equal(model.decoder.bert.embeddings.word_embeddings.weight, host.embeddings.word_embeddings.weight)
    assert model(tokens(), decoder_input_ids=tokens(length=5)).logits.shape == (2, 5, VOCABULARY)


def test_refuses_sides_without_relative_positions():
    plain = BertModel(BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8))
    with pytest.raises(ValueError, match="the encoder is of model type 'bert', which has no relative positions"):
        hf_relpos.RelPosEncoderDecoderModel(encoder=plain, decoder=plain)
    with pytest.raises(ValueError, match="give a config, or an encoder and a decoder"):
        hf_relpos.RelPosEncoderDecoderModel()
    with pytest.raises(ValueError, match="no decoder: give"):
        hf_relpos.RelPosEncoderDecoderModel.from_encoder_decoder_pretrained(encoder_model=plain)


def test_weights_that_lack_an_encoding_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = pair().float()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    less = {key: value for key, value in weights.items() if key != "decoder.bert.relpos.bias"}
    assert len(less) == len(weights) - 1
    save_file(less, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks decoder\.bert\.relpos\.bias"):
        hf_relpos.RelPosEncoderDecoderModel.from_pretrained(tmp_path)


def test_transformers_own_class_takes_our_models_too():
    encoder = hf_relpos.RelPosBertModel(config("bert", KINDS["distance"]))
    crossed = config("bert", KINDS["distance"], is_decoder=True, add_cross_attention=True)
    theirs = EncoderDecoderModel(encoder=encoder, decoder=hf_relpos.RelPosBertForCausalLM(crossed)).eval()
    assert theirs(tokens(), decoder_input_ids=tokens(length=5)).logits.isfinite().all()
