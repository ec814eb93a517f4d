"""The text generation task: what it reads, what counts in its loss, how perplexity and texts come about, and the ways in which it refuses."""

import gzip
import json
import math
import re
import shlex
import sys
from pathlib import Path

import generation
import pytest
import torch
from accelerate import Accelerator
from arguments import parse_arguments
from batches import Stream
from checkpoints import RunError
from generation import GenerationArguments, prepare, write_texts
from generation_data import Features, dialogues, meetings, pairs, reader, text_tokens
from loop import next_token_weight
from perplexity import Likelihood, likelihood, next_token_losses, windows
from script import main, run
from sources import DataError
from tokenizing import trained_tokenizer
from toy_qa import write
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "training" / "configs" / "tiny_generation.yaml"
REAL = ROOT.parent / "shared" / "data"
STOCK = {"rel_pos": None, "absolute": None}
VERSE = "the cat sat on the mat and the dog sat on the log\n"
TALK = [
    {"turns": [{"speaker": "USER", "utterance": f"I want {n}"}, {"speaker": "SYSTEM", "utterance": f"Here is {n}"}]}
    for n in ("tea", "milk", "bread", "salt")
]
PAPERS = [
    {"source": [f"We study {n}.", "It works."], "target": [f"On {n}.", f"About {n}."]} for n in ("cats", "dogs", "owls")
]
MEETING = {
    "meeting_transcripts": [{"speaker": "A", "content": "we ship"}, {"speaker": "B", "content": ""}],
    "general_query_list": [{"query": "Summarize", "answer": "They ship."}],
    "specific_query_list": [{"query": "Who?", "answer": "A."}],
}


@pytest.fixture(scope="module")
def tokenizer():
    return trained_tokenizer("bytes", [], 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "verse.txt").write_text(VERSE * 40)
    return {
        "text": folder / "verse.txt",
        "documents": write(folder / "documents.jsonl", [{"text": VERSE[: 10 + 3 * n]} for n in range(14)]),
        "dialogues": write(folder / "talk.jsonl", TALK * 4),
        "pairs": write(folder / "papers.jsonl", PAPERS * 4),
        "meetings": write(folder / "meetings.jsonl", [MEETING] * 3),
    }


def arguments(files, output, kind="text", **settings):
    """Those of the tiny recipe."""
    path = files[kind]
    kind = "text" if kind == "documents" else kind
    given = {
        "format": kind,
        "train_file": path,
        "validation_file": path,
        "output_dir": output,
        **({} if kind == "text" else {"max_length": 64}),
        **settings,
    }
    words = ["--config", str(RECIPE)]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    found = parse_arguments(GenerationArguments, words)
    if settings.get("rel_pos", "") is None:
        found.rel_pos = found.absolute = None
    return found


def task(files, output, kind="text", **settings):
    return prepare(arguments(files, output, kind, **settings), Accelerator(cpu=True))


def read(path):
    return json.loads(Path(path).read_text())


# perplexity


def tiny(**config):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 261, "bos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=3, **config)).eval()
    # far from uniform
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.5)
    return model


def test_losses_are_the_models_own():
    model, ids = tiny(), torch.randint(5, 261, (3, 20))
    labels = ids.clone()
    labels[0, 4:9] = labels[2, :] = -100
    output = model(input_ids=ids, labels=labels)
    losses = next_token_losses(output.logits, labels)
    assert losses.shape == (3, 19)
    assert not losses[2].any()
    assert not losses[0, 3:8].any()
    torch.testing.assert_close(losses.sum() / next_token_weight({"labels": labels}), output.loss)


def test_windows_of_all_lengths_score_the_same_tokens():
    tokens = list(range(100, 196))
    for length in (8, 16, 48):
        rows = windows(tokens, length, 8)
        assert [token for row in rows for token in row["input_ids"]] == tokens
        scored = [label for row in rows for label in row["labels"] if label != -100]
        assert scored == [token for i, token in enumerate(tokens) if i % 8]
        assert all(row["labels"][0] == -100 for row in rows)
    assert windows(tokens[:47], 48, 8) == []


