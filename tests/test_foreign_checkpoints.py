"""Models of other types become ours with equal logits, through the shipping converter; positions of one checkpoint go into another model."""

import json
import math

import pytest
import torch
import transformers
from families import host_config, randomise
from toy_qa import word_tokenizer
from transformers import AutoModel, AutoTokenizer
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.falcon import modeling_falcon

import hf_relpos
from hf_relpos.conversion.convert import convert_checkpoint
from hf_relpos.models.families import auto_class

VOCABULARY, LENGTH, LONG = 97, 12, 40
# heads of width 12: with two position terms DeBERTa's float32 root of 3 * 12 is exact
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
V2 = {**DEBERTA, "position_buckets": 8, "max_relative_positions": 16}
DECODER = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BLOOM = {**DECODER, "n_layer": 2, "n_head": 4}
MPT = {**{k: v for k, v in DECODER.items() if k != "hidden_size"}, "d_model": 32, "n_heads": 4, "n_layers": 2}
FALCON = {
    **DECODER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "alibi": True,
    "multi_query": False,
    "parallel_attn": False,
    "bias": True,
    # eager adds the penalty twice: in its mask and in its scores
    "attn_implementation": "sdpa",
}


def made(name, head="", **values):
    """A tiny random model of transformers: ``name`` as in its classes, ``head`` as ``ForMaskedLM``; nothing for the base model."""
    config = getattr(transformers, f"{name}Config")(**values)
    return randomise(getattr(transformers, f"{name}{head or 'Model'}")(config))


def deberta(head="", **changes):
    return made("Deberta", head, **{**ENCODER, **DEBERTA, "max_relative_positions": 9, **changes})


def deberta_v2(head="", **changes):
    return made("DebertaV2", head, **{**ENCODER, **V2, **changes})


def mpnet(head="", **changes):
    return made("MPNet", head, **{**ENCODER, **changes})


def bloom(head="", **changes):
    return made("Bloom", head, **{**BLOOM, **changes})


def mpt(head="", attn_config=None, **changes):
    return made("Mpt", head, **{**MPT, "attn_config": attn_config, **changes})


def falcon(head="", **changes):
    return made("Falcon", head, **{**FALCON, **changes})


def tokens(length, padding, pad_id=0):
    """Ids and mask of two texts, the second one shorter where ``padding``."""
    ids = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    if padding:
        ids[1, length - 5 :] = pad_id
        mask[1, length - 5 :] = 0
    return ids, mask


def outputs(model, ids, mask):
    """All that a model says of each token, one after the other: hidden states or logits."""
    with torch.no_grad():
        output = model(ids, attention_mask=mask)
    if hasattr(output, "start_logits"):
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def compare(theirs, ours, atol, lengths=(LENGTH, LONG), pad_id=0):
    for length in lengths:
        for padding in (False, True):
            ids, mask = tokens(length, padding, pad_id)
            expected, found = outputs(theirs, ids, mask), outputs(ours, ids, mask)
            if expected.ndim == 3:
                expected, found = expected[mask.bool()], found[mask.bool()]
            assert expected.isfinite().all()
            assert expected.std() > 1e-3
            torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def converted(source, folder, **arguments):
    """The report and the loaded result of a conversion."""
    source.save_pretrained(folder / "source")
    report = convert_checkpoint(str(folder / "source"), folder / "target", **arguments)
    cls = getattr(hf_relpos, report.model_class)
    return report, cls.from_pretrained(folder / "target").eval()


