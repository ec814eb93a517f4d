"""Answers from long contexts, with models whose logits are chosen so that the right answer is known."""

from types import SimpleNamespace

import pytest
import torch
from toy_qa import byte_tokenizer, word_tokenizer
from toy_training import SIZES
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

import hf_relpos
from hf_relpos import Answer, answer, best_spans, context_offsets, window_length

torch.set_num_threads(1)

TABLE = 40
FILLER = "Ada lives in house 7 near the river. "
QUESTION = "Where does Mira live?"


class Reader:
    """Stands in for a model's forward: scores tokens by their ids, and remembers what it was given."""

    def __init__(self, tokenizer, starts, ends=None):
        self.starts = {tokenizer.convert_tokens_to_ids(token): score for token, score in starts.items()}
        ends = starts if ends is None else ends
        self.ends = {tokenizer.convert_tokens_to_ids(token): score for token, score in ends.items()}
        self.seen, self.training = [], []

    def attach(self, model, monkeypatch):
        self.model = model
        monkeypatch.setattr(model, "forward", self)
        return self

    def __call__(self, input_ids, attention_mask, token_type_ids=None):
        assert attention_mask.all()
        self.seen.append(input_ids[0].tolist())
        self.training.append(self.model.training)
        return SimpleNamespace(
            start_logits=torch.tensor([[self.starts.get(i, 0.0) for i in row] for row in input_ids.tolist()]),
            end_logits=torch.tensor([[self.ends.get(i, 0.0) for i in row] for row in input_ids.tolist()]),
        )


def bert(tokenizer, absolute=None, **sizes):
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": TABLE, **sizes}
    if absolute is None:
        return BertForQuestionAnswering(BertConfig(**sizes)).eval()
    made = hf_relpos.RelPosBertConfig(**sizes, rel_pos={"type": "t5"}, absolute=absolute)
    return hf_relpos.RelPosBertForQuestionAnswering(made).eval()


def roberta(tokenizer, **sizes):
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": TABLE, "type_vocab_size": 1, **sizes}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return RobertaForQuestionAnswering(RobertaConfig(**sizes, **ids)).eval()


@pytest.mark.parametrize("absolute", [None, "keep", "drop"])
@pytest.mark.parametrize("place", [0, 3, 11, 20])
def test_the_right_answer_is_found_anywhere_in_a_long_context(monkeypatch, absolute, place):
    tokenizer = word_tokenizer()
    context = FILLER * place + "Mira lives in Bergen. " + FILLER * (20 - place)
    model = bert(tokenizer, absolute)
    reader = Reader(tokenizer, {"bergen": 5.0, "house": 3.0}).attach(model, monkeypatch)
    (found,) = answer(model, tokenizer, QUESTION, context)
    assert found == Answer("Bergen", 10.0, context.index("Bergen"), context.index("Bergen") + 6)
    if absolute == "drop":
        (whole,) = reader.seen
        assert whole == tokenizer(QUESTION, context, verbose=False)["input_ids"]
        assert len(whole) > 200
    else:
        assert len(reader.seen) > 5
        assert max(map(len, reader.seen)) == TABLE


@pytest.mark.parametrize("absolute", [None, "keep", "drop"])
def test_real_models_read_contexts_of_any_length(absolute):
    tokenizer = word_tokenizer()
    context = FILLER * 30
    found = answer(bert(tokenizer, absolute), tokenizer, QUESTION, context, n_best=5)
    assert len(found) == 5
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert all(one.text == context[one.start : one.end] and one.text.strip() == one.text for one in found)


@pytest.mark.parametrize("made", [roberta, bert])
def test_windows_fill_the_table_and_never_exceed_it(monkeypatch, made):
    tokenizer = byte_tokenizer()
    model = made(tokenizer)
    lengths = []
    forward = model.forward

    def count(input_ids, **inputs):
        lengths.append(input_ids.shape[1])
        return forward(input_ids, **inputs)

    monkeypatch.setattr(model, "forward", count)
    answer(model, tokenizer, "Where?", FILLER * 10)
    # RoBERTa's first two rows are not for positions
    assert max(lengths) == window_length(model) == (TABLE - 2 if made is roberta else TABLE)


def test_one_more_token_than_the_window_is_too_many():
    tokenizer = byte_tokenizer()
    model = roberta(tokenizer)
    ids = torch.full((1, TABLE - 1), 9)
    model(ids[:, :-1])
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_window_length():
    tokenizer = word_tokenizer()
    assert window_length(bert(tokenizer)) == TABLE
    assert window_length(bert(tokenizer, "keep")) == TABLE
    assert window_length(bert(tokenizer, "drop")) is None
    assert window_length(roberta(byte_tokenizer())) == TABLE - 2


