"""The commands that measure what a conversion keeps: retrieval behind the original's end, perplexity by length."""

import gzip
import json
import math

import converted_perplexity
import families
import long_retrieval
import pytest
import torch
from families import save_source, save_text
from transformers import AutoModel, AutoModelForCausalLM

from hf_relpos.conversion.convert import convert_checkpoint


@pytest.fixture
def encoder(tmp_path):
    """A tiny encoder and what becomes of it with other positions."""
    source = save_source(tmp_path / "source")
    convert_checkpoint(str(source), tmp_path / "converted", rel_pos={"type": "t5"}, absolute="drop")
    return source, tmp_path / "converted"


def documents(path, lengths):
    """Files of random words, one row for each of ``lengths``."""
    generator = torch.Generator().manual_seed(3)
    with gzip.open(path, "wt") as lines:
        for number, length in enumerate(lengths):
            words = [families.WORDS[n] for n in torch.randint(len(families.WORDS), (length,), generator=generator)]
            row = {"text": " ".join(words)}
            if number % 2:
                half = length // 2
                turns = [("A", words[:half]), ("B", words[half:])]
                row = {"meeting_transcripts": [{"speaker": who, "content": " ".join(said)} for who, said in turns]}
            lines.write(json.dumps(row) + "\n")
    return path


def test_passages_behind_the_end_are_looked_for(encoder, tmp_path, capsys):
    source, converted = encoder
    own = AutoModel.from_pretrained(source).config.max_position_embeddings
    texts = documents(tmp_path / "texts.jsonl.gz", [3 * own, 4 * own, 2 * own, own // 2, 6 * own])
    output = tmp_path / "found.json"
    flags = f"--documents {texts} --converted {converted} --model {source} --count 4 --length {4 * own} --passage 6 --output {output}"
    long_retrieval.main(flags.split())
    found = json.loads(output.read_text())
    assert [row["arm"] for row in found["rows"]] == [
        f"original, first {own} tokens",
        f"original, windows of {own} averaged",
        f"converted, first {own} tokens",
        f"converted, {4 * own} tokens",
    ]
    assert all(0 <= row["recall@1"] <= row["recall@5"] <= 1 and row["MRR"] > 0 for row in found["rows"])
    assert "| converted, " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="fewer than --count 40"):
        long_retrieval.main([*flags.split(), "--count", "40"])
    with pytest.raises(SystemExit, match="more than the original's"):
        long_retrieval.main([*flags.split(), "--length", str(own)])


def test_a_row_without_text_is_named(encoder, tmp_path):
    source, converted = encoder
    path = tmp_path / "rows.jsonl"
    path.write_text('{"words": 3}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1.*neither"):
        long_retrieval.main(["--documents", str(path), "--converted", str(converted), "--model", str(source)])


def test_ranks_count_ties_against_the_document():
    vectors = torch.eye(3)
    assert long_retrieval.found_at(vectors, vectors).tolist() == [1, 1, 1]
    same = torch.ones(3, 2)
    ranks = long_retrieval.found_at(same, same)
    assert ranks.tolist() == [3, 3, 3]
    assert long_retrieval.measure(ranks) == {
        "recall@1": 0.0,
        "standard error": 0.0,
        "recall@5": 1.0,
        "MRR": pytest.approx(1 / 3),
    }


def test_perplexity_is_measured_by_length(tmp_path, capsys):
    source = save_source(tmp_path / "source", "gpt2")
    convert_checkpoint(str(source), tmp_path / "converted", rel_pos={"type": "alibi"}, absolute="drop", head="CausalLM")
    text = save_text(tmp_path / "text.txt")
    own = AutoModelForCausalLM.from_pretrained(source).config.max_position_embeddings
    output = tmp_path / "found.json"
    flags = f"--model {source} --converted {tmp_path / 'converted'} --text {text} --lengths 8 {2 * own} --tokens {4 * own} --output {output}"
    converted_perplexity.main(flags.split())
    original, converted = json.loads(output.read_text())["rows"]
    assert set(original["perplexity"]) == {"8"}
    assert set(converted["perplexity"]) == {"8", str(2 * own)}
    assert "cannot" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        converted_perplexity.main([*flags.split(), "--lengths", "1"])


def test_perplexity_is_that_of_all_tokens_but_the_first():
    model = families.model("gpt2", {"type": "alibi"})
    ids = families.tokens(3, 9)
    logits = model(ids).logits[:, :-1].detach().float()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert converted_perplexity.perplexity(model, ids) == pytest.approx(math.exp(loss), rel=1e-5)