SAME = {
    "deberta": (deberta, {}),
    "deberta-c2p": (deberta, {"pos_att_type": ["c2p"]}),
    "deberta-p2c": (deberta, {"pos_att_type": "p2c"}),
    "deberta-absolute": (deberta, {"position_biased_input": True}),
    "deberta-types": (deberta, {"type_vocab_size": 2}),
    "deberta-long-table": (deberta, {"max_relative_positions": -1}),
    "v2": (deberta_v2, {}),
    "v2-c2p": (deberta_v2, {"pos_att_type": ["c2p"]}),
    "v2-p2c": (deberta_v2, {"pos_att_type": ["p2c"]}),
    "v2-no-buckets": (deberta_v2, {"position_buckets": -1, "max_relative_positions": -1}),
    "v2-absolute": (deberta_v2, {"position_biased_input": True}),
    "v3": (deberta_v2, {"share_att_key": True, "norm_rel_ebd": "layer_norm"}),
    "v3-p2c": (deberta_v2, {"share_att_key": True, "pos_att_type": ["p2c"]}),
    "mpnet": (mpnet, {}),
    "bloom": (bloom, {}),
    "bloom-6-heads": (bloom, {"n_head": 6, "hidden_size": 48}),
    "mpt": (mpt, {}),
    "mpt-6-heads": (mpt, {"n_heads": 6, "d_model": 48}),
    "falcon": (falcon, {}),
    "falcon-no-bias": (falcon, {"bias": False, "ffn_hidden_size": 40}),
}
EXACT = ("v2", "v2-absolute", "v2-no-buckets", "v3", "mpnet")


@pytest.mark.parametrize("name", SAME)
def test_base_models_are_equal(name, tmp_path):
    make, changes = SAME[name]
    theirs = make(**changes)
    report, ours = converted(theirs, tmp_path)
    pad_id = 0 if theirs.config.pad_token_id is None else theirs.config.pad_token_id
    compare(theirs, ours, 1e-5, pad_id=pad_id)
    assert report.absolute == ("keep" if "absolute" in name or name == "mpnet" else "drop")
    assert report.dropped == []
    assert all("pooler" in key for key in report.created)
    assert report.kept == len(ours.state_dict()) - len(report.created)
    if name in EXACT:
        compare(theirs.double(), ours.double(), 1e-9, pad_id=pad_id)


def test_the_long_texts_reach_beyond_tables_and_buckets():
    assert deberta().config.max_relative_positions < LONG
    assert deberta_v2().config.max_relative_positions < LONG
    assert deberta_v2().config.position_buckets < LENGTH


HEADS = [
    *[
        (make, head)
        for make in (deberta, deberta_v2)
        for head in ("MaskedLM", "TokenClassification", "QuestionAnswering")
    ],
    *[(mpnet, head) for head in ("MaskedLM", "TokenClassification", "QuestionAnswering", "SequenceClassification")],
    *[
        (make, head)
        for make in (bloom, mpt, falcon)
        for head in ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
    ],
]


@pytest.mark.parametrize(("make", "head"), HEADS, ids=[f"{make.__name__}-{head}" for make, head in HEADS])
def test_heads_are_equal(make, head, tmp_path):
    labels = {"num_labels": 3} if "Classification" in head else {}
    theirs = make(f"For{head}", **labels)
    report, ours = converted(theirs, tmp_path)
    assert report.model_class.endswith(f"For{head}")
    assert report.created == report.dropped == []
    compare(theirs, ours, 1e-5, pad_id=0 if theirs.config.pad_token_id is None else theirs.config.pad_token_id)


@pytest.mark.parametrize("make", [deberta, deberta_v2])
def test_the_newer_head_for_masked_tokens(make, tmp_path):
    theirs = make("ForMaskedLM", legacy=False)
    report, ours = converted(theirs, tmp_path)
    assert report.created == []
    compare(theirs, ours, 1e-5)


def test_published_checkpoints_have_the_newer_head_and_do_not_say_so(tmp_path):
    theirs = deberta_v2("ForMaskedLM", legacy=False)
    theirs.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "legacy": True}))
    report = convert_checkpoint(str(tmp_path / "source"), tmp_path / "target")
    assert report.created == report.dropped == []
    compare(theirs, hf_relpos.RelPosBertForMaskedLM.from_pretrained(tmp_path / "target").eval(), 1e-5)


