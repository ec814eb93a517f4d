"""The tasks on relations, from files to a saved model: heads and metrics on known answers, what is learned, and what is refused."""

import copy
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import relations
import torch
from arguments import parse_arguments
from checkpoints import RunError
from dependency_trees import BiaffineHead, DependencyTrees, best_tree
from document_relations import DocumentHead, DocumentRelations, adaptive_loss
from loop import make_accelerator
from marked_relations import MARKS, MarkedHead, MarkedRelations
from relation_model import check_encoder, load_relation_model
from relation_task import NUM_RELATIONS, relation_ids_of, tokens_of
from relations import TASKS, RelationArguments, prepare
from scores import score
from script import main, run
from sources import DataError, read_rows
from toy_qa import byte_tokenizer, save_tiny_bert, word_tokenizer, write
from toy_relations import conllu, documents, marked, trees
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2Model

import hf_relpos

torch.set_num_threads(1)

ROOT = Path(relations.__file__).parent.parent
RECIPE = ROOT / "training" / "configs" / "relations_tiny.yaml"
REAL = ROOT.parent / "shared" / "data"
T5 = ["--rel_pos", '{"type": "t5", "num_buckets": 8}', "--absolute", "drop"]
RELATION = ["--rel_pos", '["t5", {"type": "relation", "num_relations": 5}]', "--absolute", "drop", "--relation_ids"]
# peft asks for an attribute that transformers renames
renamed = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    return {
        "bert": save_tiny_bert(folder / "bert", max_position_embeddings=64),
        "marked": (write(folder / "m.jsonl", marked(96)), write(folder / "md.jsonl", marked(24, seed=1))),
        "dependencies": (
            write(folder / "t.conllu", conllu(trees(96))),
            write(folder / "td.jsonl.gz", trees(24, seed=1)),
        ),
        "documents": (write(folder / "d.jsonl", documents(64)), write(folder / "dd.jsonl", documents(12, seed=1))),
    }


def words(files, task, output, *more, **settings):
    train, dev = files[task]
    settings = {
        "config": RECIPE,
        "task": task,
        "train_file": train,
        "validation_file": dev,
        "output_dir": output,
        **settings,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(more)


def trained(files, task, output, *more, **settings):
    return run(parse_arguments(RelationArguments, words(files, task, output, *more, **settings)), prepare)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def arguments(task, *more, **settings):
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    return parse_arguments(RelationArguments, ["--task", task, *words, *more])


# what is learned, saved, and read again


@pytest.mark.parametrize(
    ("task", "arm", "least"),
    [
        ("marked", [], 95),
        ("marked", T5, 95),
        ("dependencies", T5, 95),
        pytest.param("dependencies", RELATION, 95, marks=pytest.mark.slow),
        ("documents", RELATION, 90),
        pytest.param("documents", [*T5, "--threshold", "global"], 90, marks=pytest.mark.slow),
    ],
)
def test_from_files_to_a_model_that_says_the_same_again(files, tmp_path, task, arm, least):
    metrics = trained(files, task, tmp_path, *arm, max_steps=240 if task == "marked" else 140)
    assert metrics[TASKS[task].headline] > least, metrics
    assert metrics == read(tmp_path / "metrics.json")
    card = (tmp_path / "README.md").read_text()
    assert TASKS[task].name in card
    assert TASKS[task].headline in card

    model, tokenizer = load_relation_model(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    told = arguments(task, max_length=64, **({"relation_ids": "true"} if "--relation_ids" in arm else {}))
    again = TASKS[task](told, tokenizer, model.about["labels"])
    train, dev = ([again.read(where, row, told) for where, row in read_rows(str(path))] for path in files[task])
    again.prepare_evaluation(iter(train))
    batch = [again.features(record, for_training=False) for record in dev]
    with torch.no_grad():
        evaluation = again.evaluation(dev, again.answers(model(**again.collate(batch)), batch))
    assert evaluation.metrics == metrics
    assert json.loads(json.dumps(evaluation.predictions)) == read(tmp_path / "predictions.json")
    # the encoder is one like any other
    encoder = AutoModel.from_pretrained(tmp_path)
    assert encoder.config.model_type == ("relpos_bert" if arm else "bert")
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name])


