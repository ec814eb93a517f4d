"""Bad input gets an exception that names the value, says what is wrong and lists what is valid."""

import json
import shutil

import pytest
import torch
from cases import HEADS, WIDTH, tensors
from families import KINDS, config, host_config, model, tokens
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BloomConfig, BloomForCausalLM

import hf_relpos

SHAPE = {"num_heads": HEADS, "head_dim": WIDTH}


@pytest.mark.parametrize(
    ("rel_pos", "message"),
    [
        ({"type": "t6"}, r"unknown rel_pos type 't6'; valid types: alibi, .*t5"),
        ({"typ": "t5"}, r"is not valid: give a dict such as"),
        (7, r"rel_pos=7 is not valid"),
        ([], r"names no encoding"),
        (
            {"type": "t5", "buckets": 4},
            r"has no option 'buckets'; valid options: direction, heads, max_distance, num_buckets",
        ),
        ({"type": "t5", "num_buckets": 7}, r"num_buckets=7 is not valid: it must be an even integer"),
        ({"type": "t5", "num_buckets": "32"}, r"num_buckets='32' is not valid: it must be an integer"),
        ({"type": "t5", "num_buckets": True}, r"num_buckets=True is not valid"),
        ({"type": "t5", "max_distance": 0}, r"max_distance=0 is not valid"),
        (
            {"type": "t5", "direction": "sideways"},
            r"direction='sideways' is not valid: it must be one of 'auto', 'causal'",
        ),
        ({"type": "shaw", "max_distance": 0}, r"max_distance=0 is not valid: it must be at least 1"),
        ({"type": "shaw", "max_distance": -3}, r"max_distance=-3 is not valid"),
        ({"type": "shaw", "keys": False, "values": False}, r"keys=False is not valid"),
        ({"type": "relative_key"}, r"max_position_embeddings=None is not valid"),
        ({"type": "relative_key", "max_position_embeddings": 0}, r"max_position_embeddings=0 is not valid"),
        ({"type": "transformer_xl", "clamp_len": 0}, r"clamp_len=0 is not valid"),
        ({"type": "sinusoidal_bias", "dim": 5}, r"dim=5 is not valid"),
        ({"type": "rope", "fraction": 0.0}, r"fraction=0.0 is not valid"),
        (
            {"type": "rope", "fraction": 0.4},
            r"an even number of coordinates rotates, but head_dim=8 times fraction=0.4 gives 3",
        ),
        ({"type": "rope", "base": 1}, r"base=1 is not valid"),
        (
            {"type": "alibi", "direction": "causal"},
            r"would reward distant future tokens; valid here: auto, symmetric, one_sided",
        ),
        (
            {"type": "alibi", "share_layers": "yes"},
            r"share_layers='yes' is not valid: it must be true or false or null",
        ),
    ],
)
def test_rel_pos(rel_pos, message):
    with pytest.raises(ValueError, match=message):
        hf_relpos.build_encoding(rel_pos, **SHAPE)


def test_one_sided_in_a_decoder():
    with pytest.raises(ValueError, match="would leave half of the heads with nothing to see"):
        hf_relpos.build_encoding({"type": "alibi", "direction": "one_sided"}, **SHAPE, causal=True)
    with pytest.raises(ValueError, match="direction='one_sided'"):
        model("gpt2", {"type": "alibi", "direction": "one_sided"})
    with pytest.raises(ValueError, match="direction='causal'"):
        model("bert", {"type": "alibi", "direction": "causal"})
    assert hf_relpos.build_encoding({"type": "alibi", "direction": "symmetric"}, **SHAPE, causal=True)


def test_odd_rotary_width():
    with pytest.raises(ValueError, match="even number of coordinates"):
        hf_relpos.build_encoding({"type": "rope"}, num_heads=2, head_dim=7)
    with pytest.raises(ValueError, match="even width"):
        hf_relpos.build_encoding({"type": "sinusoidal", "learned": False}, num_heads=2, head_dim=7)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="not a multiple"):
        model("bert", {"type": "t5"}, num_attention_heads=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(2, 5)}, r"attention_mask has shape \[2, 5\], but must be \[B, Tk\] = \[2, 6\]"),
        ({"attention_mask": torch.ones(2, 4, 6, 5, dtype=torch.bool)}, r"attention_mask has shape \[2, 4, 6, 5\]"),
        ({"attention_mask": torch.ones(2, 3, 6, 6, dtype=torch.bool)}, r"\[2\|1, 1\|4, 6, 6\]"),
        ({"attention_mask": torch.ones(6)}, r"attention_mask has shape \[6\]"),
        ({"window": 0}, r"window=0 is not valid"),
        ({"dropout_p": 1.5}, r"dropout_p=1.5 is not valid"),
        (
            {"backend": "fast"},
            r"unknown backend 'fast'; valid backends: auto, eager, flex, linear_memory, sdpa, triton",
        ),
        (
            {"backend": "sdpa", "return_weights": True},
            r"cannot run this call: attention weights .* Backends that can: eager",
        ),
        ({"document_ids": torch.zeros(2, 5)}, r"document_ids has shape \[2, 5\]"),
        (
            {"document_ids": torch.zeros(2, 6, dtype=torch.long), "query_offset": 9, "key_offset": 0},
            r"must stand among the keys",
        ),
        ({"hidden_states": torch.zeros(2, 6)}, r"hidden_states has shape"),
    ],
)
def test_attention(arguments, message):
    with pytest.raises(ValueError, match=message):
        hf_relpos.attention(*tensors(6, 6), hf_relpos.build_encoding("t5", **SHAPE), **arguments)


