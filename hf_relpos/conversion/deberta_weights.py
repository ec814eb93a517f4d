"""DeBERTa and DeBERTa v2 and v3 as BERT, whose layers they have; where the attention differs is the encoding's matter.

Their heads are BERT's but for the pooled ones: there a ``tanh`` is BERT's, and ``gelu``, which published checkpoints have, is what ELECTRA classifies
with, a model of the same layers. Dropout of tables and poolers while training is not carried over.
"""

import copy
import re
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, DebertaConfig, DebertaV2Config, ElectraConfig

from .foreign_model import ForeignModel, Weights, failing, split_heads

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
_POSITIONS = re.compile(
    r"encoder\.(rel_embeddings|LayerNorm)\.|\.attention\.self\.(pos_proj|pos_q_proj|pos_key_proj|pos_query_proj)\."
)


def _gelu_classifier(config: Any, head: str) -> bool:
    return head == "ForSequenceClassification" and config.pooler_hidden_act == "gelu"


def _family(config: Any, head: str) -> str:
    return (ElectraConfig if _gelu_classifier(config, head) else BertConfig).model_type


def _objections(config: Any, head: str) -> list[str]:
    width, hidden = getattr(config, "embedding_size", config.hidden_size), config.hidden_size
    pooler = getattr(config, "pooler_hidden_size", hidden)
    head_size = getattr(config, "attention_head_size", hidden // config.num_attention_heads)
    pooled = head in ("ForSequenceClassification", "ForMultipleChoice")
    convolution = getattr(config, "conv_kernel_size", 0)
    return failing(
        (width != hidden, f"embedding_size={width}: BERT has no projection from there to hidden_size={hidden}"),
        (
            head_size * config.num_attention_heads != hidden,
            f"attention_head_size={head_size}: BERT's heads divide {hidden}",
        ),
        (convolution > 0, f"conv_kernel_size={convolution}: BERT has no convolution after its first layer"),
        (bool(getattr(config, "talking_head", False)), "talking_head=True: BERT does not mix its heads"),
        (pooled and pooler != hidden, f"pooler_hidden_size={pooler}: BERT's pooler is as wide as hidden_size={hidden}"),
        (
            pooled and config.pooler_hidden_act != "tanh" and not _gelu_classifier(config, head),
            f"pooler_hidden_act={config.pooler_hidden_act!r} in a model {head}: BERT's pooler has tanh",
        ),
    )


def _config_values(config: Any) -> dict[str, Any]:
    return {
        **{name: getattr(config, name) for name in _KEPT},
        "embedding_size": config.hidden_size,
        # tokenizers give two types; without a table they add nothing, which two rows of zeros do as well
        "type_vocab_size": config.type_vocab_size or 2,
        "classifier_dropout": getattr(config, "cls_dropout", None),
        # the newer head has no weights of its own to be untied
        "tie_word_embeddings": config.tie_word_embeddings or not config.legacy,
    }


def _layer(key: str, tensor: Tensor, config: Any) -> dict[str, Tensor]:
    path, _, name = key.rpartition(".self.")
    if name == "in_proj.weight":
        parts = split_heads(tensor, config.num_attention_heads)
        fused = {
            f"{path}.self.{part}.weight": rows for part, rows in zip(("query", "key", "value"), parts, strict=True)
        }
        return {**fused, f"{path}.self.key.bias": tensor.new_zeros(config.hidden_size)}
    renamed = re.sub(r"^(query|key|value)_proj\.", r"\1.", name)
    renamed = {"q_bias": "query.bias", "v_bias": "value.bias"}.get(renamed, renamed)
    return {f"{path}.self.{renamed}": tensor}


def _weights(base: Weights, head: Weights, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inner: dict[str, Tensor] = {}
    for key, tensor in base.items():
        if _POSITIONS.search(key):
            continue
        inner |= _layer(key, tensor, config) if ".attention.self." in key else {key: tensor}
    words = inner["embeddings.word_embeddings.weight"]
    inner.setdefault("embeddings.token_type_embeddings.weight", torch.zeros_like(words[:2]))

    # a pooled head that is not refused and has gelu is ELECTRA's classifier
    gelu = "pooler.dense.weight" in head and config.pooler_hidden_act == "gelu"
    outer: dict[str, Tensor] = {}
    for key, tensor in head.items():
        if key.startswith("lm_predictions.lm_head."):
            name = key.removeprefix("lm_predictions.lm_head.")
            outer["cls.predictions.bias" if name == "bias" else f"cls.predictions.transform.{name}"] = tensor
        elif key.startswith("pooler.") and not gelu:
            inner[key] = tensor
        elif gelu:
            name = key.replace("classifier.", "classifier.out_proj.").replace("pooler.", "classifier.")
            outer[name] = tensor
        else:
            outer[key] = tensor
    if "cls.predictions.bias" in outer:
        outer.setdefault("cls.predictions.decoder.bias", outer["cls.predictions.bias"])
        outer.setdefault("cls.predictions.decoder.weight", words)
    return inner, outer


def _other_layout(config: Any, info: Any) -> Any:
    """Published checkpoints hold the newer head for masked tokens, while their configs ask for the older one, which then would be random."""
    newer = any(key.startswith("lm_predictions.lm_head.dense") for key in info["unexpected_keys"])
    if not (config.legacy and newer and any(key.startswith("cls.predictions.") for key in info["missing_keys"])):
        return None
    other = copy.deepcopy(config)
    other.legacy = False
    return other


def _absolute(config: Any) -> str:
    return "keep" if config.position_biased_input else "drop"


DEBERTA, DEBERTA_V2 = (
    ForeignModel(
        config_class.model_type,
        _family,
        causal=False,
        objections=_objections,
        config_values=_config_values,
        absolute=_absolute,
        weights=_weights,
        other_layout=_other_layout,
    )
    for config_class in (DebertaConfig, DebertaV2Config)
)