def test_a_recipe_for_each_task_and_the_commands_of_the_script_parse():
    commands = [line for line in relations.__doc__.replace("\\\n", " ").splitlines() if "training/relations.py" in line]
    assert len(commands) == 3
    tasks = set()
    for command in commands:
        given = shlex.split(command)[2:]
        given[given.index("--config") + 1] = str(ROOT / given[given.index("--config") + 1])
        tasks.add(parse_arguments(RelationArguments, given).task)
    assert tasks == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_rows_that_are_streamed_are_those_in_memory(files, tmp_path, task):
    told = parse_arguments(RelationArguments, words(files, task, tmp_path / "a", *T5))
    streamed = parse_arguments(RelationArguments, words(files, task, tmp_path / "b", *T5, "--streaming", "true"))
    made = prepare(told, make_accelerator(told))
    other = prepare(streamed, make_accelerator(streamed))
    assert list(other.rows.read()) == made.rows
    assert other.model.about == made.model.about


def test_a_limit_leaves_the_labels_of_all_rows(files, tmp_path):
    told = parse_arguments(RelationArguments, words(files, "marked", tmp_path, limit_train=2))
    made = prepare(told, make_accelerator(told))
    assert len(made.rows) == 2
    assert len(made.model.about["labels"]) == 5


def test_a_resumed_run_ends_as_the_unbroken_one(files, tmp_path):
    settings = {"max_steps": 12, "save_steps": 5, "eval_steps": 4}
    expected = trained(files, "documents", tmp_path, *T5, **settings)
    log = (tmp_path / "log.jsonl").read_text()
    told = parse_arguments(RelationArguments, words(files, "documents", tmp_path / "b", *T5, **settings))

    class Killed(Exception):
        pass

    def killed_later(arguments, accelerator):
        task = prepare(arguments, accelerator)
        weigh, steps = task.weigh, itertools.count()

        def weigh_and_die(inputs):
            if next(steps) == 7:
                raise Killed
            return weigh(inputs)

        task.weigh = weigh_and_die
        return task

    with pytest.raises(Killed):
        run(told, killed_later)
    assert trained(files, "documents", tmp_path / "b", *T5, "--resume", "true", **settings) == expected
    assert (tmp_path / "b" / "log.jsonl").read_text() == log


@renamed
@pytest.mark.parametrize("task", ["marked", "dependencies"])
def test_lora_trains_updates_head_encoding_and_marks_and_is_merged(files, tmp_path, task):
    own = ["--from_scratch", "false", "--model_config", "{}", "--tokenizer", str(files["bert"])]
    after = []
    for steps in (2, 6):
        settings = {"model": files["bert"], "lora_rank": 2, "lora_targets": "query,value", "max_steps": steps}
        trained(files, task, tmp_path / str(steps), *T5, *own, **settings)
        after.append(load_relation_model(tmp_path / str(steps)).state_dict())
    assert not any("lora" in name or "base_layer" in name or "adapter" in name for name in after[0])
    moved = {name for name in after[0] if not torch.equal(after[0][name], after[1][name])}
    assert {name for name in moved if "relpos" in name}
    assert {name for name in moved if name.startswith("head.")} == {
        name for name in after[0] if name.startswith("head.")
    }
    others = {name for name in moved if not name.startswith("head.") and "relpos" not in name}
    tokens = "encoder.embeddings.word_embeddings.weight"
    assert {name.split(".")[-2] for name in others - {tokens}} == {"query", "value"}
    assert (tokens in others) == (task == "marked")
    known = AutoModel.from_pretrained(files["bert"]).get_input_embeddings().weight
    assert torch.equal(after[1][tokens][: len(known)], known)
    assert len(after[1][tokens]) == len(known) + 4 * (task == "marked")


def test_activations_are_computed_again_with_equal_losses(files, tmp_path):
    logs = []
    for checkpointing in ("false", "true"):
        trained(files, "marked", tmp_path / checkpointing, *T5, max_steps=3, gradient_checkpointing=checkpointing)
        lines = (tmp_path / checkpointing / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["loss"] for line in lines if '"loss"' in line])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)


