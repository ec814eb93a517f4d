"""What `hf-relpos doctor` says of a checkpoint is what loading it does."""

import json
from pathlib import Path

import pytest
import torch
from families import KINDS, config, host_config, model, randomise
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertForQuestionAnswering, T5Config, XLNetConfig

import hf_relpos
from hf_relpos.conversion.doctor import examine, stored_shapes

LEGACY = Path(__file__).parent / "fixtures" / "legacy"


def rewrite(folder, change):
    """Let ``change`` edit the weights of a saved model."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def saved(tmp_path):
    model("bert", {"type": "t5"}, "keep").float().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_this_package(kind, tmp_path):
    family = "gpt2" if kind == "values" else "bert"
    ours = model(family, KINDS[kind]).float()
    ours.save_pretrained(tmp_path)
    found = examine(str(tmp_path))
    assert (found.kind, found.problem) == ("package", None)
    told = " ".join(found.says)
    assert type(ours).__name__ in told
    assert "are dropped" in told
    assert "trust_remote_code" in told
    weights = [key for key in ours.state_dict() if "relpos" in key]
    assert (f"Its {len(weights)} encoding weights are complete" if weights else "no weights") in told


def test_an_encoder_decoder(tmp_path):
    side = {"rel_pos": {"type": "relative_key"}, "absolute": "drop"}
    encoder = config("bert", **side)
    decoder = config("gpt2", rel_pos="t5", absolute="keep", add_cross_attention=True)
    pair = hf_relpos.RelPosEncoderDecoderConfig(encoder=encoder, decoder=decoder)
    hf_relpos.RelPosEncoderDecoderModel(pair).save_pretrained(tmp_path)
    found = examine(str(tmp_path))
    assert found.problem is None
    assert any(sentence.startswith("Encoder: relative_key") and "dropped" in sentence for sentence in found.says)
    assert any(sentence.startswith("Decoder: t5") and "kept" in sentence for sentence in found.says)
    rewrite(tmp_path, lambda weights: weights.pop("decoder.transformer.relpos.bias"))
    assert "lacks decoder.transformer.relpos.bias" in examine(str(tmp_path)).problem


def test_missing_extra_and_misshapen_weights(saved):
    def fails(match):
        found = examine(str(saved))
        assert match in found.problem
        with pytest.raises((ValueError, RuntimeError, OSError)):
            hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)

    rewrite(saved, lambda weights: weights.update({"bert.relpos.other": torch.zeros(2)}))
    fails("also holds relpos.other")
    rewrite(saved, lambda weights: weights.pop("bert.relpos.bias"))
    fails("lacks relpos.bias")
    rewrite(saved, lambda weights: weights.pop("bert.relpos.other"))
    rewrite(saved, lambda weights: weights.update({"bert.relpos.bias": torch.zeros(2, 4)}))
    fails("relpos.bias is [2, 4], but must be [32, 4]")
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-100])
    fails("corrupted or incomplete")
    (saved / "model.safetensors").unlink()
    fails("holds no weights")


def test_wrong_configs(saved):
    stored = json.loads((saved / "config.json").read_text())

    def problem(**changed):
        values = {key: value for key, value in {**stored, **changed}.items() if value is not None}
        (saved / "config.json").write_text(json.dumps(values))
        return examine(str(saved)).problem

    assert "unknown rel_pos type 't6'" in problem(rel_pos={"type": "t6"})
    assert "has no rel_pos" in problem(rel_pos=None)
    assert "no config that names a model_type" in problem(model_type=None)
    assert problem() is None


def test_shards_are_read_by_their_index(tmp_path):
    model("bert", KINDS["query"]).float().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = examine(str(tmp_path))
    assert found.problem is None
    assert "2 encoding weights are complete" in " ".join(found.says)
    next(tmp_path.glob("model-00002*")).unlink()
    assert "model-00002" in examine(str(tmp_path)).problem


@pytest.mark.parametrize("name", sorted(path.name for path in LEGACY.glob("*relative*")))
def test_a_checkpoint_of_transformers_4(name, tmp_path):
    found = examine(str(LEGACY / name))
    assert (found.kind, found.problem) == ("transformers 4", None)
    told = " ".join(found.says)
    assert "without its distances" in told
    assert "2 encoding weights are complete" in told
    weights = load_file(LEGACY / name / "model.safetensors")
    stock = {key: value for key, value in weights.items() if "layer.1.attention.self.distance_embedding" not in key}
    save_file(stock, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((LEGACY / name / "config.json").read_text())
    assert "lacks encoder.layer.1.attention.self.relpos.distance_embedding" in examine(str(tmp_path)).problem


def test_weights_in_a_pickle_are_looked_at_too(tmp_path):
    source = LEGACY / "bert_relative_key"
    torch.save(load_file(source / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    assert stored_shapes(str(tmp_path)) == stored_shapes(str(source))
    assert examine(str(tmp_path)).problem is None


def test_ordinary_weights(tmp_path):
    randomise(BertForQuestionAnswering(host_config("bert"))).save_pretrained(tmp_path)
    found = examine(str(tmp_path))
    assert (found.kind, found.problem) == ("ordinary", None)
    told = " ".join(found.says)
    assert "RelPosBertForQuestionAnswering.from_pretrained" in told
    assert "'keep' or 'drop'" in told
    assert "rotations" in " ".join(diagnosis_of(tmp_path, host_config("llama")).says)


def diagnosis_of(folder, stored):
    stored.save_pretrained(folder)
    return examine(str(folder))


def test_other_types(tmp_path):
    found = diagnosis_of(tmp_path, T5Config())
    assert found.kind == "unsupported"
    assert "model type 't5' is not supported" in found.problem
    found = diagnosis_of(tmp_path, XLNetConfig())
    assert "no model of this package" in found.problem
    for kind in ("bloom", "deberta"):
        tiny = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 37, "num_hidden_layers": 1}
        stored = AutoModel.from_config(AutoConfig.for_model(kind, **tiny)).config
        stored.architectures = ["Model"]
        found = diagnosis_of(tmp_path, stored)
        assert found.kind == "convertible"
        assert found.problem is None or "no model of this package" in found.problem


def test_what_is_not_there_is_an_error(tmp_path):
    assert "no config that names a model_type" in examine(str(tmp_path)).problem
    with pytest.raises(OSError, match="nobody/nothing"):
        examine("nobody/nothing")
