"""The models among the tools that transformers' users have: Trainer, PEFT, pipelines."""

import pytest
import torch
from families import config, randomise
from safetensors.torch import load_file
from toy_qa import byte_tokenizer, word_tokenizer
from toy_training import toy_collate, toy_model, toy_rows
from transformers import Trainer, TrainerCallback, TrainingArguments, pipeline

import hf_relpos

torch.set_num_threads(1)


def trainer(folder, model=None, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"max_steps": 24, "save_strategy": "no", **settings},
    )
    model = toy_model() if model is None else model
    return Trainer(model=model, args=arguments, data_collator=toy_collate, train_dataset=toy_rows(64))


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def logits(model):
    model.eval()
    with torch.no_grad():
        output = model(**{name: value for name, value in toy_collate(toy_rows(6, seed=3)).items() if "pos" not in name})
    return torch.stack((output.start_logits, output.end_logits))


@pytest.mark.parametrize("rel_pos", [{"type": "t5"}, {"type": "shaw", "max_distance": 4}], ids=["t5", "shaw"])
def test_trainer_trains_saves_and_the_folder_loads_bit_equal(tmp_path, rel_pos):
    model = toy_model(dropout=0.0, rel_pos=rel_pos)
    before = {name: value.clone() for name, value in model.state_dict().items() if "relpos" in name}
    assert before
    run = trainer(tmp_path / "run", model, max_steps=40)
    run.train()
    assert len(losses(run)) == 40
    assert sum(losses(run)[-5:]) < 0.6 * sum(losses(run)[:5])
    assert all(not torch.equal(model.state_dict()[name], value) for name, value in before.items())
    run.save_model(tmp_path / "saved")
    for cls in (hf_relpos.RelPosBertForQuestionAnswering, hf_relpos.auto_class("bert", "QuestionAnswering")):
        assert torch.equal(logits(cls.from_pretrained(tmp_path / "saved")), logits(run.model))
    # the code goes along with what Trainer saves, too
    assert list((tmp_path / "saved").glob("*.py"))


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_trainer_resumes_from_its_checkpoint(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 6, "max_steps": 14}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    stopped = trainer(tmp_path / "broken", **settings)
    stopped.add_callback(StopAfter(8))
    stopped.train()
    assert stopped.state.global_step == 8
    resumed = trainer(tmp_path / "broken", toy_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-6"))
    assert losses(resumed) == losses(whole)
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def lora(model):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = peft.LoraConfig(
        task_type="QUESTION_ANS", r=4, target_modules=["query", "value"], modules_to_save=["relpos", "qa_outputs"]
    )
    return peft.get_peft_model(model, settings)


# peft asks for an attribute that transformers renames
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "rel_pos",
    [
        {"type": "t5"},
        {"type": "shaw", "max_distance": 4},
        {"type": "wavlm", "num_buckets": 8, "max_distance": 16},
        {"type": "fox"},
        {"layers": [{"type": "kerple_log"}, {"type": "alibi", "learned": True}]},
        {"type": "bipe", "separator_ids": [7], "max_segment": 4},
    ],
    ids=["t5", "shaw", "wavlm", "fox", "layers", "bipe"],
)
def test_lora_trains_and_saves_the_encoding(tmp_path, rel_pos):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = toy_model(dropout=0.0, rel_pos=rel_pos)
    fresh = {name: value.clone() for name, value in base.state_dict().items()}
    encodings = {name for name in fresh if "relpos" in name}
    model = lora(base)
    untrained = logits(model)
    run = trainer(tmp_path / "run", model, max_steps=30)
    run.train()
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    trained = logits(model)
    assert not torch.allclose(trained, untrained, atol=1e-2)

    # what the adapter does not train is as it was; the encoding's original too, its copy is not
    moved, held = [], []
    for name, value in model.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".original_module", "").replace(".base_layer", "")
        copy = plain.replace(".modules_to_save.default", "")
        if ".modules_to_save." in name and copy in encodings:
            moved.append(not torch.equal(value, fresh[copy]))
        elif plain in fresh and "modules_to_save" not in name:
            held.append(torch.equal(value, fresh[plain]))
    assert len(moved) == len(encodings)
    assert all(moved)
    assert len(held) == len(fresh)
    assert all(held)

    model.save_pretrained(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("relpos" in name for name in stored) == len(encodings)
    again = peft.PeftModel.from_pretrained(toy_model(dropout=0.0, rel_pos=rel_pos), str(tmp_path / "adapter"))
    assert torch.equal(logits(again), trained)

    merged = again.merge_and_unload()
    assert type(merged) is hf_relpos.RelPosBertForQuestionAnswering
    torch.testing.assert_close(logits(merged), trained, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == fresh.keys()
    # a merged model is a model: it saves and loads like any other
    merged.save_pretrained(tmp_path / "merged")
    loaded = hf_relpos.RelPosBertForQuestionAnswering.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded), logits(merged))


