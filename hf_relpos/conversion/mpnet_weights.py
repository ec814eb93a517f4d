"""MPNet as RoBERTa, with which it shares everything but the names of its attention and its bias."""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import MPNetConfig, RobertaConfig

from .foreign_model import ForeignModel, Weights, failing

_KEPT = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "layer_norm_eps",
)
_RENAMED = (
    (r"\.attention\.attn\.q\.", ".attention.self.query."),
    (r"\.attention\.attn\.k\.", ".attention.self.key."),
    (r"\.attention\.attn\.v\.", ".attention.self.value."),
    (r"\.attention\.attn\.o\.", ".attention.output.dense."),
    (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
)


def _objections(config: Any, head: str) -> list[str]:
    padding = config.pad_token_id
    return failing(
        (padding != 1, f"pad_token_id={padding}: MPNet's table begins after 1, RoBERTa's after pad_token_id")
    )


def _config_values(config: Any) -> dict[str, Any]:
    # types add nothing, whichever a tokenizer gives
    return {**{name: getattr(config, name) for name in _KEPT}, "type_vocab_size": 2}


def _weights(base: Weights, head: Weights, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inner = {}
    for key, tensor in base.items():
        for old, new in _RENAMED:
            key = re.sub(old, new, key)
        if not key.startswith("encoder.relative_attention_bias."):
            inner[key] = tensor
    inner["embeddings.token_type_embeddings.weight"] = torch.zeros_like(inner["embeddings.word_embeddings.weight"][:2])
    return inner, dict(head)


MPNET = ForeignModel(
    MPNetConfig.model_type,
    lambda config, head: RobertaConfig.model_type,
    causal=False,
    objections=_objections,
    config_values=_config_values,
    absolute=lambda config: "keep",
    weights=_weights,
)
