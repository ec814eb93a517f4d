"""Fitting an encoding to what a model does with positions of its own: known functions of distance are found again, the rest comes nearer."""

import gzip
import json

import families
import pytest
import torch
from families import DECODERS, FAMILIES, WORDS, host_config, randomise, save_source, save_text
from transformers import AutoModel, BertForMaskedLM, BertTokenizer

import hf_relpos
from hf_relpos.conversion.advise import candidates
from hf_relpos.conversion.carried import attention_modules
from hf_relpos.conversion.convert import convert_checkpoint
from hf_relpos.conversion.distance_form import DistanceForm, by_distance
from hf_relpos.conversion.fitting import fit_model
from hf_relpos.conversion.folding import tokens_with_a_place
from hf_relpos.conversion.projection import distance_table
from hf_relpos.conversion.texts import FittingTexts, TokenStream, fitting_texts, read_text
from hf_relpos.encodings.build import fitting_value
from hf_relpos.encodings.options import Host
from hf_relpos.models.families import host_class

LENGTH = 16


def texts_of(length=LENGTH, rows=24, seed=0):
    """Random ids in texts of three lengths, as a fit reads them."""
    ids = families.tokens(1, rows * length, seed)[0].tolist()
    stream = TokenStream(ids, [], [])
    batches = [stream.windows(size, rows // 2, 0) for size in (length, length // 2, length // 4)]
    return FittingTexts(batches, batches, stream, length)


def table_model(family, rel_pos, seed=0, content=0.0):
    """A model whose scores are a function of distance, and ``content`` times those of its tokens."""
    made = families.model(family, rel_pos)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".relpos." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            elif any(part in name for part in (".query.", "c_attn")):
                # scores come from queries: in GPT-2's fused weight the first third
                width = made.config.hidden_size
                if "c_attn" in name:
                    parameter[..., :width] *= content
                else:
                    parameter *= content
    return made


def fitted_tables(model, size):
    """The table of each layer ``[H, N]``, its mean taken out: the softmax does not see it."""
    found = [distance_table([module.relpos], size).detach() for module in attention_modules(model.base_model)]
    if model.config.model_type.endswith("gpt2"):
        found = [table[:, size - 1 :] for table in found]
    return [table - table.mean(-1, keepdim=True) for table in found]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("content", [0.0, 0.3])
def test_a_known_function_of_distance_is_found_again(family, content):
    known = {"type": "scalar", "max_distance": LENGTH - 1}
    original = table_model(family, known, content=content)
    converted = table_model(family, known, seed=1, content=content)
    fit = fit_model(original, converted, texts_of(), passes=8, damping=1e-8)
    for found, true in zip(fitted_tables(converted, LENGTH), fitted_tables(original, LENGTH), strict=True):
        torch.testing.assert_close(found, true, atol=1e-4, rtol=0)
    for layer in fit.layers:
        assert min(layer.explained) > 1 - 1e-6
        assert min(layer.invariant) > 1 - 1e-3
        assert max(layer.divergence) < 1e-8
        assert min(layer.divergence_without) > 1e-2
    ids = families.tokens(2, LENGTH, seed=5)
    torch.testing.assert_close(converted(ids).logits, original(ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "rel_pos",
    [
        {"type": "t5", "num_buckets": 8, "max_distance": 16, "share_layers": False},
        {"type": "t5", "num_buckets": 8, "max_distance": 16, "share_layers": True},
        {"type": "sinusoidal_bias", "dim": 4},
        [{"type": "scalar", "max_distance": 6, "heads": [0, 2]}, {"type": "rope"}],
    ],
    ids=["buckets", "shared", "waves", "some-heads"],
)
def test_linear_encodings_are_found_again(rel_pos):
    original, converted = (table_model("bert", rel_pos, seed, content=0.3) for seed in (0, 1))
    fit = fit_model(original, converted, texts_of(), passes=8, damping=1e-8)
    assert all(max(layer.divergence) < 1e-6 for layer in fit.layers)


@pytest.mark.parametrize("rel_pos", ["kerple_log", "tisa", "relative_key_query", "log_cpb"])
def test_other_encodings_come_nearer(rel_pos):
    """Those whose parameters enter in another way, or whose scores depend on content."""
    value = fitting_value(rel_pos)
    original, converted = (table_model("bert", value, seed, content=0.3) for seed in (0, 1))
    with torch.no_grad():
        for module in converted.modules():
            if isinstance(module, hf_relpos.Encoding):
                module.reset_parameters()
    fit = fit_model(original, converted, texts_of())
    first = fit.layers[0]
    assert sum(first.divergence) < 0.5 * sum(first.divergence_without)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    """Positions of its own, a table or angles: attention comes nearer, and what comes out with it."""
    head = "CausalLM" if family in DECODERS else "MaskedLM"
    stock = randomise(host_class(hf_relpos.auto_class(family, head))(host_config(family)))
    state = stock.state_dict()

    def load(rel_pos, absolute):
        made = hf_relpos.auto_class(family, head)(families.config(family, rel_pos, absolute)).eval()
        made.load_state_dict({key: value for key, value in state.items() if key in made.state_dict()}, strict=False)
        return made

    original, dropped, converted = load("none", "keep"), load("none", "drop"), load(fitting_value("scalar"), "drop")
    texts = texts_of()
    fit = fit_model(original, converted, texts)
    for layer in fit.layers:
        assert sum(layer.divergence) < sum(layer.divergence_without)
    ids = texts.fit[0]
    with torch.no_grad():
        wanted, naive, found = (model.base_model(ids)[0].mean(1) for model in (original, dropped, converted))
    assert torch.cosine_similarity(found, wanted).mean() > torch.cosine_similarity(naive, wanted).mean() - 0.01


def test_sums_by_distance():
    pairs = torch.randn(2, 5, 5)
    sums = by_distance(pairs)
    for place, distance in enumerate(range(-4, 5)):
        torch.testing.assert_close(sums[:, place], pairs.diagonal(-distance, -2, -1).sum(-1))


def test_the_form_is_the_divergence_to_second_order():
    torch.manual_seed(0)
    size = 6
    scores = torch.randn(3, 2, size, size).double()
    table = torch.zeros(2, 2 * size - 1, dtype=torch.float64, requires_grad=True)
    index = torch.arange(size)[:, None] - torch.arange(size) + size - 1

    def divergence(change):
        moved = (scores + change[:, index]).log_softmax(-1)
        target = scores.log_softmax(-1)
        return (target.exp() * (target - moved)).sum()

    form = DistanceForm.empty(2, size)
    form.add(scores, scores + table.detach()[:, index], near=True)
    hessian = torch.autograd.functional.hessian(divergence, table)
    for head in range(2):
        torch.testing.assert_close(form.bend(head), hessian[head, :, head], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(form.gradient, -torch.autograd.grad(divergence(table), table)[0], atol=1e-8, rtol=0)


def test_tokens_with_a_place():
    batches = [torch.tensor([[7, 3, 4, 8], [7, 4, 5, 8]]), torch.tensor([[7, 9, 8]])]
    assert tokens_with_a_place(batches) == {7: 0}
    assert tokens_with_a_place([torch.tensor([[7, 7, 4]])]) == {4: 2}


@pytest.mark.parametrize(
    ("rel_pos", "reason"),
    [
        ({"type": "rope"}, "it has no parameters"),
        ({"type": "alibi"}, "it has no parameters"),
        ({"type": "shaw", "max_distance": 4}, "adds learned vectors to the values"),
        ({"type": "relation", "num_relations": 3}, "relations that raw text does not have"),
    ],
)
def test_what_cannot_be_fitted(rel_pos, reason):
    original, converted = families.model("bert", "none", "keep"), families.model("bert", rel_pos)
    with pytest.raises(ValueError, match=reason):
        fit_model(original, converted, texts_of())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_checkpoint_is_fitted(family, tmp_path):
    source, text = save_source(tmp_path / "source", family), save_text(tmp_path / "text.txt")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    report = convert_checkpoint(str(source), tmp_path / "out", rel_pos="t5", fit=text, fit_tokens=2000)
    assert report.absolute == "drop"
    assert report.fit.rel_pos["share_layers"] is False
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    written = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert written["rel_pos"] == report.rel_pos
    assert len(written["layers"]) == 2
    assert len(written["layers"][0]["explained"]) == 4
    for length, cosine in written["fitted"]["pooled"].items():
        assert cosine > written["dropped"]["pooled"][length]
    assert set(written["fitted"]["beyond"]) == {"48", "96", "192"}
    assert bool(written["fitted"]["perplexity"]) == (family == "gpt2")
    assert "conversion-tables.png" in (tmp_path / "out" / "conversion.md").read_text()
    assert (tmp_path / "out" / "conversion-explained.png").stat().st_size > 1000
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Conversion" in card
    assert "without training" in card
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.isfinite(loaded(families.tokens(1, 60))[0]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "text.txt"]


def test_advice(tmp_path, monkeypatch):
    source, text = save_source(tmp_path / "source"), save_text(tmp_path / "text.txt")
    monkeypatch.setattr(
        "hf_relpos.conversion.advise.candidates", lambda host: [fitting_value("t5"), fitting_value("alibi")]
    )
    told = []
    report = convert_checkpoint(
        str(source), tmp_path / "out", rel_pos="auto", fit=text, fit_tokens=2000, progress=told.append
    )
    tried = report.fit.candidates
    assert [one.rel_pos["type"] for one in tried].count(report.rel_pos["type"]) == 1
    assert tried[0].rel_pos == report.rel_pos
    assert tried[0].rank_value >= tried[1].rank_value
    assert "Encodings that were tried" in (tmp_path / "out" / "conversion.md").read_text()
    assert any("tried" in message for message in told)


def test_candidates_are_methods_of_distance():
    for causal in (False, True):
        names = {value["type"] for value in candidates(Host(4, 8, 32, 24, causal))}
        assert names >= {"t5", "scalar", "kerple_log", "alibi", "sinusoidal_bias"}
        assert all(hf_relpos.encoding_card(name).depends_on == "distance" for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rel_pos": None}, "rel_pos is missing"),
        ({"absolute": "keep"}, "absolute='keep' is not valid with fit"),
        ({"positions_from": "x"}, "both would give"),
        ({"fit_length": 25}, "fit_length=25 is not valid: it must be between 8 and 24"),
        ({"fit": []}, "the text to fit on is empty"),
        ({"fit": ["w1 w2"]}, "has 2 tokens, but at least 192 are needed"),
        ({"rel_pos": "rope"}, "cannot be fitted: it has no parameters"),
        ({"rel_pos": "t6"}, "unknown rel_pos type 't6'"),
        ({"fit": "missing.txt"}, "missing.txt does not exist"),
        ({"rel_pos": "auto", "fit": None}, "needs text to fit on"),
    ],
)
def test_bad_input_writes_nothing(arguments, message, tmp_path):
    source = save_source(tmp_path / "source")
    values = {"rel_pos": "t5", "fit": ["w1 w2 " * 2000], **arguments}
    with pytest.raises((ValueError, OSError), match=message):
        convert_checkpoint(str(source), tmp_path / "out", **values)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_without_tokenizer(tmp_path):
    randomise(BertForMaskedLM(host_config("bert"))).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"has no tokenizer|does not know 100 % of the text"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "out", rel_pos="t5", fit=["w1 w2 " * 200])


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    source, text = save_source(tmp_path / "source"), save_text(tmp_path / "text.txt")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(hf_relpos.RelPosBertForMaskedLM, "save_pretrained", fail)
    for target in (tmp_path / "out", tmp_path / "empty"):
        if target.name == "empty":
            target.mkdir()
        with pytest.raises(OSError, match="disk full"):
            convert_checkpoint(str(source), target, rel_pos="t5", fit=text, fit_tokens=500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "source", "text.txt"]
    assert not any((tmp_path / "empty").iterdir())


def test_text_is_read_from_files_and_folders(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "three"}\n')
    (tmp_path / "other.csv").write_text("no")
    assert "".join(read_text(tmp_path)) == "one\ntwothree"
    assert list(read_text(["x"])) == ["x"]
    (tmp_path / "c.jsonl").write_text('{"label": 1}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl cannot be read as text, line 1: it has no string"):
        list(read_text(tmp_path / "c.jsonl"))
    with pytest.raises(ValueError, match=r"must end in \.txt"):
        list(read_text(tmp_path / "other.csv"))
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no text"):
        list(read_text(tmp_path / "none"))


def test_texts_are_disjoint(tmp_path):
    source = save_source(tmp_path / "source")
    tokenizer = BertTokenizer.from_pretrained(str(source))
    texts = fitting_texts([" ".join(WORDS) + "\n"] * 40, tokenizer, length=24, tokens=1200)
    assert 900 < texts.tokens <= 1200
    assert {ids.shape[1] for ids in texts.fit} == {6, 12, 24}
    assert {ids.shape[1] for ids in texts.unseen} == {6, 12, 24}
    assert all(bool((ids[:, 0] == 2).all() and (ids[:, -1] == 3).all()) for ids in texts.fit)
    assert len(texts.long.ids) > 8 * 22