@pytest.mark.slow
def test_a_model_trained_in_parts_is_read_whole(files, tmp_path):
    settings = {"max_steps": 8, "group_by_length": "false"}
    expected = trained(files, "documents", tmp_path / "one", *T5, train_batch_size=16, **settings)
    given = words(files, "documents", tmp_path / "two", *T5, train_batch_size=8, **settings)
    launcher = ["--config_file", "training/accelerate/fsdp2.yaml", "--fsdp_transformer_layer_cls_to_wrap", "BertLayer"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher, "training/relations.py", *given],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [(tmp_path / one / "log.jsonl").read_text().splitlines() for one in ("one", "two")]
    losses = [[json.loads(line)["loss"] for line in log if '"loss"' in line] for log in logs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert read(tmp_path / "two" / "metrics.json") == pytest.approx(expected)
    one, two = (load_relation_model(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)


# words, tokens, relation ids


@pytest.mark.parametrize("make", [word_tokenizer, byte_tokenizer])
def test_each_word_has_its_first_token(make):
    tokenizer = make()
    sentence = ["Mira", "lives", "zq", ",", "naïve", "é", "x"]
    found = tokens_of(sentence, tokenizer, 99, "refuse", "a, line 1")
    starts = [found.word.index(number) for number in range(len(sentence))]
    assert found.first == starts
    assert starts == sorted(set(starts))
    for number, word in enumerate(sentence):
        ids = [token for token, owner in zip(found.ids, found.word, strict=True) if owner == number]
        text = tokenizer.decode(ids).strip()
        assert text.lower() == word.lower() or tokenizer.unk_token_id in ids
    assert found.ids == tokenizer(" ".join(sentence))["input_ids"]


def test_words_of_which_nothing_is_left_and_words_that_are_cut_off():
    tokenizer = word_tokenizer()
    found = tokens_of(["mira", "\x01", "lives"], tokenizer, 99, "refuse", "")
    assert found.first == [1, 1, 2]
    assert tokens_of(["mira", "lives", "in"], tokenizer, 4, "cut", "").first == [1, 2, None]
    with pytest.raises(DataError, match=r"a, line 1: 5 tokens are more than max_length=4; raise it, or cut with --too"):
        tokens_of(["mira", "lives", "in"], tokenizer, 4, "refuse", "a, line 1")
    with pytest.raises(DataError, match="word 2 is empty"):
        tokens_of(["mira", " "], tokenizer, 4, "refuse", "")
    with pytest.raises(DataError, match="leaves nothing of the text"):
        tokens_of(["\x01"], tokenizer, 4, "refuse", "")


def test_relation_ids():
    generator = torch.Generator().manual_seed(0)
    entities, sentences = (torch.randint(0, 4, (3, 12), generator=generator) for _ in range(2))
    found = relation_ids_of(entities, sentences)
    for b, i, j in itertools.product(range(3), range(12), range(12)):
        same = bool(sentences[b, i] == sentences[b, j] and sentences[b, i] > 0)
        expected = int(same)
        if entities[b, i] and entities[b, j]:
            expected = 4 if entities[b, i] == entities[b, j] else 2 if same else 3
        assert found[b, i, j] == expected
    assert set(found.flatten().tolist()) == set(range(NUM_RELATIONS))


def test_relation_ids_of_a_document(files):
    told = arguments("documents", "--relation_ids", "true")
    row = documents(1)[0]
    task = DocumentRelations(told, word_tokenizer(), ["P1", "P2"])
    batch = task.collate([task.features(task.read("", row, told), for_training=True)])
    tokens = task.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    mark = [place for place, token in enumerate(tokens) if token == "*"]
    town = batch["mentions"][0, 1].tolist()
    assert [tokens[place + 1] for place in town] == [row["sents"][0][3]] * 2
    assert set(town) < set(mark)
    assert len(mark) == 10
    ids = batch["relation_ids"][0]
    assert ids[town[0], town[1]] == 4
    assert ids[town[0], mark[0]] == 2
    assert ids[town[1], mark[0]] == 3
    assert ids[town[0] + 3, mark[0]] == 1
    assert not ids[0].any()


# trees


def every_tree(words):
    for heads in itertools.product(range(words + 1), repeat=words):
        if heads.count(0) == 1 and all(reaches_root(heads, node) for node in range(1, words + 1)):
            yield heads


def reaches_root(heads, node):
    for _ in range(len(heads)):
        if node:
            node = heads[node - 1]
    return node == 0


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_the_best_tree_is_the_best_of_all(length):
    candidates = list(every_tree(length))
    assert len(candidates) == length ** (length - 1)
    for seed in range(25):
        scores = torch.randn(length, length + 1, generator=torch.Generator().manual_seed(seed)) * 3
        # the root is liked by all in some
        scores[:, 0] += 4 * (seed % 2)
        best = max(candidates, key=lambda heads: sum(scores[i, head].item() for i, head in enumerate(heads)))
        assert best_tree(scores.numpy()) == list(best)


def test_longer_trees_are_as_good_as_those_of_networkx():
    networkx = pytest.importorskip("networkx")
    for seed in range(10):
        scores = torch.rand(12, 13, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # so that one word hangs on the root there too
        scores[:, 0] -= 100
        graph = networkx.DiGraph()
        for word, head in itertools.product(range(12), range(13)):
            if head != word + 1:
                graph.add_edge(head, word + 1, weight=scores[word, head].item())
        expected = networkx.maximum_spanning_arborescence(graph).size(weight="weight")
        heads = best_tree(scores.numpy())
        assert sum(scores[word, head].item() for word, head in enumerate(heads)) == pytest.approx(expected)
        assert all(reaches_root(heads, node) for node in range(1, 13))


def test_biaffine_scores_and_loss_are_the_formulas():
    head = BiaffineHead(width=6, labels=3, size=8, dropout=0.0)
    states = torch.randn(2, 9, 6)
    starts, counts = torch.tensor([[1, 3, 4], [2, 5, 0]]), torch.tensor([3, 2])
    heads, labels = torch.tensor([[2, 0, 2], [0, 1, 0]]), torch.tensor([[1, 0, 2], [0, 1, -100]])
    open_ = head(states, starts, counts)
    loss = 0.0
    for b, i in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        own = states[b, starts[b, i]]
        possible = [head.root, *(states[b, starts[b, j]] for j in range(counts[b]))]
        one = torch.ones(1)
        arcs = torch.stack(
            [torch.cat((head.arc_word(own), one)) @ head.arc @ head.arc_head(other) for other in possible]
        )
        torch.testing.assert_close(open_.logits[b, i, : len(possible)], arcs)
        assert (open_.logits[b, i, len(possible) :] < -1e8).all()
        other = possible[heads[b, i]]
        named = torch.stack(
            [torch.cat((head.label_word(own), one)) @ w @ torch.cat((head.label_head(other), one)) for w in head.label]
        )
        torch.testing.assert_close(open_.label_logits[b, i, heads[b, i]], named)
        loss = loss - arcs.log_softmax(0)[heads[b, i]] - named.log_softmax(0)[labels[b, i]]
    torch.testing.assert_close(head(states, starts, counts, heads, labels).loss, loss / 5)


def test_scores_of_trees_with_and_without_punctuation_and_of_cut_ones():
    told = arguments("dependencies", too_long="cut", max_length=5)
    record = DependencyTrees.read(
        "",
        trees(1, seed=3)[0]
        | {
            "tokens": ["mira", "lives", "in", "."],
            "head": [2, 0, 2, 2],
            "deprel": ["nsubj:human", "root", "obj", "punct"],
        },
        told,
    )
    task = DependencyTrees(told, word_tokenizer(), ["nsubj:human", "obj", "punct", "root"])
    row = task.features(record, for_training=True)
    assert row["starts"] == [1, 2, 3]
    assert (row["heads"], row["labels"]) == ([2, 0, 2], [0, 3, 1])
    whole = task.evaluation([record], [([2, 0, 1, 2], ["nsubj", "root", "obj", "punct"])]).metrics
    assert whole == {
        "uas": 75,
        "las": 75,
        "words": 4,
        "las_subtypes": 50,
        "uas_no_punct": pytest.approx(200 / 3),
        "las_no_punct": pytest.approx(200 / 3),
    }
    cut = task.evaluation([record], [([2, 0, 2], ["nsubj:human", "root", "obj"])])
    assert cut.metrics["uas"] == 75
    assert cut.metrics["las_no_punct"] == 100
    assert cut.predictions == [{"head": [2, 0, 2, -1], "deprel": ["nsubj:human", "root", "obj", "_"]}]
    beyond = DependencyTrees.read(
        "",
        {"tokens": ["mira", "lives", "in", "."], "head": [4, 4, 4, 0], "deprel": ["obj", "obj", "obj", "root"]},
        told,
    )
    assert task.features(beyond, for_training=True)["labels"] == [-100, -100, -100]


def test_the_best_heads_of_single_words(files):
    told = arguments("dependencies", decoding="greedy")
    task = DependencyTrees(told, None, ["a", "b"])
    logits = torch.tensor([[[0.0, 9.0, 5.0], [1.0, 2.0, 9.0]]])
    labels = torch.zeros(1, 2, 3, 2)
    labels[0, 0, 2, 1] = 1
    batch = [{"starts": [0, 1]}]
    assert task.answers(relations_output(logits, labels), batch) == [([2, 1], ["b", "a"])]
    told.decoding = "tree"
    assert task.answers(relations_output(logits, labels), batch) == [([2, 0], ["b", "a"])]


def relations_output(logits, label_logits=None):
    from relation_model import RelationOutput

    return RelationOutput(logits=logits, label_logits=label_logits)


# documents


def test_the_adaptive_loss_is_the_papers():
    scores, labels = torch.randn(5, 4, requires_grad=True), torch.rand(5, 3) < 0.5
    labels[0] = False
    labels[1] = True
    expected = []
    for row, holds in zip(scores, labels, strict=True):
        positive = [r + 1 for r in range(3) if holds[r]]
        negative = [r + 1 for r in range(3) if not holds[r]]
        loss = -(row[0].exp() / row[[0, *negative]].exp().sum()).log()
        for r in positive:
            loss = loss - (row[r].exp() / row[[0, *positive]].exp().sum()).log()
        expected.append(loss)
    found = adaptive_loss(scores, labels)
    torch.testing.assert_close(found, torch.stack(expected))
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), scores)
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("adaptive", [True, False])
def test_scores_of_pairs_are_the_formula(adaptive):
    head = DocumentHead(width=6, labels=3, size=8, block=4, dropout=0.0, adaptive=adaptive)
    states = torch.randn(1, 9, 6)
    mentions = torch.tensor([[[1, 4], [2, -1], [-1, -1]]])
    logits = head(states, mentions).logits
    assert logits.shape == (1, 3, 3, 3)
    assert logits.isfinite().all()
    one, two = states[0, [1, 4]].logsumexp(0), states[0, 2]
    z, y = torch.tanh(head.source(one)), torch.tanh(head.target(two))
    scores = torch.stack(
        [sum(z[4 * k : 4 * k + 4] @ w[k] @ y[4 * k : 4 * k + 4] for k in range(2)) for w in head.weight]
    )
    expected = scores[1:] - scores[0] if adaptive else scores
    torch.testing.assert_close(logits[0, 0, 1], expected)
    pairs = torch.zeros(1, 3, 3, dtype=torch.bool)
    pairs[0, 0, 1] = True
    labels = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    labels[0, 0, 1, 2] = True
    loss = head(states, mentions, pairs, labels).loss
    if adaptive:
        torch.testing.assert_close(loss, adaptive_loss(scores[None], labels[0, :1, 1])[0])
    else:
        signs = torch.tensor([1.0, 1.0, -1.0])
        torch.testing.assert_close(loss, torch.log1p((signs * scores).exp()).sum())
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_f1_of_documents_and_without_what_training_tells():
    wanted = [
        {"h": [0, 1], "t": [1, 0], "r": ["P1", "P2"], "known": [True, False]},
        {"h": [2], "t": [0], "r": ["P1"], "known": [False]},
    ]
    found = [{"h": [0, 0], "t": [1, 1], "r": ["P1", "P2"]}, {"h": [2], "t": [0], "r": ["P1"]}]
    result = score("document_relations", found, wanted)
    assert result["precision"] == result["recall"] == result["f1"] == pytest.approx(200 / 3)
    # one of two that training does not tell is right
    assert result["ign_f1"] == pytest.approx(100 * 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert result["facts"] == 3
    none = [{"h": [], "t": [], "r": []}] * 2
    assert score("document_relations", none, wanted)["f1"] == 0


def test_facts_are_known_by_the_names_of_any_mention():
    told = arguments("documents")
    task = DocumentRelations(told, word_tokenizer(), ["P1", "P2"])
    train, dev = documents(1)[0], documents(1)[0]
    dev["vertexSet"][0][0]["name"] = "somebody"
    train, dev = task.read("", train, told), task.read("", dev, told)
    task.prepare_evaluation(iter([train]))
    metrics = task.evaluation([dev], [dev.facts]).metrics
    assert metrics["f1"] == 100
    # both facts of the renamed person are new
    assert metrics["ign_f1"] == 100
    nothing_new = task.evaluation([train], [train.facts]).metrics
    assert (nothing_new["f1"], nothing_new["ign_f1"]) == (100, 0)


def test_entities_that_are_cut_off_have_no_pairs():
    told = arguments("documents", max_length=9, too_long="cut")
    task = DocumentRelations(told, word_tokenizer(), ["P1", "P2"])
    record = task.read("", documents(1)[0], told)
    row = task.features(record, for_training=True)
    assert [len(mentions) for mentions in row["mentions"]] == [1, 1, 0, 0]
    batch = task.collate([row])
    assert batch["pairs"].sum() == 2
    output = relations_output(torch.ones(1, 4, 4, 2))
    assert task.answers(output, [row])[0] == [(0, 1, "P1"), (0, 1, "P2"), (1, 0, "P1"), (1, 0, "P2")]
    told.max_length = 5
    assert task.features(record, for_training=True) is None
    row = task.features(record, for_training=False)
    assert task.answers(output, [row]) == [[]]


# marked entities


def test_states_of_the_opening_marks_are_read():
    told = arguments("marked")
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    task = MarkedRelations(told, tokenizer, ["a", "b"])
    row = task.features(
        task.read("", {"text": "in <e2>old</e2> <e1>mira</e1>", "relation": "a"}, told), for_training=True
    )
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert (tokens[row["first"]], tokens[row["second"]]) == ("<e1>", "<e2>")
    head = MarkedHead(width=6, labels=2, size=4, dropout=0.0)
    states = torch.randn(1, len(tokens), 6)
    pair = torch.cat((states[0, row["first"]], states[0, row["second"]]))
    output = head(states, **task.targets([row]))
    expected = head.out(torch.tanh(head.dense(pair)))
    torch.testing.assert_close(output.logits[0], expected)
    torch.testing.assert_close(output.loss, -expected.log_softmax(0)[0])


# refusals


def changed(row, **changes):
    row = copy.deepcopy(row)
    for name, value in changes.items():
        row[name] = value
    return row


MARKED, TREE, DOCUMENT = marked(1)[0], trees(1)[0], documents(1)[0]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("marked", {"relation": "a"}, "the field 'text' is missing"),
        ("marked", changed(MARKED, relation=None), "the field 'relation' is missing"),
        ("marked", changed(MARKED, relation=[1]), "the field 'relation' is list, not text or a number"),
        ("marked", changed(MARKED, text="<e1>a</e1> b"), "each of <e1> </e1> <e2> </e2> once, but has <e1> </e1>"),
        ("marked", changed(MARKED, text="a b"), "but has none"),
        ("marked", changed(MARKED, text="</e1>a<e1> <e2>b</e2>"), "</e1> stands before <e1>"),
        ("dependencies", changed(TREE, head=[0]), "tokens, 1 heads and"),
        ("dependencies", changed(TREE, tokens=[], head=[], deprel=[]), "0 tokens, 0 heads and 0 labels"),
        (
            "dependencies",
            {"tokens": ["a"], "head": [None], "deprel": ["root"]},
            "member 0 of the field 'head' is NoneType",
        ),
        (
            "dependencies",
            {"tokens": ["a"], "head": [1], "deprel": ["root"]},
            "word 1 has the head 1, but must have another",
        ),
        ("dependencies", {"tokens": ["a"], "head": [2], "deprel": ["root"]}, "word 1 has the head 2"),
        (
            "dependencies",
            {"tokens": list("abc"), "head": [2, 1, 0], "deprel": ["x"] * 3},
            "no tree: the words 1, 2 hang on each other",
        ),
        ("documents", changed(DOCUMENT, sents=[[]]), "the document has no words"),
        ("documents", changed(DOCUMENT, sents=[["a", 1]]), "sentence 0 has 1 for a word"),
        ("documents", changed(DOCUMENT, vertexSet=[[]]), "entity 0 has no mention"),
        (
            "documents",
            changed(DOCUMENT, vertexSet=[[{"name": "x"}]]),
            "entity 0: a mention must have name, sent_id and pos",
        ),
        (
            "documents",
            changed(DOCUMENT, vertexSet=[[{"name": "x", "sent_id": 0, "pos": [4, 9]}]]),
            "entity 0: the mention 'x' at [4, 9] lies outside of sentence 0",
        ),
        ("documents", changed(DOCUMENT, labels=[{"h": 0, "t": 4, "r": "P1"}]), "two of the 4 entities"),
        ("documents", changed(DOCUMENT, labels=[{"h": 0, "t": 0, "r": "P1"}]), "two of the 4 entities"),
        ("documents", changed(DOCUMENT, labels=[{"h": 0, "r": "P1"}]), "a label must have h and t"),
        ("documents", changed(DOCUMENT, labels=["P1"]), "member 0 of the field 'labels' is str, not dict"),
    ],
)
def test_malformed_rows_are_named(files, tmp_path, task, row, message):
    good = {"marked": MARKED, "dependencies": TREE, "documents": DOCUMENT}[task]
    path = write(tmp_path / "bad.jsonl", [good, row])
    with pytest.raises(DataError) as caught:
        trained({**files, task: (files[task][0], path)}, task, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)