def saved(folder, family, head, tokenizer, **settings):
    """A random model with its tokenizer in one folder, as a pipeline wants it."""
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    made = config(family, {"type": "t5"}, vocab_size=len(tokenizer), **special, **settings)
    model = randomise(hf_relpos.auto_class(made, head)(made))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_fill_mask(tmp_path):
    tokenizer = word_tokenizer()
    model = saved(tmp_path, "bert", "MaskedLM", tokenizer)
    text = "mira lives in [MASK] near the old river"
    found = pipeline("fill-mask", model=str(tmp_path))(text, top_k=3)
    inputs = tokenizer(text, return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        scores = model(**inputs).logits[0, place].softmax(-1)
    best = scores.topk(3)
    assert [one["token"] for one in found] == best.indices.tolist()
    assert [one["score"] for one in found] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_text_classification(tmp_path):
    tokenizer = word_tokenizer()
    names = {0: "no", 1: "maybe", 2: "yes"}
    model = saved(tmp_path, "bert", "SequenceClassification", tokenizer, id2label=names, label2id={})
    texts = ["mira lives in bergen", "ada works near the old river house", "old"]
    found = pipeline("text-classification", model=str(tmp_path))(texts, batch_size=2, top_k=None)
    for text, labels in zip(texts, found, strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert {one["label"]: one["score"] for one in labels} == {
            name: pytest.approx(float(scores[i]), abs=1e-5) for i, name in names.items()
        }


def test_token_classification(tmp_path):
    tokenizer = word_tokenizer()
    model = saved(
        tmp_path, "bert", "TokenClassification", tokenizer, id2label={0: "O", 1: "PER", 2: "LOC"}, label2id={}
    )
    text = "Mira lives in Bergen near Ada"
    found = pipeline("token-classification", model=str(tmp_path))(text)
    with torch.no_grad():
        labels = model(**tokenizer(text, return_tensors="pt")).logits[0].argmax(-1).tolist()[1:-1]
    expected = [(i, model.config.id2label[label]) for i, label in enumerate(labels, 1) if label]
    assert [(one["index"], one["entity"]) for one in found] == expected != []
    assert all(text[one["start"] : one["end"]].lower() == one["word"] for one in found)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_text_generation(tmp_path, family):
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    model = saved(tmp_path, family, "CausalLM", tokenizer, max_position_embeddings=64)
    texts = ["Mira lives", "Ada works near the old"]
    generator = pipeline("text-generation", model=str(tmp_path))
    settings = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    one_by_one = [generator(text, **settings)[0]["generated_text"] for text in texts]
    together = [found[0]["generated_text"] for found in generator(texts, batch_size=2, **settings)]
    assert together == one_by_one
    for text, found in zip(texts, one_by_one, strict=True):
        # by the logits of the whole text each time, without a cache
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        length = ids.shape[1]
        for _ in range(6):
            with torch.no_grad():
                following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat((ids, following), 1)
            if int(following) == tokenizer.eos_token_id:
                break
        assert found == tokenizer.decode(ids[0, length:], skip_special_tokens=True)