def test_attention_shapes():
    query, key, value = tensors(6, 6)
    with pytest.raises(ValueError, match="must be \\[B, H, Tq, D\\]"):
        hf_relpos.attention(query[0], key, value)
    with pytest.raises(ValueError, match="disagree in batch or head width"):
        hf_relpos.attention(query, key[..., :4], value)
    with pytest.raises(ValueError, match="not a multiple"):
        hf_relpos.attention(query, key[:, :3], value[:, :3])
    with pytest.raises(ValueError, match="built for 2 heads of width 8, but query has 4 of 8"):
        hf_relpos.attention(query, key, value, hf_relpos.build_encoding("t5", num_heads=2, head_dim=8))
    with pytest.raises(ValueError, match=r"has dtype torch\.float32, but query has torch\.float64"):
        hf_relpos.attention(query, key.float(), value)


def test_unsupported_architecture():
    bloom = BloomForCausalLM(BloomConfig(hidden_size=16, n_head=2, n_layer=1, vocab_size=11))
    with pytest.raises(ValueError, match=r"'bloom' is not supported: .*supported: bert, distilbert"):
        hf_relpos.add_relative_positions(bloom, {"type": "t5"}, absolute="drop")
    with pytest.raises(ValueError, match="not a transformers model"):
        hf_relpos.add_relative_positions(torch.nn.Linear(2, 2), {"type": "t5"}, absolute="drop")


def test_a_refused_model_is_not_touched():
    host = BertForMaskedLM(host_config("bert"))
    before = host.state_dict().keys()
    for arguments in (
        ({"type": "t6"}, "drop"),
        ({"type": "t5"}, "delete"),
        ({"type": "alibi", "direction": "causal"}, "drop"),
    ):
        with pytest.raises(ValueError, match="valid"):
            hf_relpos.add_relative_positions(host, arguments[0], absolute=arguments[1])
    assert type(host) is BertForMaskedLM
    assert host.state_dict().keys() == before
    ours = hf_relpos.add_relative_positions(host, {"type": "t5"}, absolute="drop")
    with pytest.raises(ValueError, match="has relative positions already"):
        hf_relpos.add_relative_positions(ours, {"type": "t5"}, absolute="drop")


def test_config():
    with pytest.raises(ValueError, match="absolute='maybe' is not valid; valid: 'keep', 'drop'"):
        config("bert", {"type": "t5"}, absolute="maybe")
    with pytest.raises(ValueError, match="unknown rel_pos type"):
        config("bert", {"type": "t6"})
    with pytest.raises(ValueError, match=r"needs config.rel_pos"):
        hf_relpos.RelPosBertModel(config("bert", None))


@pytest.fixture
def saved(tmp_path):
    ours = model("bert", KINDS["query"]).float()
    ours.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_that_disagree_with_the_config(saved):
    weights = load_file(saved / "model.safetensors")
    without = {key: value for key, value in weights.items() if "layer.1.attention.self.relpos" not in key}
    save_file(without, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"disagree with its config.*lacks bert.encoder.layer.1.attention.self.relpos"):
        hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)
    save_file({**weights, "bert.relpos.extra": torch.ones(1)}, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"also holds .*relpos.extra"):
        hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)


def test_tables_of_another_size(saved):
    stored = json.loads((saved / "config.json").read_text())
    stored["rel_pos"]["max_position_embeddings"] = 9
    (saved / "config.json").write_text(json.dumps(stored))
    with pytest.raises((ValueError, RuntimeError), match=r"distance_embedding|mismatch"):
        hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)


def test_corrupted_weights(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError, match="corrupted or incomplete"):
        hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)


def test_a_model_of_another_family(saved):
    with pytest.raises(ValueError, match="holds a model of type 'relpos_bert'"):
        hf_relpos.RelPosGPT2ForCausalLM.from_pretrained(saved)


def test_saving_to_a_file_or_a_full_disk_keeps_what_is_there(saved, monkeypatch):
    ours = hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)
    with pytest.raises(NotADirectoryError):
        ours.save_pretrained(saved / "config.json")
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(OSError, match="No space left"):
        ours.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_no_such_checkpoint_and_no_network():
    with pytest.raises(OSError, match="no-such-model"):
        hf_relpos.RelPosBertModel.from_pretrained("someone/no-such-model", rel_pos={"type": "t5"}, absolute="drop")


def test_a_foreign_bias_in_the_mask():
    with pytest.raises(ValueError, match="may hold only 0"):
        model("bert", KINDS["distance"])(tokens(), attention_mask=torch.randn(2, 1, 12, 12, dtype=torch.float64))


def test_unwritable_folder(saved, tmp_path):
    ours = hf_relpos.RelPosBertForMaskedLM.from_pretrained(saved)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        ours.save_pretrained(blocked / "inside")
    shutil.rmtree(saved)