@pytest.fixture
def launch(monkeypatch, capsys):
    """Runs the script in this process; gives its exit status and the last line of its errors."""

    def launched(*given):
        monkeypatch.setattr(sys, "argv", ["relations.py", *map(str, given)])
        status = 0
        try:
            main(RelationArguments, prepare, relations.__doc__)
        except SystemExit as error:
            status = error.code
        return status, (capsys.readouterr().err.splitlines() or [""])[-1]

    return launched


def test_data_and_models_that_cannot_be_used(files, tmp_path, launch):
    single = write(tmp_path / "single.jsonl", [MARKED] * 3)
    empty = write(tmp_path / "empty.jsonl", "")
    short = write(tmp_path / "short.jsonl", marked(2))
    bare = write(tmp_path / "bare.jsonl", [changed(DOCUMENT, labels=[])])
    output = tmp_path / "out"
    for task, changes, more, message in (
        ("marked", (single, None), [], f"{single}: all rows have the label {MARKED['relation']!r}"),
        ("marked", (empty, None), [], f"{empty}: it has no row with a label"),
        ("documents", (bare, None), [], f"{bare}: it has no row with a label"),
        ("marked", (None, empty), [], f"{empty}: there are no rows to evaluate on"),
        ("marked", (short, None), [], "no training row has the label"),
        ("marked", (None, None), ["--max_length", "5"], "line 1: "),
        ("marked", (None, None), ["--max_length", "5", "--too_long", "cut"], "an entity is cut off at max_length=5"),
        ("marked", (None, None), ["--max_length", "65"], "max_length=65 is more than the 64 tokens"),
        ("marked", (None, None), [*T5, "--relation_ids"], "the model does not read relation_ids"),
        ("marked", (None, None), ["--relation_ids"], "the model does not read relation_ids"),
        ("marked", (None, None), RELATION[:-1], "the model needs --relation_ids true"),
        (
            "marked",
            (None, None),
            ["--rel_pos", '{"type": "relation", "num_relations": 3}', "--absolute", "keep", "--relation_ids"],
            "must be 0 to 2",
        ),
        (
            "marked",
            (None, None),
            ["--model", "gpt2", "--model_config", '{"n_layer": 1, "n_embd": 8, "n_head": 2}', "--tokenizer", "bpe"],
            "gpt2 reads from left to right",
        ),
    ):
        pair = tuple(new or old for new, old in zip(changes, files[task], strict=True))
        status, error = launch(*words({**files, task: pair}, task, output, *more))
        assert status == 1, more
        assert error.startswith("relations.py: ")
        assert message in error, error
        assert not output.exists() or not list(output.iterdir())