@pytest.mark.parametrize("make", [deberta, deberta_v2])
@pytest.mark.parametrize(("activation", "family"), [("tanh", "Bert"), ("gelu", "Electra")])
def test_pooled_classifiers_are_berts_or_electras(make, activation, family, tmp_path):
    theirs = make("ForSequenceClassification", pooler_hidden_act=activation, num_labels=3, cls_dropout=0.2)
    report, ours = converted(theirs, tmp_path)
    assert report.model_class == f"RelPos{family}ForSequenceClassification"
    assert report.created == report.dropped == []
    assert ours.config.classifier_dropout == 0.2
    compare(theirs, ours, 1e-5)


def test_a_multiple_choice_model(tmp_path):
    theirs = deberta_v2("ForMultipleChoice", pooler_hidden_act="tanh")
    _, ours = converted(theirs, tmp_path)
    ids, mask = (tensor[:, None].repeat(1, 3, 1) for tensor in tokens(LENGTH, True))
    torch.testing.assert_close(outputs(ours, ids, mask), outputs(theirs, ids, mask), rtol=0, atol=1e-5)


def test_a_head_that_the_checkpoint_lacks_is_created(tmp_path):
    theirs = deberta()
    report, ours = converted(theirs, tmp_path, head="QuestionAnswering")
    assert report.created == ["qa_outputs.bias", "qa_outputs.weight"]
    compare(theirs, ours.bert, 1e-5)
    with pytest.raises(ValueError, match="deberta has no head 'CausalLM'"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "other", head="CausalLM")