def test_likelihood_by_place_against_single_tokens(tokenizer):
    """Rows of different lengths, so that padding takes part."""
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    rows, losses = [], {}
    for length in (3, 13, 8, 21, 2):
        ids = torch.randint(5, 261, (length,), generator=generator).tolist()
        labels = [token if i % 5 else -100 for i, token in enumerate(ids)]
        rows.append({"input_ids": ids, "labels": labels})
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(1, length):
            if labels[place] != -100:
                losses.setdefault(int(math.log2(place)), []).append(-float(scores[place - 1, ids[place]]))
    found = likelihood(model, Accelerator(cpu=True), rows, tokenizer, 2)
    assert found.tokens == tuple(len(losses[b]) for b in range(5))
    assert found.losses == pytest.approx([sum(losses[b]) for b in range(5)], rel=1e-5)
    everything = [loss for some in losses.values() for loss in some]
    assert found.perplexity == pytest.approx(math.exp(sum(everything) / len(everything)), rel=1e-5)
    assert [entry["from"] for entry in found.positions()] == [1, 2, 4, 8, 16]
    with pytest.raises(ValueError, match="no token is to be predicted"):
        likelihood(model, Accelerator(cpu=True), [{"input_ids": [7, 8], "labels": [-100, -100]}], tokenizer, 2)


def test_perplexities_are_numbers_whatever_the_loss():
    assert Likelihood((2 * math.log(8), 0.0), (2, 0)).perplexity == pytest.approx(8)
    assert math.isfinite(Likelihood((1e6,), (1,)).perplexity)
    assert Likelihood((2.0, 0.0), (2, 0)).positions() == [{"from": 1, "to": 1, "tokens": 2, "perplexity": math.e}]


# rows to features


def test_lines_are_one_running_text_and_documents_end(files, tmp_path, tokenizer):
    made = task(files, tmp_path, "text")
    assert all(len(row["input_ids"]) == 32 and row["labels"] == row["input_ids"] for row in made.rows)
    text = tokenizer.decode([token for row in made.rows for token in row["input_ids"]])
    assert (VERSE * 40).replace("\n\n", "\n").startswith(text[:200])
    assert "log\nthe cat" in text
    documents = task(files, tmp_path, "documents")
    text = tokenizer.decode([token for row in documents.rows for token in row["input_ids"]])
    assert text.startswith("the cat sa</s>the cat sat o</s>")
    assert list(text_tokens(["ab", "c"], tokenizer, None)) == [
        tokenizer("ab\n")["input_ids"],
        tokenizer("c\n")["input_ids"],
    ]


def test_packed_documents_do_not_see_each_other(files, tmp_path):
    made = task(files, tmp_path, "documents", packing=True)
    batch = made.collate(made.rows[:3])
    assert sorted(batch) == ["input_ids", "labels", "position_ids"]
    starts = batch["position_ids"] == 0
    assert starts.sum() > 3
    assert (batch["labels"][starts] == -100).all()
    made = task(files, tmp_path, "pairs", packing=True, max_length=80)
    row = made.rows[0]
    # the target alone has labels
    assert sum(label != -100 for label in row["labels"]) in (8, 16)


def test_only_targets_count_in_the_loss(files, tmp_path, tokenizer):
    for kind, prompt, target in (
        ("pairs", "We study cats. It works.\nTL;DR:", " On cats"),
        ("dialogues", "USER: I want tea\nSYSTEM:", " Here is"),
        ("meetings", "A: we ship\nB: \n\nSummarize\n", " They sh"),
    ):
        row = task(files, tmp_path, kind).rows[0]
        labels = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(row["input_ids"]) == prompt + target
        assert tokenizer.decode(labels) == target
        assert row["labels"][-len(labels) :] == row["input_ids"][-len(labels) :] == labels