def test_labels_unseen_in_training_can_count_as_errors(files, tmp_path, capsys):
    short = write(tmp_path / "short.jsonl", [row for row in marked(40) if row["relation"] != "Other"])
    metrics = trained(
        {**files, "marked": (short, files["marked"][1])}, "marked", tmp_path / "out", max_steps=1, unseen_labels="miss"
    )
    assert metrics["total"] == 24
    assert "labels of the evaluation data occur in no training row and are missed: Other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--task", "trees"], "task='trees' is not valid: it must be one of marked, dependencies, documents"),
        (["--tsk", "marked"], "did you mean 'task'?"),
        (["--too_long", "skip"], "too_long='skip' is not valid: it must be one of refuse, cut"),
        (["--task", "documents", "--block_size", "7"], "it must be a divisor of head_size=256"),
        (["--head_dropout", "1"], "head_dropout=1.0 is not valid"),
        (["--threshold", "none"], "one of adaptive, global"),
    ],
)
def test_wrong_usage(launch, given, message):
    status, error = launch(*given)
    assert status == 2
    assert message in error


def test_which_encoders_see_what_follows():
    size = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    check_encoder(BertModel(BertConfig(**size)), None)
    with pytest.raises(RunError, match="reads from left to right"):
        check_encoder(BertModel(BertConfig(**size, is_decoder=True)), None)
    with pytest.raises(RunError, match="reads from left to right"):
        check_encoder(GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)), None)
    free = hf_relpos.RelPosGPT2Config(rel_pos="t5", vocab_size=40, n_embd=16, n_layer=1, n_head=2, is_causal=False)
    check_encoder(hf_relpos.RelPosGPT2Model(free), None)


