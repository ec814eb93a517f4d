"""Pushing to the Hub and pulling from it, against a stand-in of the Hub on this machine."""

from pathlib import Path

import pytest
import torch
from families import KINDS, model
from hub_stub import HubStub
from without_package import run_python

import hf_relpos
from hf_relpos.hub.exporter import ROOT, collect
from hf_relpos.models.upload import MODEL_ID, outdated_weights

# what the processes below share. The token is an argument everywhere: a call that lost it on the way would be refused.
COMMON = """
import json, os, re, urllib.request
from pathlib import Path
import torch
from families import KINDS, model, randomise, tokens
from huggingface_hub import HfApi, hf_hub_download
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedTokenizerFast
TOKEN = "hf_stub"
words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "where": 2, "is": 3, "it": 4}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
ours = model("bert", KINDS["list"], head="QuestionAnswering").float()
ids = tokens()
def logits(of):
    with torch.no_grad():
        made = of(ids)
    return torch.stack((made.start_logits, made.end_logits))
def pull(name, **kwargs):
    return logits(AutoModelForQuestionAnswering.from_pretrained(name, **kwargs))
"""


@pytest.fixture(scope="module")
def hub():
    with HubStub() as running:
        yield running


def run(code, folder, url, block=False):
    """Run ``code`` in ``folder`` in a new process whose Hub is at ``url``, with this package installed unless ``block``."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    done = run_python(code, folder, environment, block)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


PUBLISH = """
first = ours.push_to_hub("someone/tiny", tokenizer=tokenizer, token=TOKEN, private=True)
reference = {"ids": ids, "first": logits(ours), "first_commit": first.oid}
assert torch.equal(pull("someone/tiny"), reference["first"])
randomise(ours, seed=1)
second = ours.push_to_hub("someone/tiny", tokenizer=tokenizer, token=TOKEN)
reference |= {"second": logits(ours), "second_commit": second.oid, "encoded": tokenizer("where is it now")["input_ids"]}
with torch.no_grad():
    reference["hidden"] = ours.bert(ids).last_hidden_state
pulled = AutoModelForQuestionAnswering.from_pretrained("someone/tiny")
assert type(pulled) is type(ours)
assert torch.equal(logits(pulled), reference["second"])
assert torch.equal(pull("someone/tiny", revision=first.oid), reference["first"])
# the card's own lines on how to load where the package is installed
with open(hf_hub_download("someone/tiny", "README.md")) as card:
    code = re.findall("```python\\n(.*?)```", card.read(), re.DOTALL)[0]
exec(code, loaded := {})
assert torch.equal(logits(loaded["model"]), reference["second"])
torch.save(reference, "reference.pt")
"""


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory):
    """A model that was pushed, pulled, changed, pushed again and pulled again, by processes that have the package."""
    folder = tmp_path_factory.mktemp("published")
    run(COMMON + PUBLISH, folder, hub.url)
    return folder, torch.load(folder / "reference.pt")


def test_a_push_is_one_commit_of_all_that_a_model_needs(hub, published):
    repository, (_, reference) = hub.repositories["someone/tiny"], published
    assert repository.private
    assert list(repository.commits)[1:] == [reference["first_commit"], reference["second_commit"]]
    first, second = (repository.commits[reference[name]] for name in ("first_commit", "second_commit"))
    assert {name for name in first if name.endswith(".py")} == set(collect(ROOT / "models" / "bert.py").values())
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= first.keys()
    assert [name for name in second if second[name] != first.get(name)] == ["model.safetensors"]


def test_the_card_says_what_the_model_is_and_how_to_load_it(hub, published):
    text = hub.repositories["someone/tiny"].files()["README.md"].decode()
    for part in KINDS["list"]:
        card = hf_relpos.encoding_card(part["type"])
        assert card.formula in text
        assert card.bibtex in text
    assert text.count('from_pretrained("someone/tiny"') == 2
    assert MODEL_ID not in text


PULL = """
import re, torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForQuestionAnswering, AutoTokenizer
reference = torch.load("../reference.pt")
def logits(of):
    with torch.no_grad():
        made = of(reference["ids"])
    return torch.stack((made.start_logits, made.end_logits))
def pull(**kwargs):
    return AutoModelForQuestionAnswering.from_pretrained("someone/tiny", trust_remote_code=True, **kwargs)