def test_what_is_too_long_is_cut_on_its_side_and_counted(tokenizer):
    features = Features(tokenizer, max_length=20, max_target_length=6, end=tokenizer.eos_token_id)
    (pair,) = pairs([("here", {"a": "0123456789", "b": "yes"})], "a", "b", "|")
    assert tokenizer.decode(features.row(pair)["input_ids"]) == "0123456789| yes</s>"
    (long,) = pairs([("here", {"a": "0123456789abcdef", "b": "yes and no"})], "a", "b", "|")
    assert tokenizer.decode(features.row(long)["input_ids"]) == "0123456789abc| yes a"
    turns = [{"speaker": "U", "utterance": "0123456789abc"}, {"speaker": "S", "utterance": "ok"}]
    (talk,) = dialogues([("here", {"turns": turns})], "turns", "S")
    assert tokenizer.decode(features.row(talk)["input_ids"]) == "23456789abc\nS: ok</s>"
    assert (features.seen, features.prompts_cut, features.targets_cut, features.longest) == (3, 2, 1, 19)
    assert "3 examples, 2 prompts and 1 targets of them cut to fit in max_length=20" in features.report()
    features.max_target_length = 19
    with pytest.raises(DataError, match="here: 1 tokens before a target of 19 leave a prompt no room in max_length=20"):
        features.row(pair)


def test_each_answer_of_a_speaker_is_an_example():
    turns = [{"speaker": who, "utterance": str(n)} for n, who in enumerate("SUSUS")]
    found = list(dialogues([("here", {"turns": turns})], "turns", "S"))
    assert [(one.prompt, one.references) for one in found] == [
        ("S: 0\nU: 1", ("2",)),
        ("S: 0\nU: 1\nS: 2\nU: 3", ("4",)),
    ]
    assert len(list(meetings([("here", MEETING)]))) == 2


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pairs", {"source": "a"}, "line 2: the field 'target' is missing; fields: source"),
        ("pairs", {"source": ["a", 3], "target": "b"}, "line 2: member 1 of the field 'source' is int, not str"),
        ("pairs", {"source": "a", "target": [" "]}, "line 2: the field 'target' holds no text"),
        (
            "dialogues",
            {"turns": [{"speaker": "USER"}]},
            "line 2, member 0 of 'turns': the field 'utterance' is missing",
        ),
        (
            "dialogues",
            {"turns": [{"speaker": "A", "utterance": "x"}, {"speaker": "B", "utterance": "y"}]},
            "line 2: 'SYSTEM' answers nothing; speakers: A, B",
        ),
        ("dialogues", {"turns": ["hello"]}, "line 2: member 0 of the field 'turns' is str, not dict"),
        (
            "meetings",
            {**MEETING, "specific_query_list": [{"query": "?", "answer": 3}]},
            "line 2, member 0 of 'specific_query_list': the field 'answer' is int, not text",
        ),
        ("documents", {"text": " "}, "line 2: the field 'text' is empty"),
        ("documents", {"txt": "a"}, "line 2: the field 'text' is missing; fields: txt"),
    ],
)
def test_malformed_rows_are_named(files, tmp_path, kind, row, message):
    first = {"pairs": PAPERS[0], "dialogues": TALK[0], "meetings": MEETING, "documents": {"text": "a"}}[kind]
    path = write(tmp_path / "bad.jsonl", [first, row])
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        task(files, tmp_path / "out", kind, train_file=path)
    assert "bad.jsonl" in str(caught.value)


# texts


@pytest.mark.parametrize("rel_pos", [None, "none", "t5", "alibi", "rope", "sinusoidal_bias", "transformer_xl"])
def test_texts_do_not_depend_on_what_is_in_a_batch(files, tmp_path, tokenizer, rel_pos):
    """Padding on the left changes nothing, nor do other prompts."""
    positions = STOCK if rel_pos is None else {"rel_pos": rel_pos, "absolute": "drop"}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False}
    settings = arguments(files, tmp_path, "pairs", model_config=json.dumps(sizes), **positions)
    model = prepare(settings, Accelerator(cpu=True)).model.eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    prompts = [{"input_ids": tokenizer(VERSE[:length])["input_ids"]} for length in (3, 30, 11, 17, 5)]
    together = write_texts(model, Accelerator(cpu=True), prompts, tokenizer, settings)
    alone = [write_texts(model, Accelerator(cpu=True), [prompt], tokenizer, settings)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) > 1