def test_a_folder_without_a_head(files):
    with pytest.raises(RunError, match="holds no head"):
        load_relation_model(files["bert"])


# the real sets


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_real_sets_are_read_and_made_features(task):
    names = {
        "marked": ("semeval2010_task8/train.jsonl.gz", "semeval2010_task8/validation.jsonl.gz"),
        "dependencies": ("ud_english_ewt/en_ewt-ud-train.conllu.gz", "ud_english_ewt/en_ewt-ud-dev.conllu.gz"),
        "documents": ("redocred/dev.jsonl.gz",),
    }[task]
    paths = [Path(os.environ.get("HF_RELPOS_DATA", REAL)) / name for name in names]
    if not all(path.exists() for path in paths):
        pytest.skip(f"the data set is not there: {paths[0]}")
    told = arguments(task, max_length=1024)
    kind = TASKS[task]
    records = [[kind.read(where, row, told) for where, row in read_rows(str(path))] for path in paths]
    assert [len(part) for part in records] == {
        "marked": [7000, 1000],
        "dependencies": [12544, 2001],
        "documents": [500],
    }[task]
    labels = sorted({label for record in records[0] for label in kind.labels_of(record)})
    assert len(labels) == {"marked": 19, "dependencies": 51, "documents": 95}[task]
    assert {label for record in records[-1] for label in kind.labels_of(record)} <= set(labels)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(list(kind.special_tokens), special_tokens=True)
    prepared = kind(told, tokenizer, labels)
    if task == "dependencies":
        # the JSON lines beside it hold the same
        same = [kind.read(where, row, told) for where, row in read_rows(str(paths[1].parent / "dev.jsonl.gz"))]
        assert [(one.words, one.heads, one.labels) for one in same] == [
            (one.words, one.heads, one.labels) for one in records[1]
        ]
    model = prepared.head(8)
    for start in range(0, 40, 8):
        told.max_length, told.too_long = 1024, "cut"
        rows = [prepared.features(record, for_training=True) for record in records[-1][start : start + 8]]
        batch = prepared.collate(rows)
        targets = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
        states = torch.randn(*batch["input_ids"].shape, 8)
        assert model(states, **targets).loss.isfinite()
