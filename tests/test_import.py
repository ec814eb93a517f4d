"""What importing the package costs, and that nothing is lost by importing models only when they are used."""

import json
import subprocess
import sys

import pytest
from families import config, host_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_relpos
from hf_relpos.models.auto_classes import config_in, models_in
from hf_relpos.models.families import CONFIG_CLASSES, MODEL_CLASSES
from hf_relpos.registration import CONFIG_NAMES, class_named, family_module

BERT = "transformers.models.bert.modeling_bert"
# files of models that are imported, other than the tables of the Auto classes
LOADED = """
import sys
loaded = [name for name in sys.modules if name.startswith("transformers.models.") and ".modeling_" in name and ".auto." not in name]
loaded += [name for name in sys.modules if name in ("hf_relpos.models.mixin", "hf_relpos.models.families", "transformers.modeling_utils")]
assert not loaded, loaded
"""


def python(code, *arguments):
    """What a fresh process that runs ``code`` prints."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_importing_adds_little_to_importing_a_model_of_transformers():
    code = f"import time, {BERT}; start = time.perf_counter(); import hf_relpos; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_listing_the_methods_imports_no_model_and_is_quick():
    code = f"""
import sys, time
from transformers import AutoConfig
start = time.perf_counter()
from hf_relpos.cli import main
sys.argv = ["hf-relpos", "list"]
try:
    main()
except SystemExit as status:
    assert not status.code
print(time.perf_counter() - start)
import hf_relpos.plots
assert "matplotlib" not in sys.modules
{LOADED}"""
    lines = python(code).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == hf_relpos.list_encodings()
    assert float(lines[-1]) < 2


def test_auto_classes_know_every_model_right_after_the_import(tmp_path):
    for head in ("Model", "ForQuestionAnswering"):
        made = config("bert", {"type": "none"})
        hf_relpos.auto_class(made, head)(made).save_pretrained(tmp_path / head)
    code = f"""
import json, sys
import hf_relpos
{LOADED}
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM
names = [type(AutoModelForQuestionAnswering.from_pretrained(sys.argv[1] + "/ForQuestionAnswering")).__name__]
names += [type(AutoModel.from_pretrained(sys.argv[1] + "/Model")).__name__]
made = AutoConfig.for_model("relpos_gpt2", rel_pos="none", n_layer=1, n_embd=8, n_head=1, vocab_size=9)
names += [type(made).__name__, type(AutoModel.from_config(made)).__name__]
loaded = [name for name in sys.modules if name.startswith("hf_relpos.models.") and name.rpartition(".")[2] in ("opt", "llama")]
print(json.dumps([names, loaded]))
"""
    names, loaded = json.loads(python(code, tmp_path).splitlines()[-1])
    assert names == ["RelPosBertForQuestionAnswering", "RelPosBertModel", "RelPosGPT2Config", "RelPosGPT2Model"]
    assert loaded == []


def test_a_config_from_another_process_has_its_models(tmp_path):
    write = f"""
import pickle, sys, hf_relpos
config = hf_relpos.RelPosBertConfig(**{host_config("bert").to_diff_dict() | {"rel_pos": "none"}})
side = config.to_dict()
pair = hf_relpos.RelPosEncoderDecoderConfig(encoder=side, decoder={{**side, "is_decoder": True, "add_cross_attention": True}})
pickle.dump([config, pair], open(sys.argv[1], "wb"))
"""
    python(write, tmp_path / "config.pickle")
    read = """
import pickle, sys
from transformers import AutoModel, AutoModelForSeq2SeqLM
config, pair = pickle.load(open(sys.argv[1], "rb"))
print(type(AutoModel.from_config(config)).__name__, type(AutoModelForSeq2SeqLM.from_config(pair)).__name__)
"""
    assert python(read, tmp_path / "config.pickle") == "RelPosBertModel RelPosEncoderDecoderModel"


@pytest.mark.parametrize("family", CONFIG_NAMES)
def test_classes_are_found_by_name(family):
    module = family_module(family)
    own = config_in(module)
    assert own.__name__ == CONFIG_NAMES[family]
    for name in (own.__name__, *models_in(module)):
        assert class_named(name) is getattr(hf_relpos, name)
        assert name in hf_relpos.__all__
        assert name in dir(hf_relpos)


def test_what_stands_in_for_a_config_becomes_it():
    assert set(CONFIG_CLASSES) < set(CONFIG_MAPPING)
    standing_in = CONFIG_MAPPING["relpos_bert"]
    assert standing_in.__name__ == "RelPosBertConfig"
    values = config("bert", {"type": "none"}).to_dict()
    assert isinstance(standing_in(**values), hf_relpos.RelPosBertConfig)
    assert isinstance(standing_in.from_dict(values), hf_relpos.RelPosBertConfig)
    # used once, the class itself is registered
    assert CONFIG_MAPPING["relpos_bert"] is hf_relpos.RelPosBertConfig


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'RelPosNothing'"):
        _ = hf_relpos.RelPosNothing
    with pytest.raises(AttributeError, match="no attribute 'RelPosBertForNothing'"):
        _ = hf_relpos.RelPosBertForNothing
    names = {}
    exec("from hf_relpos import *", names)
    assert set(MODEL_CLASSES) <= set(names)