def test_drawn_texts_are_the_same_in_every_run(files, tmp_path, tokenizer):
    settings = arguments(files, tmp_path, "pairs", do_sample=True, top_p=0.9, temperature=1.5)
    made = prepare(settings, Accelerator(cpu=True))
    prompts = [{"input_ids": tokenizer(VERSE[:9])["input_ids"]}] * 3
    first, second = (write_texts(made.model.eval(), Accelerator(cpu=True), prompts, tokenizer, settings) for _ in "ab")
    assert first == second
    assert len(set(first)) > 1
    settings.seed = 1
    assert write_texts(made.model, Accelerator(cpu=True), prompts, tokenizer, settings) != first


# whole runs


@pytest.mark.filterwarnings("ignore:Sliding Window:UserWarning")
def test_language_modelling_at_several_lengths(files, tmp_path):
    settings = arguments(files, tmp_path, eval_lengths="16,64,128", generate_rows=2, max_steps=60, learning_rate=1e-2)
    metrics = run(settings, prepare)
    # a text that is the same again and again
    assert metrics["perplexity"] < 40
    assert {"perplexity_16", "perplexity_64", "perplexity_128", "distinct_1", "words"} <= set(metrics)
    found = read(tmp_path / "predictions.json")
    assert [entry["tokens"] for entry in found["lengths"].values()] == [1800] * 4
    assert [entry["from"] for entry in found["lengths"]["128"]["positions"]] == [1, 2, 4, 8, 16, 32, 64]
    assert len(found["texts"]) == 2
    # as plain transformers sees it
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.model_type == "relpos_gpt2"
    ids = tokenizer(VERSE * 40, return_tensors="pt")["input_ids"][0, :1920].view(-1, 128)
    labels = torch.where(torch.arange(128) % 16 == 0, -100, ids)
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=labels).loss.exp()) == pytest.approx(
            metrics["perplexity_128"], rel=1e-4
        )
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    prompt = tokenizer.decode(ids[0, :24])
    assert write(prompt, max_new_tokens=8, do_sample=False)[0]["generated_text"].startswith(prompt)
    assert "text-generation" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("kind", ["dialogues", "pairs", "meetings"])
def test_prompts_and_targets(files, tmp_path, kind):
    settings = arguments(files, tmp_path, kind, max_steps=2, limit_eval=3, generate_rows=2)
    metrics = run(settings, prepare)
    assert {"perplexity", "loss", "rouge1", "rougeL", "distinct_2"} <= set(metrics)
    found = read(tmp_path / "predictions.json")
    assert len(found) == metrics["total"] == 2
    assert (
        found[0]["references"]
        == {
            "dialogues": ["Here is tea"],
            "pairs": ["On cats.", "About cats."],
            "meetings": ["They ship."],
        }[kind]
    )
    assert "generate_rows" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_an_answer_is_learned(files, tmp_path):
    settings = arguments(
        files, tmp_path, "dialogues", max_length=48, max_target_length=16, max_steps=120, learning_rate=1e-2
    )
    metrics = run(settings, prepare)
    assert metrics["perplexity"] < 2
    assert metrics["rougeL"] > 60
    assert all(text["text"].startswith("Here is") for text in read(tmp_path / "predictions.json"))


def test_the_stock_model_cannot_be_asked_beyond_its_table(files, tmp_path, capsys):
    sizes = json.dumps({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32})
    settings = arguments(files, tmp_path, model_config=sizes, eval_lengths="64", max_steps=1, **STOCK)
    metrics = run(settings, prepare)
    assert "perplexity_64" not in metrics
    assert "the model reads at most 32 tokens: no perplexity at 64" in capsys.readouterr().out
    with pytest.raises(RunError, match="max_length=40 is more than the 32 tokens"):
        task(files, tmp_path, model_config=sizes, max_length=40, **STOCK)