pulled = pull()
assert type(pulled).__module__.startswith("transformers_modules"), type(pulled)
assert torch.equal(logits(pulled), reference["second"])
assert torch.equal(logits(pull(revision=reference["first_commit"])), reference["first"])
base = AutoModel.from_pretrained("someone/tiny", trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(base(reference["ids"]).last_hidden_state, reference["hidden"])
head = AutoModelForMaskedLM.from_pretrained("someone/tiny", trust_remote_code=True)
assert type(head).__name__ == "RelPosBertForMaskedLM"
assert AutoTokenizer.from_pretrained("someone/tiny")("where is it now")["input_ids"] == reference["encoded"]
with open(hf_hub_download("someone/tiny", "README.md")) as card:
    code = re.findall("```python\\n(.*?)```", card.read(), re.DOTALL)[1]
exec(code, loaded := {})
assert torch.equal(logits(loaded["model"]), reference["second"])
pulled.push_to_hub("someone/again", token="hf_stub")
again = AutoModelForQuestionAnswering.from_pretrained("someone/again", trust_remote_code=True)
assert torch.equal(logits(again), reference["second"])
try:
    import hf_relpos
except ModuleNotFoundError:
    print("loaded")
"""


@pytest.fixture(scope="module")
def pulled(hub, published):
    """The same model pulled by a process that does not have the package, and the cache that this leaves."""
    folder = published[0] / "pulled"
    return folder, run(PULL, folder, hub.url, block=True)


def test_a_process_without_the_package_pulls_every_head_and_the_tokenizer(hub, pulled):
    assert pulled[1].stdout.strip().endswith("loaded")
    # a model that came with its code takes it along
    tiny, again = (hub.repositories[f"someone/{name}"].files() for name in ("tiny", "again"))
    assert {name for name in tiny if name.endswith(".py")} == {name for name in again if name.endswith(".py")}


UNREACHABLE = """
import time
# between its attempts the client waits for half a minute altogether
time.sleep = lambda seconds: None
import torch, hf_relpos
from transformers import AutoModelForQuestionAnswering
try:
    hf_relpos.RelPosBertForQuestionAnswering.from_pretrained("someone/model")
except OSError as error:
    assert "someone/model" in str(error), error
else:
    raise AssertionError("nothing was raised")
reference = torch.load("../reference.pt")
with torch.no_grad():
    made = AutoModelForQuestionAnswering.from_pretrained("someone/tiny")(reference["ids"])
assert torch.equal(torch.stack((made.start_logits, made.end_logits)), reference["second"])
"""


def test_an_unreachable_hub_is_an_error_that_names_the_model_unless_it_was_pulled_before(pulled):
    with HubStub() as gone:
        pass
    run(UNREACHABLE, pulled[0], gone.url)


FAIL = """
def switch(failing):
    request = urllib.request.Request(os.environ["HF_ENDPOINT"] + "/switch", data=json.dumps(failing).encode())
    urllib.request.urlopen(request).close()
def local():
    return {str(path): path.read_bytes() for path in sorted(Path("saved").rglob("*")) if path.is_file()}
def remote():
    return api.model_info(name).sha, api.list_repo_files(name)
def push():
    return ours.push_to_hub(name, folder="saved", tokenizer=tokenizer, token=TOKEN)
api, name, old = HfApi(token=TOKEN), "someone/fragile", None
api.create_repo(name)
Path("saved/notes").mkdir(parents=True)
Path("saved/notes/mine.txt").write_text("mine")
Path("saved/tokenizer.json").write_text("{}")
# the first push brings every file and fails at a late one, the others bring weights only
for seed, failing in enumerate(([413, "tokenizer.json"], [500, "model.safetensors"], "drop")):
    randomise(ours, seed)
    ours.save_pretrained("saved")
    # what counts is the folder, not what the model has become since
    randomise(ours, seed + 10)
    here, there, new = local(), remote(), pull("saved")
    switch(failing)
    try:
        push()
    except Exception as error:
        print(type(error).__name__)
    else:
        raise AssertionError(f"the push went through in spite of {failing}")
    switch(None)
    assert local() == here
    assert remote() == there
    assert old is None or torch.equal(pull(name), old)
    assert push().oid == remote()[0] != there[0]
    assert local() == here
    assert torch.equal(pull(name), new)
    old = new
"""


def test_a_push_that_fails_in_the_middle_changes_nothing_and_can_be_repeated(tmp_path):
    # a hub of its own: should this stop while the hub is failing, only this test fails
    with HubStub() as hub:
        done = run(COMMON + FAIL, tmp_path, hub.url)
    assert done.stdout.split()[:2] == ["HfHubHTTPError", "HfHubHTTPError"]
    repository = hub.repositories["someone/fragile"]
    assert len(repository.commits) == 4
    files = repository.files()
    assert files["notes/mine.txt"] == b"mine"
    assert files["tokenizer.json"] != b"{}"
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "{}"


SAVE = """
ours.save_pretrained("named-by-folder", push_to_hub=True, token=TOKEN)
Path("saved").mkdir()
Path("saved/README.md").write_bytes(b"---\\r\\nlicense: mit\\r\\n---\\r\\n# Mine\\r\\n")
Path("saved/data.csv").write_text("not part of the model")
weights = {name: tensor + 1 for name, tensor in ours.state_dict().items()}
options = {"push_to_hub": True, "repo_id": "someone/saved", "token": TOKEN}
ours.save_pretrained("saved", state_dict=dict(weights), commit_message="first", private=True, **options)
ours.load_state_dict(weights)
assert torch.equal(pull("someone/saved"), pull("saved"))
assert torch.equal(pull("someone/saved"), logits(ours))
randomise(ours, seed=1)
ours.save_pretrained("saved", max_shard_size="20KB", tags=["demo"], commit_description="in shards", **options)
assert torch.equal(pull("someone/saved"), pull("saved"))
assert torch.equal(pull("someone/saved"), logits(ours))
"""


AGAIN = """
def push(**kwargs):
    return ours.push_to_hub("someone/kept", token=TOKEN, **kwargs)
api = HfApi(token=TOKEN)
push(max_shard_size="20KB")
randomise(ours, seed=2)
push()
assert torch.equal(pull("someone/kept"), logits(ours))
push(variant="other")
push(revision="trial", tags=["trial"])
assert torch.equal(pull("someone/kept", revision="trial"), logits(ours))
api.upload_file(repo_id="someone/kept", path_in_repo="README.md", path_or_fileobj=b"---\\ntags:\\n- mine\\n---\\n# Mine\\n")
push()
push(tags=["mine", "demo"])
ours.save_pretrained("kept")
push(folder="kept")
Path("kept/README.md").write_text("# Written in the folder")
push(folder="kept")
"""


@pytest.fixture(scope="module")
def saved(hub, tmp_path_factory):
    """The folder of a process that saves to the Hub, then pushes to another repository again and again, and what it printed."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, run(COMMON + SAVE + AGAIN, folder, hub.url)


def test_saving_with_push_to_hub_uploads_what_was_saved(hub, saved):
    folder, _ = saved
    assert (
        b'from_pretrained("someone/named-by-folder"' in hub.repositories["someone/named-by-folder"].files()["README.md"]
    )
    repository = hub.repositories["someone/saved"]
    assert repository.private
    assert repository.messages == ["initial commit", "first", "Upload model with relative positions: in shards"]
    local = {path.name: path.read_bytes() for path in (folder / "saved").iterdir()}
    assert local["README.md"] == b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n"
    assert list(repository.commits.values())[1]["README.md"] == local["README.md"]
    files = repository.files()
    assert files.keys() == local.keys() - {"data.csv"} | {".gitattributes"}
    assert all(files[name] == local[name] for name in files.keys() - {".gitattributes", "README.md"})
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    assert "model.safetensors" not in files
    assert files["README.md"] == b"---\r\nlicense: mit\r\ntags:\r\n- demo\r\n---\r\n# Mine\r\n"


def test_a_later_push_replaces_the_weights_and_keeps_the_card(hub, saved):
    repository = hub.repositories["someone/kept"]
    sharded, whole, variant, trial, own, tagged, folder = list(repository.commits.values())[1:]

    def weights(files):
        return {name for name in files if ".safetensors" in name}

    assert "model.safetensors.index.json" in weights(sharded)
    assert weights(whole) == {"model.safetensors"}
    assert weights(variant) == weights(folder) == {"model.safetensors", "model.other.safetensors"}
    assert repository.commits[repository.branches["trial"]] == trial
    assert b"- trial" in trial["README.md"]
    assert b"- trial" not in folder["README.md"]
    # pushes without tags, of a fresh save and of a folder whose card is the generated one, leave the card and so make no commit
    assert own["README.md"] == b"---\ntags:\n- mine\n---\n# Mine\n"
    assert tagged["README.md"] == b"---\ntags:\n- mine\n- demo\n---\n# Mine\n"
    assert folder["README.md"] == b"# Written in the folder"
    assert saved[1].stderr.count("keeps its README.md") == 3


def test_arguments_that_would_be_lost_are_refused(tmp_path):
    ours = model("bert", KINDS["distance"])
    with pytest.raises(TypeError, match="does not know comit_message; of saving it knows max_shard_size, "):
        ours.push_to_hub("someone/tiny", comit_message="typo")
    with pytest.raises(TypeError, match="does not know variant together with folder"):
        ours.push_to_hub("someone/tiny", folder=tmp_path, variant="other")
    with pytest.raises(NotADirectoryError, match="absent: it is not a folder"):
        ours.push_to_hub("someone/tiny", folder=tmp_path / "absent")
    with pytest.raises(ValueError, match="distributed checkpoint"):
        ours.save_pretrained(tmp_path / "saved", push_to_hub=True, distributed_checkpoint=True)
    assert not list(tmp_path.iterdir())


def test_a_save_removes_only_weights_that_it_replaces(tmp_path):
    for name in ("model-backup.safetensors", "model.other.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / name).touch()
    model("bert", KINDS["distance"]).save_pretrained(tmp_path)
    left = {path.name for path in tmp_path.glob("*.safetensors")}
    assert left == {"model.safetensors", "model.other.safetensors", "model-backup.safetensors"}
    index = ["model.safetensors.index.json", "model.safetensors.index.other.json"]
    assert outdated_weights(["model.safetensors"], index) == index[:1]
    assert outdated_weights(["model.other-00001-of-00001.safetensors"], index) == index[1:]
    assert outdated_weights(["adapter_model.safetensors"], ["model.safetensors"]) == []
