"""An encoder and a head that reads its states: one module to train, one folder on the disk.

The folder holds the encoder as any other, which transformers' ``AutoModel`` reads, and beside it ``head.safetensors``, whose header says what the head is.
:func:`load_relation_model` reads both. transformers has no pipeline for such heads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from checkpoints import RunError
from models import finished_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import ModelOutput

HEAD = "head.safetensors"
_HEADS: dict[str, type["Head"]] = {}


class Head(nn.Module):
    """A head, which a class of a ``kind`` builds from ``settings`` that JSON can hold; calling it with states ``[B, T, E]`` gives a :class:`RelationOutput`."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        _HEADS[cls.kind] = cls

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings


@dataclass
class RelationOutput(ModelOutput):
    """``loss``, when there are targets; ``logits`` of what the task asks first, ``label_logits`` of labels where that is another question."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    label_logits: Tensor | None = None


class RelationModel(nn.Module):
    """``head`` over the last hidden states of ``encoder``, which may be one with low-rank updates. ``about``: what a reader of the saved head must know, such as its
    labels."""

    def __init__(self, encoder: nn.Module, head: Head, about: dict[str, Any]) -> None:
        super().__init__()
        self.encoder, self.head, self.about = encoder, head, about
        # no state goes through a pooler, and processes that train together wait for the gradient of all that is trained
        for name, parameter in encoder.named_parameters():
            if "pooler" in name.split("."):
                parameter.requires_grad_(False)

    @property
    def config(self) -> Any:
        """The encoder's."""
        return self.encoder.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        relation_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **targets: Tensor,
    ) -> RelationOutput:
        """``targets``: what the head reads beside the states."""
        more = {"relation_ids": relation_ids, "use_cache": use_cache}
        given = {name: value for name, value in more.items() if value is not None}
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **given)
        return self.head(output.last_hidden_state, **targets)

    def activation_checkpointing_enable(self) -> None:
        """Recompute the encoder's activations."""
        self.encoder.activation_checkpointing_enable()

    def merge_and_unload(self) -> "RelationModel":
        """The model without low-rank updates, which become part of its weights."""
        self.encoder = finished_model(self.encoder)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write encoder and head."""
        self.encoder.save_pretrained(folder)
        description = json.dumps({"kind": self.head.kind, "settings": self.head.settings, **self.about})
        # not save_model, which refuses what a process of several has gathered
        weights = {name: value.detach().cpu().clone() for name, value in self.head.state_dict().items()}
        save_file(weights, Path(folder, HEAD), metadata={"head": description})

    def push_to_hub(self, repo_id: str, *, folder: Path) -> Any:
        """Publish ``folder``, which holds both."""
        return self.encoder.push_to_hub(repo_id, folder=folder)


def load_relation_model(folder: str | Path) -> RelationModel:
    """The model saved in ``folder``, ready to predict; its ``about`` has the ``labels`` in the order of the logits."""
    path = Path(folder, HEAD)
    if not path.is_file():
        raise RunError(f"{folder} holds no {HEAD}: relations.py has not written it")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["head"])
    kind, settings = about.pop("kind"), about.pop("settings")
    if kind not in _HEADS:
        raise RunError(f"{path} is a head of the kind {kind!r}, which is not imported; known: {', '.join(_HEADS)}")
    head = _HEADS[kind](**settings)
    head.load_state_dict(load_file(path))
    return RelationModel(AutoModel.from_pretrained(folder), head, about).eval()


@torch.no_grad()
def check_encoder(encoder: Any, relations: int | None) -> None:
    """Raise :class:`RunError` when ``encoder`` does not let each token see those after it, or does not read relation ids where there are ``relations`` kinds
    of them, or needs them where there are none. Found out by running it, whatever its family."""
    ids = torch.arange(1, 9)[None].repeat(3, 1)
    ids[1, -1] += 1
    given: dict[str, Any] = {}
    if relations is not None:
        given["relation_ids"] = (torch.arange(64) % relations).view(1, 8, 8).repeat(3, 1, 1)
        given["relation_ids"][2] = given["relation_ids"][2].flip(0)
    training = encoder.training
    refused = None
    try:
        states = encoder.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **given).last_hidden_state
    except (TypeError, ValueError) as error:
        if "relation_ids" not in str(error):
            raise
        refused = error
    finally:
        encoder.train(training)
    if relations is None and refused is not None:
        raise RunError(f"the model needs --relation_ids true: {refused}")
    # hosts pass over arguments that they do not know
    if relations is not None and (refused is not None or torch.equal(states[0], states[2])):
        raise RunError(
            "the model does not read relation_ids, or not so many kinds: leave them out, or give "
            f'--rel_pos \'{{"type": "relation", "num_relations": {relations}}}\' or a list with it{f": {refused}" if refused else ""}'
        )
    if torch.equal(states[0, 0], states[1, 0]):
        raise RunError(
            f"{encoder.config.model_type} reads from left to right, and the state of a word would know nothing of what follows: take an encoder"
        )