def test_rows_may_be_streamed(files, tmp_path):
    for kind in ("text", "pairs"):
        made = task(files, tmp_path, kind, streaming=True)
        whole = task(files, tmp_path, kind)
        assert isinstance(made.rows, Stream)
        assert list(made.rows.read()) == list(made.rows.read()) == whole.rows


def test_texts_that_are_too_short(files, tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    for name, message in (
        ("train_file", "the texts to train on have fewer than max_length=32 tokens together"),
        ("validation_file", "the texts to evaluate on have 12 tokens, fewer than the 32 of a row"),
    ):
        with pytest.raises(RunError, match=message):
            task(files, tmp_path / "out", **{name: tmp_path / "short.txt"})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(RunError, match="there are no rows to evaluate on"):
        task(files, tmp_path / "out", "pairs", validation_file=tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "poem"], "format='poem' is not valid: it must be one of text, pairs, dialogues, meetings"),
        (["--text_end", "dot"], "text_end='dot' is not valid: it must be newline or token"),
        (["--eval_lengths", "long"], "eval_lengths='long' is not valid: give numbers of tokens, such as 256,1024"),
        (["--eval_lengths", "700"], "700 is no multiple of 512"),
        (["--eval_lengths", "1"], "eval_lengths='1' is not valid: it must be at least 2"),
        (["--format", "pairs", "--eval_lengths", "1024"], "left out unless format is text"),
        (["--format", "pairs", "--max_target_length", "512"], "max_target_length=512 is not valid"),
        (["--top_p", "0"], "top_p=0.0 is not valid: it must be more than 0 and at most 1"),
        (["--eval_length", "256"], "the flag 'eval_length' is unknown; did you mean 'eval_lengths'?"),
    ],
)
def test_wrong_usage(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["generation.py", *words])
    with pytest.raises(SystemExit) as caught:
        main(GenerationArguments, prepare, generation.__doc__)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_commands_in_the_scripts_text_parse():
    commands = [
        line for line in generation.__doc__.replace("\\\n", " ").splitlines() if "training/generation.py" in line
    ]
    assert len(commands) == 3
    for command in commands:
        assert parse_arguments(GenerationArguments, shlex.split(command)[2:])


@pytest.mark.skipif(not REAL.exists(), reason="the development data are not there")
@pytest.mark.parametrize(
    ("kind", "train", "validation", "examples"),
    [
        ("dialogues", "sgd/train.jsonl.gz", "sgd/validation.jsonl.gz", (14690, 3755)),
        ("pairs", "scitldr_a/train.jsonl.gz", "scitldr_a/dev.jsonl.gz", (1992, 619)),
        ("meetings", "qmsum/train.academic_committee.jsonl.gz", "qmsum/validation.jsonl.gz", (567, 272)),
    ],
)
def test_all_real_rows_are_read(tokenizer, kind, train, validation, examples):
    given = GenerationArguments(format=kind, train_file=str(REAL / train), validation_file=str(REAL / validation))
    found = [list(reader(given)(given.rows(part))) for part in ("train", "validation")]
    assert tuple(map(len, found)) == examples
    features = Features(tokenizer, 512, 64, tokenizer.eos_token_id)
    for example in found[1][:20]:
        row = features.row(example)
        assert len(row["input_ids"]) <= 512
        assert any(label != -100 for label in row["labels"])


@pytest.mark.skipif(not REAL.exists(), reason="the development data are not there")
def test_real_running_text(tokenizer):
    wikitext = REAL / "wikitext2" / "validation.txt.gz"
    given = GenerationArguments(train_file=str(wikitext), validation_file=str(wikitext), limit_train=50)
    texts = list(given.texts("train"))
    assert "\n".join(texts) == "\n".join(gzip.decompress(wikitext.read_bytes()).decode().split("\n")[:50])
    verse = REAL / "tiny_shakespeare" / "input.txt"
    given = GenerationArguments(train_file=str(verse), validation_share=0.1)
    assert [sum(1 for _ in given.texts(part)) for part in ("train", "validation")] == [36000, 4000]
