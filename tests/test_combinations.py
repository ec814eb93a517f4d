"""Encodings beside and inside each other: what may stand together, in which order, and what becomes of it in a model and on disk."""

import json
import math

import pytest
import torch
from cases import HEADS, WIDTH, build, extras, tensors
from families import TABLE, model, tokens
from transformers import DynamicCache, StaticCache

import hf_relpos
from hf_relpos.encodings.build import build_encoding, named_methods

close = {"rtol": 0, "atol": 1e-9}
LENGTH = 9


def attention(rel_pos, causal=True, **given):
    encoding = build(rel_pos, causal)
    return hf_relpos.attention(*tensors(LENGTH, LENGTH), encoding, is_causal=causal, **extras(LENGTH), **given)


# a rotation in disguise, which computes the scores of far keys anew, equals the plain one wherever it stands
DISGUISED = [
    ({"type": "rope"}, {"type": "rerope", "factor": 1.0, "window": 2}, True),
    ({"type": "rope"}, {"type": "rerope", "factor": 1.0, "window": 2}, False),
    ({"type": "rope", "layout": "interleaved"}, {"type": "xpos", "scale_base": 1e12}, False),
]
BESIDE = [
    {"type": "t5", "num_buckets": 8, "max_distance": 16, "scaling": "paper"},
    {"type": "log_cpb", "window": 8, "width": 4, "cosine": True},
    {"type": "rope"},
    {"type": "shaw", "max_distance": 3},
]


@pytest.mark.parametrize("beside", BESIDE, ids=lambda rel_pos: rel_pos["type"])
@pytest.mark.parametrize(("plain", "disguised", "causal"), DISGUISED)
def test_scores_computed_anew_take_what_stands_before_into_account(plain, disguised, causal, beside):
    torch.testing.assert_close(
        attention([beside, disguised], causal), attention([beside, plain], causal), rtol=0, atol=1e-8
    )


def test_factors_for_each_coordinate_equal_one_factor_whatever_stands_before():
    size = {"max_position_embeddings": 6}
    for beside in BESIDE:
        both = []
        for method in ("huang_m2", "huang_m3"):
            encoding = build([beside, {"type": method, **size}], True)
            encoding.members[1].factor.data.fill_(0.5)
            both.append(hf_relpos.attention(*tensors(LENGTH, LENGTH), encoding, is_causal=True))
        torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("rel_pos", "message"),
    [
        ([{"type": "huang_m1", "max_position_embeddings": 6}, {"type": "rerope", "window": 2}], "put it first"),
        ([{"type": "cope", "npos": 4}, {"type": "self_extend", "window": 2, "group_size": 2}], "put it first"),
        ([{"type": "rerope", "window": 2}, {"type": "rope"}], "put it before"),
        ([{"type": "pope"}, {"type": "rope"}], "cannot stand together"),
        ([{"type": "rope"}, {"type": "pope"}], "takes queries as the host projects them"),
        ([{"type": "pope"}, {"type": "pope"}], "takes queries as the host projects them"),
        ([{"type": "deberta", "max_relative_positions": 6}] * 2, "names 'deberta' twice"),
    ],
)
def test_what_cannot_stand_together_says_so(rel_pos, message):
    with pytest.raises(ValueError, match=message):
        attention(rel_pos)


