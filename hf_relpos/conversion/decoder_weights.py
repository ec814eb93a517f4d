"""BLOOM, MPT and Falcon with linear biases as GPT-2: layers of the same form, with other names and layouts.

GPT-2 has biases everywhere, which are zero where the other model has none, and stores its linear maps transposed. BLOOM's LayerNorm of word vectors is
computed once for each word of the vocabulary; its output map then is no longer the input table, so that the model holds both.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import BloomConfig, FalconConfig, GPT2Config, MptConfig

from .foreign_model import ForeignModel, Weights, failing, split_heads


def _gpt2(config: Any, **values: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "initializer_range": config.initializer_range,
        "use_cache": config.use_cache,
        "embd_pdrop": 0.0,
        # GPT-2's own are ids of its vocabulary
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        **values,
    }


def _renaming(
    names: dict[str, str], layers: str, qkv: Callable[[Tensor, Any], Tensor]
) -> Callable[[Weights, Weights, Any], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A ``weights`` function for models whose modules ``names`` calls as GPT-2 does; ``layers`` is their list's name and ``qkv`` orders the rows of the
    fused projection as queries, keys, values."""

    def weights(base: Weights, head: Weights, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inner: dict[str, Tensor] = {}
        for key, tensor in base.items():
            path, _, kind = key.rpartition(".")
            inside = re.fullmatch(rf"{layers}\.(\d+)\.(.+)", path)
            new = f"h.{inside[1]}.{names[inside[2]]}" if inside else names[path]
            if new.endswith("c_attn"):
                tensor = qkv(tensor, config)
            inner[f"{new}.{kind}"] = tensor.T if tensor.ndim == 2 and new != "wte" else tensor
            if new != "wte" and kind == "weight":
                inner.setdefault(f"{new}.bias", tensor.new_zeros(len(tensor)))
        return inner, dict(head)

    return weights


def _interleaved(fused: Tensor, config: Any) -> Tensor:
    return torch.cat(split_heads(fused, config.num_attention_heads))


# BLOOM and Falcon
_MEGATRON = {
    "word_embeddings": "wte",
    "input_layernorm": "ln_1",
    "self_attention.query_key_value": "attn.c_attn",
    "self_attention.dense": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
    "ln_f": "ln_f",
}
_megatron_weights = _renaming(_MEGATRON, "h", _interleaved)


def _bloom_weights(base: Weights, head: Weights, config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    norm = "word_embeddings_layernorm."
    words = torch.nn.functional.layer_norm(
        base["word_embeddings.weight"],
        (config.hidden_size,),
        base[f"{norm}weight"],
        base[f"{norm}bias"],
        config.layer_norm_epsilon,
    )
    rest = {key: tensor for key, tensor in base.items() if not key.startswith(norm)}
    return _megatron_weights({**rest, "word_embeddings.weight": words}, head, config)


def _residual(config: Any) -> tuple[bool, str]:
    return (
        bool(getattr(config, "apply_residual_connection_post_layernorm", False)),
        "apply_residual_connection_post_layernorm=True: GPT-2 adds what came in before the LayerNorm",
    )


BLOOM = ForeignModel(
    BloomConfig.model_type,
    lambda config, head: GPT2Config.model_type,
    causal=True,
    objections=lambda config, head: failing(_residual(config)),
    config_values=lambda config: _gpt2(
        config,
        n_positions=getattr(config, "seq_length", 2048),
        activation_function="gelu_new",
        attn_pdrop=config.attention_dropout,
        resid_pdrop=config.hidden_dropout,
        tie_word_embeddings=False,
    ),
    absolute=lambda config: "drop",
    weights=_bloom_weights,
)

FALCON = ForeignModel(
    FalconConfig.model_type,
    lambda config, head: GPT2Config.model_type,
    causal=True,
    objections=lambda config, head: failing(
        _residual(config),
        (
            bool(config.new_decoder_architecture),
            "new_decoder_architecture=True: GPT-2 computes attention before the feed-forward layer, not beside it",
        ),
        (
            bool(config.parallel_attn),
            "parallel_attn=True: GPT-2 computes attention before the feed-forward layer, not beside it",
        ),
        (bool(config.multi_query), "multi_query=True: GPT-2 has keys and values for each head"),
    ),
    config_values=lambda config: _gpt2(
        config,
        n_positions=config.max_position_embeddings,
        n_inner=config.ffn_hidden_size,
        activation_function=config.activation,
        attn_pdrop=config.attention_dropout,
        resid_pdrop=config.hidden_dropout,
    ),
    absolute=lambda config: "drop",
    weights=_megatron_weights,
)


def _mpt_objections(config: Any, head: str) -> list[str]:
    attention, scale = config.attn_config, config.attn_config.softmax_scale
    return failing(
        (
            bool(attention.clip_qkv),
            f"attn_config.clip_qkv={attention.clip_qkv}: GPT-2 clips no queries, keys or values",
        ),
        (scale is not None, f"attn_config.softmax_scale={scale}: GPT-2's is 1/sqrt(D)"),
        (attention.qk_ln, "attn_config.qk_ln=True: GPT-2 does not normalise queries and keys"),
        (attention.prefix_lm, "attn_config.prefix_lm=True: GPT-2 sees no later tokens"),
        (
            attention.attn_type != "multihead_attention",
            f"attn_config.attn_type={attention.attn_type!r}: GPT-2 has keys and values for each head",
        ),
        (
            not config.no_bias,
            "no_bias=False: transformers' MPT leaves biases out, so that its numbers are not the model's",
        ),
        (config.logit_scale is not None, f"logit_scale={config.logit_scale}: GPT-2 does not scale its logits"),
    )


MPT = ForeignModel(
    MptConfig.model_type,
    lambda config, head: GPT2Config.model_type,
    causal=True,
    objections=_mpt_objections,
    config_values=lambda config: _gpt2(
        config,
        n_positions=config.max_seq_len,
        activation_function="gelu",
        attn_pdrop=config.attn_config.attn_pdrop,
        resid_pdrop=config.attn_config.attn_pdrop,
    ),
    absolute=lambda config: "drop",
    weights=_renaming(
        {
            "wte": "wte",
            "norm_1": "ln_1",
            "attn.Wqkv": "attn.c_attn",
            "attn.out_proj": "attn.c_proj",
            "norm_2": "ln_2",
            "ffn.up_proj": "mlp.c_fc",
            "ffn.down_proj": "mlp.c_proj",
            "norm_f": "ln_f",
        },
        "blocks",
        lambda fused, config: fused,
    ),
)
