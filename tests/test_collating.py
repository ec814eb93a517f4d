"""Padding and packing, and that models keep packed documents apart."""

import random

import pytest
import torch
from collating import blocks, pack, pad, pad_packed, prompted

import hf_relpos


class Tokenizer:
    pad_token_id = 9


def test_padding():
    batch = [{"input_ids": [1, 2, 3], "labels": [1, -100, 3], "token_type_ids": [0, 1, 1], "score": 0.5, "label": 1}]
    batch.append({"input_ids": [4], "labels": [4], "token_type_ids": [1], "score": 1.5, "label": 0})
    found = pad(batch, Tokenizer, pad_to_multiple_of=4)
    expected = {
        "input_ids": [[1, 2, 3, 9], [4, 9, 9, 9]],
        "labels": [[1, -100, 3, -100], [4, -100, -100, -100]],
        "token_type_ids": [[0, 1, 1, 0], [1, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0]],
        "score": [0.5, 1.5],
        "label": [1, 0],
    }
    assert {name: tensor.tolist() for name, tensor in found.items()} == expected
    assert pad(batch, Tokenizer, side="left", pad_to_multiple_of=1)["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert pad(batch, Tokenizer, side="left", pad_to_multiple_of=1)["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert set(pad(batch, Tokenizer, ["input_ids", "score", "gone"])) == {"input_ids", "attention_mask", "score"}
    # not beyond the end of a table, but never shorter than a row
    assert pad(batch, Tokenizer, max_length=3)["input_ids"].shape == (2, 3)
    assert pad(batch, Tokenizer, max_length=2)["input_ids"].shape == (2, 3)


def test_blocks_are_one_text():
    found = list(blocks([[1, 2, 3], [4], [5, 6, 7, 8, 9]], 4))
    assert found == [{"input_ids": ids, "labels": ids} for ids in ([1, 2, 3, 4], [5, 6, 7, 8])]
    assert found[0]["input_ids"] is not found[0]["labels"]


def test_packing_keeps_rows_whole_and_in_order():
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4]}, {"input_ids": []}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    assert list(pack(rows, 5)) == [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, -100], "position_ids": [0, 1, 2, 0]},
        {"input_ids": [5, 6], "labels": [-100, 6], "position_ids": [0, 1]},
    ]
    with pytest.raises(ValueError, match="a row of 3 tokens does not fit into packed rows of 2"):
        list(pack(rows, 2))


@pytest.mark.parametrize("rel_pos", ["alibi", "t5", "rope", "fox", "none"])
@pytest.mark.parametrize("absolute", ["drop", "keep"])
def test_a_packed_row_costs_what_its_documents_cost(rel_pos, absolute):
    torch.manual_seed(0)
    config = hf_relpos.RelPosGPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32, rel_pos={"type": rel_pos}, absolute=absolute
    )
    model = hf_relpos.RelPosGPT2ForCausalLM(config).eval()
    generator = random.Random(0)
    rows = [{"input_ids": [generator.randrange(10, 50) for _ in range(length)]} for length in (5, 9, 2, 7, 3, 12)]
    packed = pad_packed(list(pack(rows, 16)), Tokenizer)
    assert "attention_mask" not in packed
    assert packed["input_ids"].shape[0] < len(rows)
    targets = sum(len(row["input_ids"]) - 1 for row in rows)
    assert int((packed["labels"] != -100).sum()) == targets
    with torch.no_grad():
        alone = 0.0
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            alone += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        together = float(model(**packed).loss)
    assert together == pytest.approx(alone / targets, rel=1e-5)


def test_a_prompt_has_no_loss():
    assert prompted([5, 6], [7, 8, 9]) == {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}