def test_a_composition_is_what_its_members_are():
    both = build([{"type": "tupe", "max_position_embeddings": 7}, {"type": "rope"}], True)
    assert both.max_length == 7
    assert not both.relative
    scaled = {"type": "rope", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert build([{"type": "alibi"}, scaled], True).changes_with_length
    assert build({"type": "dape", "bias": {"type": "tupe", "max_position_embeddings": 9}}, True).max_length == 9
    offset = {"type": "randomized", "encoding": {"type": "alibi"}, "absolute": "offset"}
    assert build({"type": "randomized", "encoding": offset}, True).random_absolute == "offset"


@pytest.mark.parametrize(
    ("rel_pos", "message"),
    [
        (
            {"type": "dape", "bias": {"type": "kerple_log", "share_layers": True}},
            "share_layers=True of the encoding inside",
        ),
        ({"type": "dape", "bias": {"type": "bipe"}}, "adds learned vectors to the model's input"),
        ({"type": "randomized", "encoding": {"type": "bipe"}, "share_layers": False}, "adds learned vectors"),
        ({"type": "randomized", "encoding": {"type": "nonsense"}}, "unknown rel_pos type 'nonsense'"),
        ({"type": "wavlm", "heads": [0, 2]}, r"heads=\[0, 2\] is not valid"),
        ({"type": "alibi", "heads": [3, 9]}, r"heads=\[3, 9\] is not valid: there are 4 heads"),
        ({"type": "alibi", "heads": [2, 2]}, r"heads=\[2, 2\] is not valid"),
        ({"layers": ["alibi"]}, "describes a whole model"),
    ],
)
def test_what_cannot_stand_inside_says_so(rel_pos, message):
    with pytest.raises(ValueError, match=message):
        build_encoding(rel_pos, num_heads=HEADS, head_dim=WIDTH, max_position_embeddings=TABLE)


@pytest.mark.parametrize(
    "rel_pos",
    [
        [{"type": "alibi"}, {"type": "alibi"}],
        [{"type": "t5", "num_buckets": 8, "max_distance": 16}] * 2,
        # one belongs to a layer, the other is shared by all: the order stays the one given
        [{"type": "rerope", "window": 3, "share_layers": False}, {"type": "cope", "npos": 4, "share_layers": True}],
        [{"type": "rope", "share_layers": False}, {"type": "rerope", "window": 3}],
    ],
)
def test_a_model_applies_a_list_as_it_is_written(rel_pos):
    """As many modules as it names, in its order: the same as a model whose layers each have the list for themselves."""
    ours = model("llama", rel_pos, num_hidden_layers=1)
    parts = [{**(part if isinstance(part, dict) else {"type": part}), "share_layers": False} for part in rel_pos]
    apart = model("llama", parts, num_hidden_layers=1)
    shared = {name for name, _ in ours.named_parameters() if "relpos" in name}
    assert len(shared) == len([name for name, _ in apart.named_parameters() if "relpos" in name])
    for number, part in enumerate(apart.base_model.layers[0].self_attn.relpos.members):
        for name, parameter in part.named_parameters():
            source = [x for x in ours.modules() if isinstance(x, type(part))]
            parameter.data = dict(source[number if len(source) > 1 else 0].named_parameters())[name].data
    others = {key: value for key, value in ours.state_dict().items() if "relpos" not in key}
    apart.load_state_dict(others, strict=False)
    torch.testing.assert_close(apart(tokens()).logits, ours(tokens()).logits, **close)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "fox"}, {"type": "cable"}),
        ({"type": "kerple_log"}, {"type": "kerple_power"}),
        ({"type": "dape", "bias": {"type": "kerple_log"}}, {"type": "dape", "bias": {"type": "kerple_power"}}),
        ({"type": "huang_m2"}, {"type": "huang_m1"}),
        ({"type": "fox"}, {"layers": [{"type": "fox"}, {"type": "none"}]}),
    ],
)
def test_another_encoding_starts_fresh(old, new, tmp_path):
    """Parameters that happen to have the same names and shapes mean something else there."""
    ours = model("gpt2", old).float()
    ours.save_pretrained(tmp_path)
    other, info = type(ours).from_pretrained(tmp_path, rel_pos=new, output_loading_info=True)
    taken = {name: value for name, value in ours.state_dict().items() if "relpos." in name}
    for name, value in other.state_dict().items():
        if "relpos." in name:
            assert name in info["missing_keys"]
            assert value.isfinite().all()
            assert name not in taken or value.shape != taken[name].shape or not torch.equal(value, taken[name])
    assert other(tokens()).logits.isfinite().all()