# peft asks for an attribute that transformers renames
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_table_of_a_wrapped_roberta_is_known():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = roberta(byte_tokenizer())
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], r=2))
    assert window_length(wrapped) == TABLE - 2


def test_spans_of_windows_compete_by_score_and_duplicates_count_once(monkeypatch):
    tokenizer = word_tokenizer()
    context = FILLER * 9 + "Mira lives in Turin. " + FILLER * 9 + "Jonas lives in Porto."
    model = bert(tokenizer)
    Reader(tokenizer, {"turin": 4.0, "porto": 5.0}, {"turin": 4.5, "porto": 5.0}).attach(model, monkeypatch)
    found = answer(model, tokenizer, QUESTION, context, n_best=2, max_answer_length=1)
    assert [(one.text, one.score) for one in found] == [("Porto", 10.0), ("Turin", 8.5)]
    assert len({(one.start, one.end) for one in answer(model, tokenizer, QUESTION, context, n_best=50)}) == 50


@pytest.mark.parametrize("place", range(20, 32))
def test_an_answer_that_one_window_cuts_is_whole_in_another(monkeypatch, place):
    """Windows have 40 tokens, of which 29 are context: the answer of six meets the end of the first in every way."""
    tokenizer = word_tokenizer()
    context = "in " * place + "old near near near near Turin" + " in" * 60
    model = bert(tokenizer)
    reader = Reader(tokenizer, {"old": 3.0}, {"turin": 3.0}).attach(model, monkeypatch)
    (found,) = answer(model, tokenizer, QUESTION, context)
    assert (found.text, found.score) == ("old near near near near Turin", 6.0)
    assert len(reader.seen) > 2


def test_n_best_of_fewer_spans_than_asked(monkeypatch):
    tokenizer = word_tokenizer()
    model = bert(tokenizer, "drop")
    Reader(tokenizer, {"turin": 4.0}).attach(model, monkeypatch)
    found = answer(model, tokenizer, QUESTION, "Mira lives in Turin", n_best=100, max_answer_length=2)
    assert len(found) == 4 + 3
    assert found[0].text == "Turin"


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_max_answer_length(monkeypatch, longest):
    tokenizer = word_tokenizer()
    model = bert(tokenizer, "drop")
    Reader(tokenizer, {"old": 3.0}, {"turin": 3.0}).attach(model, monkeypatch)
    (found,) = answer(model, tokenizer, QUESTION, "In old river Turin", max_answer_length=longest)
    assert found.score == (6.0 if longest == 3 else 3.0)
    assert (found.text == "old river Turin") == (longest == 3)


@pytest.mark.parametrize("make", [word_tokenizer, byte_tokenizer])
def test_offsets_are_characters_and_blanks_are_not_part_of_an_answer(monkeypatch, make):
    tokenizer = make()
    context = "  Zoë 🙂 lives\n\n in   Łódź,\tnear  Bergen  . "
    sizes = {"max_position_embeddings": 200}
    model = roberta(tokenizer, **sizes) if make is byte_tokenizer else bert(tokenizer, **sizes)
    found = answer(model, tokenizer, "Where?", context, n_best=500)
    for one in found:
        assert one.text == context[one.start : one.end] == one.text.strip() != ""
    texts = {one.text for one in found}
    assert "Bergen" in texts
    assert "near  Bergen" in texts


def test_context_offsets_leave_out_question_special_tokens_and_blanks():
    tokenizer = byte_tokenizer()
    context = " Bergen in\n"
    encoding = tokenizer(["Where?"], [context], return_offsets_mapping=True)
    offsets = context_offsets(encoding, 0, context)
    assert [context[offset[0] : offset[1]] for offset in offsets if offset] == ["Bergen", "in"]
    assert len(offsets) == len(encoding["input_ids"][0])
    assert offsets[:6] == [None] * 6
    # the blank before the first word, the one before the second, the end of the line, the last special token
    assert offsets.count(None) == len(offsets) - 2


def test_context_offsets_as_the_tokenizer_gives_them():
    encoding = byte_tokenizer()(["Where does Mira live?"], [" in"], return_offsets_mapping=True)
    assert [offset for offset in context_offsets(encoding, 0) if offset] == [(0, 3)]
    # the question is longer than the context that its characters are not in
    assert [offset for offset in context_offsets(encoding, 0, " in") if offset] == [(1, 3)]


