"""One step of training a whole model: forward, backward, AdamW."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, GPT2Config, PreTrainedModel
from workload import WARM_UP_LENGTH

import hf_relpos

STEP = "step"


@dataclass(frozen=True)
class Shape:
    """A model's shape; the defaults are those of BERT-base and GPT-2 small."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    vocabulary: int | None = None


@dataclass(frozen=True)
class StepCase:
    """A step over ``batch`` texts of ``length`` tokens; ``host`` is "bert" (masked words) or "gpt2" (next words), with its own positions or with ``encoding`` in
    their place; ``dropout`` everywhere where the host has it."""

    device: str
    dtype: str
    host: str
    length: int
    batch: int
    dropout: float
    shape: Shape = Shape()
    encoding: str | None = None

    @property
    def work(self) -> str:
        return STEP

    def shortened(self) -> "StepCase":
        return replace(
            self, length=min(WARM_UP_LENGTH, self.length), shape=replace(self.shape, layers=1, vocabulary=100)
        )

    def build(self) -> PreTrainedModel:
        """The model, its weights drawn at random."""
        torch.manual_seed(0)
        options = _bert(self) if self.host == "bert" else _gpt2(self)
        if self.encoding is None:
            config = (BertConfig if self.host == "bert" else GPT2Config)(**options)
            model = (AutoModelForMaskedLM if self.host == "bert" else AutoModelForCausalLM).from_config(config)
        else:
            options |= {"rel_pos": {"type": self.encoding}, "absolute": "drop"}
            if self.host == "bert":
                model = hf_relpos.RelPosBertForMaskedLM(hf_relpos.RelPosBertConfig(**options))
            else:
                model = hf_relpos.RelPosGPT2ForCausalLM(hf_relpos.RelPosGPT2Config(**options))
        return model.to(self.device, getattr(torch, self.dtype)).train()

    def prepare(self) -> Callable[[], None]:
        """A step after one over few tokens, which lets the optimizer allocate its state."""
        model = self.build()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        vocabulary = model.config.vocab_size
        words = torch.randint(vocabulary, (self.batch, self.length), device=self.device)

        def step(words: torch.Tensor) -> None:
            loss = model(input_ids=words, attention_mask=torch.ones_like(words), labels=words).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step(words[:, :WARM_UP_LENGTH])
        return lambda: step(words)


def _bert(case: StepCase) -> dict[str, Any]:
    shape = case.shape
    options: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.width,
        "max_position_embeddings": max(512, case.length),
        "hidden_dropout_prob": case.dropout,
        "attention_probs_dropout_prob": case.dropout,
    }
    return options if shape.vocabulary is None else options | {"vocab_size": shape.vocabulary}


def _gpt2(case: StepCase) -> dict[str, Any]:
    shape = case.shape
    options: dict[str, Any] = {
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_positions": max(1024, case.length),
        "resid_pdrop": case.dropout,
        "embd_pdrop": case.dropout,
        "attn_pdrop": case.dropout,
        "use_cache": False,
    }
    if shape.vocabulary is None:
        return options
    return options | {"vocab_size": shape.vocabulary, "bos_token_id": 0, "eos_token_id": 0}