def test_a_config_that_was_edited_is_not_saved(tmp_path):
    ours = model("gpt2", {"type": "rope"})
    ours.config.rel_pos = {**ours.config.rel_pos, "base": 5.0}
    with pytest.raises(ValueError, match=r"config.rel_pos was changed"):
        ours.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_ids_are_checked_at_the_entrance():
    ids = tokens(length=6)
    relations = torch.zeros(2, 6, 6, dtype=torch.long)
    related = model("gpt2", {"type": "relation", "num_relations": 3})
    for wrong, message in (
        (relations[..., :1], r"relation_ids has shape \[2, 6, 1\]"),
        (relations.float(), "must hold integers"),
        (relations.bool(), "must hold integers"),
        (relations.tolist(), "must hold integers"),
        (relations + 3, r"relation_ids holds 3, but must be 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            related(ids, relation_ids=wrong)
    cache = StaticCache(config=related.config, max_cache_len=9)
    plain = related(ids, relation_ids=relations).logits
    torch.testing.assert_close(related(ids, relation_ids=relations, past_key_values=cache).logits, plain, **close)
    segmented = model("bert", {"type": "xlnet"})
    for wrong in (ids[:, :1], ids[:1], ids.float(), ids.tolist()):
        with pytest.raises(ValueError, match=r"segment_ids is .* but must be integers \[2, 6\]"):
            segmented(ids, segment_ids=wrong)
    narrow = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)
    torch.testing.assert_close(
        segmented(ids, segment_ids=narrow.to(torch.uint8)).logits, segmented(ids, segment_ids=narrow).logits, **close
    )
    with pytest.raises(ValueError, match="no encoding of this model reads them"):
        model("bert", {"type": "t5"})(ids, segment_ids=narrow)
    with pytest.raises(ValueError, match=r"position_ids is \[6\]"):
        model("gpt2", {"type": "fire"})(ids, position_ids=torch.arange(6))


def test_segment_numbers_survive_a_half_precision_cache():
    ours = model("gpt2", {"type": "xlnet"}).to(torch.bfloat16)
    ids = tokens(length=6)
    segments = torch.tensor([[256, 256, 256, 257, 257, 1000]] * 2)
    shifted = segments - 256
    cached = [
        ours(ids, segment_ids=numbers, past_key_values=DynamicCache(config=ours.config)).logits
        for numbers in (segments, shifted)
    ]
    assert torch.equal(*cached)


@pytest.mark.parametrize("first", [0, 2, 7])
def test_positions_that_start_anywhere_are_places_in_the_text(first):
    """What the caller's numbering starts with is no place; where it begins anew, another text does."""
    for family in ("bert", "roberta", "gpt2"):
        ours = model(family, {"type": "tupe", "max_position_embeddings": 16})
        ids = tokens(length=8)
        without_cache = {"use_cache": False} if family == "gpt2" else {}
        given = ours(ids, position_ids=torch.arange(first, first + 8)[None], **without_cache).logits
        torch.testing.assert_close(given, ours(ids).logits, **close)


def test_packed_texts_stay_apart_under_compilation():
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)
    for family in ("bert", "llama"):
        ours = model(family, {"type": "kerple_log"})
        ids = tokens(length=9)
        with torch.no_grad():
            plain = ours(ids, position_ids=positions).logits
            compiled = torch.compile(ours, backend="eager")(ids, position_ids=positions).logits
        torch.testing.assert_close(compiled, plain, **close)


def test_static_caches_longer_than_a_table_hold_short_texts():
    ours = model("gpt2", {"type": "tupe", "max_position_embeddings": 8})
    ids = tokens(length=6)
    cache = StaticCache(config=ours.config, max_cache_len=20)
    torch.testing.assert_close(ours(ids, past_key_values=cache).logits, ours(ids).logits, **close)
    with pytest.raises(ValueError, match="longer than the position table"):
        ours(tokens(length=9))
    bipe = model("gpt2", {"type": "bipe", "separator_ids": [5]})
    torch.testing.assert_close(bipe(ids, past_key_values=DynamicCache()).logits, bipe(ids).logits, **close)


def test_methods_inside_others_are_named_for_cards_and_code():
    rel_pos = {
        "layers": [
            {"type": "dape", "bias": {"type": "alibi"}},
            ["t5", {"type": "randomized", "encoding": {"type": "rope"}}],
        ]
    }
    assert [cls.name for cls, _ in named_methods(rel_pos)] == ["dape", "alibi", "t5", "randomized", "rope"]


def test_hidden_states_of_another_width_are_refused():
    with pytest.raises(ValueError, match="hidden_states is 5 wide, but the encoding was built for 24"):
        hf_relpos.attention(
            *tensors(LENGTH, LENGTH), build({"type": "fox"}, True), hidden_states=torch.zeros(2, LENGTH, 5)
        )


def test_resolved_configs_of_combinations_build_the_same_again():
    for rel_pos in (
        {"type": "randomized", "encoding": {"type": "dape", "bias": "alibi"}},
        [{"type": "alibi", "heads": [0, 2]}, {"type": "rope", "heads": [2, 4]}],
    ):
        encoding = build(rel_pos, True)
        stored = json.loads(json.dumps(encoding.config()))
        assert build(stored, True).config() == stored
    assert math.isfinite(
        float(attention([{"type": "alibi", "heads": [0, 2]}, {"type": "rope", "heads": [2, 4]}]).sum())
    )