def test_a_question_is_asked_without_blanks_around_it(monkeypatch):
    tokenizer = byte_tokenizer()
    model = bert(tokenizer, "drop")
    reader = Reader(tokenizer, {}).attach(model, monkeypatch)
    for question in ("Where?", "  Where?\n"):
        answer(model, tokenizer, question, FILLER)
    assert reader.seen[0] == reader.seen[1]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_reads_in_eval_mode_and_is_left_as_it_was(monkeypatch, training):
    tokenizer = word_tokenizer()
    model = bert(tokenizer, "drop").train(training)
    # a part that someone froze in the other mode
    model.bert.encoder.layer[0].train(not training)
    modes = [module.training for module in model.modules()]
    reader = Reader(tokenizer, {}).attach(model, monkeypatch)
    answer(model, tokenizer, QUESTION, FILLER)
    assert reader.training == [False]
    assert [module.training for module in model.modules()] == modes

    def fail(**inputs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(model, "forward", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        answer(model, tokenizer, QUESTION, FILLER)
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_off_and_nothing_is_kept_for_gradients():
    tokenizer = word_tokenizer()
    model = bert(tokenizer, "drop", hidden_dropout_prob=0.5).train()
    first, second = (answer(model, tokenizer, QUESTION, FILLER * 3, n_best=3) for _ in range(2))
    assert first == second
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_half_precision_models_answer():
    tokenizer = word_tokenizer()
    model = bert(tokenizer, "drop").to(torch.bfloat16)
    assert len(answer(model, tokenizer, QUESTION, FILLER, n_best=3)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "question='' is not valid"),
        ({"question": " \n"}, r"question=' \\n' is not valid"),
        ({"question": None}, "question=None is not valid"),
        ({"context": ""}, "context='' is not valid"),
        ({"context": ["a", "b"]}, "context=.*is not valid: it must be a text"),
        ({"n_best": 0}, "n_best=0 is not valid: it must be an integer of at least 1"),
        ({"n_best": -1}, "n_best=-1 is not valid"),
        ({"n_best": 1.5}, "n_best=1.5 is not valid"),
        ({"n_best": "3"}, "n_best='3' is not valid"),
        ({"n_best": True}, "n_best=True is not valid"),
        ({"max_answer_length": 0}, "max_answer_length=0 is not valid"),
        ({"question": "where " * 30}, "the question leaves 7 of 40 tokens to the context; shorten it"),
        ({"question": "where " * 90}, "the question leaves 0 of 40 tokens to the context; shorten it"),
    ],
)
def test_bad_input(change, message):
    tokenizer = word_tokenizer()
    given = {"question": QUESTION, "context": FILLER, **change}
    with pytest.raises(ValueError, match=message):
        answer(bert(tokenizer), tokenizer, given.pop("question"), given.pop("context"), **given)


def test_a_question_that_leaves_just_enough_room():
    tokenizer = word_tokenizer()
    found = answer(bert(tokenizer), tokenizer, "where " * 29, FILLER * 3)
    assert found[0].text


def test_a_long_question_is_no_trouble_without_a_table():
    tokenizer = word_tokenizer()
    assert answer(bert(tokenizer, "drop"), tokenizer, "where " * 90, FILLER)[0].text


def test_a_model_without_span_logits_is_refused():
    tokenizer = word_tokenizer()
    model = BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": TABLE}))
    with pytest.raises(ValueError, match="BertForMaskedLM gives no start and end logits"):
        answer(model, tokenizer, QUESTION, FILLER)
    assert model.training


def test_a_slow_tokenizer_is_refused():
    tokenizer = SimpleNamespace(is_fast=False)
    with pytest.raises(ValueError, match="SimpleNamespace is not a fast tokenizer"):
        answer(bert(word_tokenizer()), tokenizer, QUESTION, FILLER)


def test_logits_that_are_not_numbers_are_refused():
    tokenizer = word_tokenizer()
    model = bert(tokenizer, "drop")
    with torch.no_grad():
        model.qa_outputs.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits that are not numbers"):
        answer(model, tokenizer, QUESTION, FILLER)


def test_best_spans_by_hand():
    offsets = [None, (0, 3), (4, 7), (8, 11), None]
    start = torch.tensor([9.0, 1.0, 3.0, 0.0, 9.0])
    end = torch.tensor([9.0, 2.0, 0.0, 1.0, 9.0])
    assert sorted(best_spans(start, end, offsets, n_best=9, max_answer_length=2), reverse=True) == [
        (4.0, 4, 11),
        (3.0, 4, 7),
        (3.0, 0, 3),
        (1.0, 8, 11),
        (1.0, 0, 7),
    ]
    assert best_spans(start, end, offsets, n_best=1, max_answer_length=99) == [(4.0, 4, 11)]
    # what is beyond the offsets is padding
    padded = [torch.cat((logits, torch.full((3,), 50.0))) for logits in (start, end)]
    assert best_spans(*padded, offsets, n_best=1, max_answer_length=2) == [(4.0, 4, 11)]
    assert best_spans(start, end, [None] * 5, n_best=3, max_answer_length=2) == []