def test_second_segments_of_tokenizers_do_not_fail(tmp_path):
    theirs = deberta()
    _, ours = converted(theirs, tmp_path)
    ids, _ = tokens(LENGTH, False)
    types = (torch.arange(LENGTH) > 6).long().expand(2, -1)
    expected = theirs(ids, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(ours(ids, token_type_ids=types).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [bloom, mpt, falcon])
def test_decoders_generate_the_same(make, tmp_path):
    theirs = make("ForCausalLM")
    theirs.generation_config.max_new_tokens = 7
    theirs.generation_config.eos_token_id = None
    _, ours = converted(theirs, tmp_path)
    ids, _ = tokens(5, False)
    assert torch.equal(ours.generate(ids, do_sample=False), theirs.generate(ids, do_sample=False))


def test_left_padding_of_a_decoder(tmp_path):
    theirs = bloom("ForCausalLM")
    _, ours = converted(theirs, tmp_path)
    ids, mask = tokens(LENGTH, False)
    ids[1, :4], mask[1, :4] = 1, 0
    real = mask.bool()
    torch.testing.assert_close(outputs(ours, ids, mask)[real], outputs(theirs, ids, mask)[real], rtol=0, atol=1e-5)


def test_half_precision_stays(tmp_path):
    report, ours = converted(mpt("ForCausalLM").to(torch.bfloat16), tmp_path)
    assert ours.dtype == torch.bfloat16
    assert report.created == []


def test_the_tokenizer_and_labels_go_along_and_auto_classes_load(tmp_path):
    theirs = deberta_v2("ForTokenClassification", id2label={0: "cold", 1: "warm"}, label2id={"cold": 0, "warm": 1})
    word_tokenizer().save_pretrained(tmp_path / "source")
    _, ours = converted(theirs, tmp_path)
    assert ours.config.id2label == {0: "cold", 1: "warm"}
    assert type(AutoModel.from_pretrained(tmp_path / "target")).__name__ == "RelPosBertModel"
    encoded = AutoTokenizer.from_pretrained(tmp_path / "target")("where does Ada live", "in Turin")
    assert encoded == AutoTokenizer.from_pretrained(tmp_path / "source")("where does Ada live", "in Turin")


REASONS = {
    "embedding-size": (deberta, "", {"embedding_size": 24}, "embedding_size=24"),
    "no-relative-attention": (deberta, "", {"relative_attention": False}, "no relative positions"),
    "other-terms": (deberta, "", {"pos_att_type": ["c2p", "p2p"]}, "only c2p and p2c"),
    "talking-head": (deberta, "", {"talking_head": True}, "does not mix its heads"),
    "pooler": (deberta, "ForSequenceClassification", {"pooler_hidden_act": "relu"}, "pooler_hidden_act='relu'"),
    "choice": (deberta_v2, "ForMultipleChoice", {}, "pooler_hidden_act='gelu'"),
    "convolution": (deberta_v2, "", {"conv_kernel_size": 3, "conv_act": "gelu"}, "conv_kernel_size=3"),
    "norm-epsilon": (
        deberta_v2,
        "",
        {"norm_rel_ebd": "layer_norm", "layer_norm_eps": 1e-5},
        "the table's LayerNorm is known here with 1e-7 only",
    ),
    "mpnet-padding": (mpnet, "", {"pad_token_id": 0}, "pad_token_id=0"),
    "mpnet-buckets": (mpnet, "", {"relative_attention_num_buckets": 40}, "buckets of 32"),
    "bloom-residual": (bloom, "", {"apply_residual_connection_post_layernorm": True}, "before the LayerNorm"),
    "mpt-clip": (mpt, "", {"attn_config": {"clip_qkv": 6.0}}, "clip_qkv=6.0"),
    "mpt-scale": (mpt, "", {"attn_config": {"softmax_scale": 0.5}}, "softmax_scale=0.5"),
    "mpt-norm": (mpt, "", {"attn_config": {"qk_ln": True}}, "qk_ln=True"),
    "mpt-prefix": (mpt, "", {"attn_config": {"prefix_lm": True}}, "prefix_lm=True"),
    "mpt-one-key": (mpt, "", {"attn_config": {"attn_type": "multiquery_attention"}}, "multiquery_attention"),
    "mpt-biases": (mpt, "", {"no_bias": False}, "no_bias=False"),
    "mpt-logits": (mpt, "", {"logit_scale": 2.0}, "logit_scale=2.0"),
    "mpt-table": (mpt, "", {"attn_config": {"alibi": False}}, "alibi=False"),
    "mpt-slopes": (mpt, "", {"attn_config": {"alibi_bias_max": 16}}, "alibi_bias_max=16"),
    "falcon-rotary": (falcon, "", {"alibi": False}, "alibi=False"),
    "falcon-parallel": (falcon, "", {"parallel_attn": True}, "parallel_attn=True"),
    "falcon-one-key": (falcon, "", {"multi_query": True}, "multi_query=True"),
    "falcon-new": (falcon, "", {"new_decoder_architecture": True}, "new_decoder_architecture=True"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_another_model_is_refused_with_the_reason(name, tmp_path):
    make, head, changes, reason = REASONS[name]
    make(head, **changes).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match="is no model of this package") as error:
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "target")
    assert reason in str(error.value)
    assert not (tmp_path / "target").exists()


def test_weights_that_cannot_be_read_leave_nothing(tmp_path):
    bloom().save_pretrained(tmp_path / "source")
    weights = tmp_path / "source" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match="source cannot be read, the file is corrupted or incomplete"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def xlnet(**changes):
    values = {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 37, "d_head": 12}
    return made("XLNet", **{**values, **changes})


def test_xlnet_is_another_model(tmp_path):
    xlnet().save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"no weights undo a LayerNorm; its positions alone .* --positions-from"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_known_positions_are_not_to_be_said(tmp_path):
    deberta().save_pretrained(tmp_path / "source")
    for arguments in ({"rel_pos": "t5"}, {"absolute": "keep"}, {"positions_from": str(tmp_path / "source")}):
        with pytest.raises(ValueError, match="whose positions are known"):
            convert_checkpoint(str(tmp_path / "source"), tmp_path / "target", **arguments)
    converted(deberta(), tmp_path)
    report = convert_checkpoint(str(tmp_path / "target"), tmp_path / "again", rel_pos="t5")
    assert report.rel_pos["type"] == "t5"


# positions of one checkpoint in another model

T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}


def save(model, folder):
    model.save_pretrained(folder)
    return str(folder)


def host(family, folder, **changes):
    """A tiny random model of one of our families as transformers has it, with a head over the vocabulary, saved."""
    config = host_config(family, **changes)
    name = "ForCausalLM" if family in ("gpt2", "llama", "opt") else "ForMaskedLM"
    cls = getattr(transformers, f"AutoModel{name}")
    return save(randomise(cls.from_config(config)), folder)


def with_positions(source, target, positions_from, **arguments):
    report = convert_checkpoint(source, target, **{"absolute": "drop", **arguments}, positions_from=positions_from)
    return report, getattr(hf_relpos, report.model_class).from_pretrained(target).eval()


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
@pytest.mark.parametrize(("family", "side"), [("bert", "encoder"), ("gpt2", "decoder")])
def test_t5_bias_in_another_model(kind, family, side, tmp_path):
    theirs = made(kind, **T5)
    source = save(theirs, tmp_path / "t5")
    report, ours = with_positions(host(family, tmp_path / "host"), tmp_path / "out", source)
    assert (report.rel_pos["num_buckets"], report.rel_pos["max_distance"]) == (8, 20)
    assert report.rel_pos["scaling"] == "host"
    assert report.created == []
    blocks = getattr(theirs, side).block[: 2 if kind == "UMT5" else 1]
    expected = [block.layer[0].SelfAttention.relative_attention_bias for block in blocks]
    found = {name: value for name, value in ours.named_parameters() if name.endswith("relpos.bias")}
    assert sorted(found) == report.carried
    for table, module in zip(found.values(), expected, strict=True):
        assert torch.equal(table, module.weight)


def test_an_encoder_alone_has_no_bias_for_decoders(tmp_path):
    config = transformers.T5Config(**T5)
    source = save(randomise(transformers.T5EncoderModel(config)), tmp_path / "t5")
    with_positions(host("bert", tmp_path / "bert"), tmp_path / "out", source)
    with pytest.raises(ValueError, match="lacks the weight 'bias'"):
        with_positions(host("gpt2", tmp_path / "gpt2"), tmp_path / "no", source)
    assert not (tmp_path / "no").exists()


def test_the_carried_bias_is_the_one_that_t5_computes(tmp_path):
    theirs = made("T5", **T5)
    _, ours = with_positions(host("bert", tmp_path / "host"), tmp_path / "out", save(theirs, tmp_path / "t5"))
    encoding = ours.bert.relpos
    scores = theirs.encoder.block[0].layer[0].SelfAttention.compute_bias(30, 30)
    query = torch.zeros(1, 4, 30, 8)
    ones = hf_relpos.attention(query, query, torch.eye(30).expand(1, 4, 30, 30), encoding)
    torch.testing.assert_close(ones, scores.softmax(-1), rtol=0, atol=1e-6)


def test_mpnet_and_alibi_positions(tmp_path):
    theirs = mpnet()
    report, ours = with_positions(
        host("roberta", tmp_path / "host", hidden_size=48), tmp_path / "a", save(theirs, tmp_path / "mpnet")
    )
    assert torch.equal(ours.roberta.relpos.bias, theirs.encoder.relative_attention_bias.weight)
    source = host("bert", tmp_path / "bert")
    report, _ = with_positions(source, tmp_path / "b", save(bloom(), tmp_path / "bloom"))
    assert (report.rel_pos["type"], report.rel_pos["direction"], report.carried) == ("alibi", "symmetric", [])
    report, ours = with_positions(source, tmp_path / "c", save(falcon(), tmp_path / "falcon"))
    assert report.carried == ["bert.relpos.log_scale"]
    torch.testing.assert_close(ours.bert.relpos.log_scale.exp(), torch.full((4,), 8**-0.5))


@pytest.mark.parametrize("shared", [False, True])
def test_deberta_v2_positions(shared, tmp_path):
    theirs = deberta_v2(share_att_key=shared, norm_rel_ebd="layer_norm")
    source = save(theirs, tmp_path / "deberta")
    report, ours = with_positions(host("bert", tmp_path / "host", hidden_size=48), tmp_path / "out", source)
    assert (report.rel_pos["share_att_key"], report.rel_pos["scaling"]) == (False, "host")
    assert torch.equal(ours.bert.relpos.table, theirs.encoder.rel_embeddings.weight)
    assert torch.equal(ours.bert.relpos.norm_weight, theirs.encoder.LayerNorm.weight)
    for layer, other in zip(ours.bert.encoder.layer, theirs.encoder.layer, strict=True):
        attention = other.attention.self
        maps = (
            (attention.key_proj, attention.query_proj) if shared else (attention.pos_key_proj, attention.pos_query_proj)
        )
        own = layer.attention.self.relpos
        for (weight, bias), linear in zip(
            ((own.key_projection, own.key_bias), (own.query_projection, own.query_bias)), maps, strict=True
        ):
            assert torch.equal(weight, linear.weight)
            assert torch.equal(bias, linear.bias)
    assert report.created == []


def test_xlnet_positions_score_as_in_xlnet(tmp_path):
    theirs = xlnet()
    source = save(theirs, tmp_path / "xlnet")
    report, ours = with_positions(host("bert", tmp_path / "host", hidden_size=48), tmp_path / "out", source)
    assert len(report.carried) == 2 * 5
    encoding, attention = ours.bert.encoder.layer[1].attention.self.relpos, theirs.layer[1].rel_attn
    query, key = (torch.randn(1, 4, LENGTH, 12) for _ in range(2))
    rotated = theirs.relative_positional_encoding(LENGTH, LENGTH, bsz=1)
    value = torch.eye(LENGTH)[:, None, None].expand(-1, 1, 4, -1)
    expected = attention.rel_attn_core(
        query.permute(2, 0, 1, 3),
        key.permute(2, 0, 1, 3),
        value,
        torch.einsum("ibh,hnd->ibnd", rotated, attention.r),
    )
    values = torch.eye(LENGTH).expand(1, 4, -1, -1)
    found = hf_relpos.attention(query, key, values, encoding)
    torch.testing.assert_close(found, expected.permute(1, 2, 0, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rel_pos",
    [
        {"type": "shaw", "max_distance": 4},
        {"type": "deberta", "max_relative_positions": 6},
        [{"type": "t5", "num_buckets": 8}, {"type": "transformer_xl"}],
        {"layers": [{"type": "kerple_log"}, {"type": "t5", "num_buckets": 8}]},
    ],
    ids=["by-layer", "shared-part", "list", "layers"],
)
def test_positions_of_our_own_checkpoints(rel_pos, tmp_path):
    config = hf_relpos.RelPosRobertaConfig(
        **{**host_config("roberta").to_dict(), "rel_pos": rel_pos, "absolute": "drop"}
    )
    theirs = randomise(auto_class(config, "MaskedLM")(config))
    report, ours = with_positions(host("bert", tmp_path / "host"), tmp_path / "out", save(theirs, tmp_path / "ours"))
    expected = {name.removeprefix("roberta."): value for name, value in theirs.named_parameters() if "relpos" in name}
    found = {name.removeprefix("bert."): value for name, value in ours.named_parameters() if "relpos" in name}
    assert expected.keys() == found.keys()
    assert len(found) == len(report.carried) > 0
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert report.rel_pos == theirs.config.rel_pos


def test_options_may_be_said(tmp_path):
    source, target = save(made("T5", **T5), tmp_path / "t5"), host("bert", tmp_path / "host")
    report, ours = with_positions(target, tmp_path / "out", source, rel_pos={"type": "t5", "share_layers": False})
    assert report.rel_pos["num_buckets"] == 8
    assert len(report.carried) == 2
    tables = [layer.attention.self.relpos.bias for layer in ours.bert.encoder.layer]
    assert torch.equal(*tables)
    assert tables[0] is not tables[1]
    with pytest.raises(ValueError, match=r"is not what .* has"):
        with_positions(target, tmp_path / "no", source, rel_pos="alibi")
    with pytest.raises(ValueError, match=r"bias is \[8, 4\] there and \[16, 4\] here"):
        with_positions(target, tmp_path / "no", source, rel_pos={"type": "t5", "num_buckets": 16})
    with pytest.raises(ValueError, match="absolute='keep' or 'drop'"):
        convert_checkpoint(target, tmp_path / "no", positions_from=source)
    assert not (tmp_path / "no").exists()


def test_what_does_not_fit_names_both_numbers(tmp_path):
    t5, bert = save(made("T5", **T5), tmp_path / "t5"), host("bert", tmp_path / "bert")
    refused = [
        (
            host("bert", tmp_path / "wide", num_attention_heads=2),
            t5,
            r"bias is \[8, 4\] there and \[8, 2\] here \(4 heads, ",
        ),
        (bert, save(deberta(), tmp_path / "deberta"), r"is \[18, 48\] there and \[18, 32\] here"),
        (bert, save(xlnet(n_layer=3, d_model=32, d_head=8), tmp_path / "xlnet"), "for 3 layers, the model has 2"),
        (bert, save(falcon(alibi=False), tmp_path / "falcon"), "are not known here: alibi=False"),
        (bert, bert, "without relative positions that are known here"),
        (bert, save(xlnet(bi_data=True), tmp_path / "turned"), "bi_data=True"),
    ]
    for source, positions, message in refused:
        with pytest.raises(ValueError, match=message):
            with_positions(source, tmp_path / "no", positions)
        assert not (tmp_path / "no").exists()


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    from hf_relpos.cli import main

    deberta("ForMaskedLM").save_pretrained(tmp_path / "source")
    t5, bert = save(made("T5", **T5), tmp_path / "t5"), host("bert", tmp_path / "bert")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["hf-relpos", "convert", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as status:
            main()
        return status.value.code or 0, capsys.readouterr()

    status, printed = call(tmp_path / "source", tmp_path / "out")
    assert status == 0, printed.err
    assert "RelPosBertForMaskedLM with" in printed.out
    status, printed = call(bert, tmp_path / "biased", "--absolute", "drop", "--positions-from", t5)
    assert status == 0, printed.err
    assert "carried over: bert.relpos.bias" in printed.out
    status, printed = call(tmp_path / "source", tmp_path / "wrong", "--rel-pos", "t5")
    assert status == 1
    assert "whose positions are known" in printed.err


def test_falcons_penalty_is_divided_by_the_root_of_the_width(tmp_path):
    _, ours = converted(falcon(), tmp_path)
    torch.testing.assert_close(ours.relpos.log_scale, torch.full((4,), -math.log(8) / 2))


def test_falcon_in_transformers_differs_by_its_rounding_alone(tmp_path, monkeypatch):
    """transformers computes slopes times positions in bfloat16: with more heads slopes are not exact, after 256 tokens positions are not."""
    theirs = falcon(num_attention_heads=16, hidden_size=64)
    _, ours = converted(theirs, tmp_path)
    ids, mask = tokens(300, False)
    assert (outputs(theirs, ids, mask) - outputs(ours, ids, mask)).abs().max() > 1e-3
    monkeypatch.setattr(modeling_falcon, "build_alibi_tensor", build_alibi_tensor)
    compare(theirs, ours, 2e-5, lengths=(LENGTH, 300), pad_id=1)
