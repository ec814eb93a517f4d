"""How transformers itself computes relative positions: its own modules, given our queries, keys and values in place of their projections'.

Each function takes ``query``, ``key`` and ``value`` ``[B, H, L, D]`` and returns what attends, giving ``[B, H, L, D]``, and the tensors that learn. What the
host makes once for all layers of a model (masks, tables of distances) is made before the call, unless a path's name says otherwise.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BloomConfig, DebertaConfig, DebertaV2Config, MptConfig, T5Config, XLNetConfig, XLNetModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.bloom import modeling_bloom
from transformers.models.deberta import modeling_deberta
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.mpt import modeling_mpt
from transformers.models.t5.modeling_t5 import T5Attention, eager_attention_forward
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention


class _Given(nn.Module):
    """Stands where the host projects, and gives what was drawn."""

    def __init__(self, projected: Tensor) -> None:
        super().__init__()
        self.projected = [projected]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.projected[0]


def _leaf(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of ``tensor`` that learns where ``like`` does."""
    return tensor.detach().clone().requires_grad_(like.requires_grad)


def _merged(tensor: Tensor) -> Tensor:
    """``[B, H, L, D]`` as ``[B, L, H * D]``."""
    return tensor.transpose(1, 2).flatten(2)


def _split(tensor: Tensor, heads: int) -> Tensor:
    """``[B, L, H * D]`` as ``[B, H, L, D]``."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _learning(module: nn.Module, like: Tensor) -> list[Tensor]:
    """The parameters of ``module``, in the dtype and on the device of ``like``."""
    module.to(like)
    return list(module.requires_grad_(like.requires_grad).parameters())


def _future(length: int, device: torch.device) -> Tensor:
    """``[1, 1, L, L]``, true above the diagonal."""
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).triu(1)


def t5_rebuilt(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """T5's bias, built in the call, as a layer does that has one of its own."""
    module, table = _t5(query)

    def attend() -> Tensor:
        bias = module.compute_bias(query.shape[2], key.shape[2])
        return _t5_attend(module, query, key, value, bias)

    return attend, [query, key, value, table]


def t5_prebuilt(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """T5's bias, built before the call, as all layers but a model's first have it; its gradient is that of the dense bias."""
    module, _ = _t5(query)
    bias = _leaf(module.compute_bias(query.shape[2], key.shape[2]), query)
    return lambda: _t5_attend(module, query, key, value, bias), [query, key, value, bias]


def t5_eager(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """T5's own eager attention, its bias built before the call."""
    module, _ = _t5(query)
    bias = _leaf(module.compute_bias(query.shape[2], key.shape[2]), query)
    scale = query.shape[-1] ** -0.5

    def attend() -> Tensor:
        output, _ = eager_attention_forward(module, query, key, value, None, scaling=scale, position_bias=bias)
        return output.transpose(1, 2)

    return attend, [query, key, value, bias]


def _t5(query: Tensor) -> tuple[T5Attention, Tensor]:
    heads, width = query.shape[1], query.shape[-1]
    config = T5Config(d_model=heads * width, d_kv=width, num_heads=heads, dropout_rate=0.0)
    module = T5Attention(config, has_relative_attention_bias=True).to(query)
    table = module.relative_attention_bias.weight
    table.requires_grad_(query.requires_grad)
    return module, table


def _t5_attend(module: T5Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    scale = query.shape[-1] ** -0.5
    output, _ = sdpa_attention_forward(module, query, key, value, None, scaling=scale, position_bias=bias)
    return output.transpose(1, 2)


def bloom(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """BLOOM's ALiBi, which is causal."""
    batch, heads, length, width = query.shape
    config = BloomConfig(hidden_size=heads * width, n_head=heads, attention_dropout=0.0, hidden_dropout=0.0)
    module: Any = modeling_bloom.BloomAttention(config, layer_idx=0)
    # heads, and in each its query, key and value
    fused = _leaf(torch.stack((query, key, value), dim=-2).transpose(1, 2).flatten(2), query)
    module.query_key_value, module.dense = _Given(fused), nn.Identity()
    ones = torch.ones(batch, length, dtype=torch.long, device=query.device)
    alibi = modeling_bloom.build_alibi_tensor(ones, heads, query.dtype)
    hidden = torch.zeros(batch, length, heads * width, dtype=query.dtype, device=query.device)
    lowest = torch.finfo(query.dtype).min
    mask = torch.zeros(1, 1, length, length, dtype=query.dtype, device=query.device)
    mask.masked_fill_(_future(length, query.device), lowest)
    return lambda: _split(module(hidden, hidden, alibi, mask)[0], heads), [fused]


def mpt(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """MPT's ALiBi, which is causal."""
    _, heads, length, width = query.shape
    module: Any = modeling_mpt.MptAttention(MptConfig(d_model=heads * width, n_heads=heads), layer_idx=0)
    fused = _leaf(torch.cat([_merged(part) for part in (query, key, value)], dim=-1), query)
    module.Wqkv, module.out_proj = _Given(fused), nn.Identity()
    bias = modeling_mpt.build_mpt_alibi_tensor(heads, length, device=query.device)
    hidden = fused[..., : heads * width].detach()
    mask = _future(length, query.device)
    return lambda: _split(module(hidden, bias, attention_mask=mask)[0], heads), [fused]


def relative_key(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """BERT's ``relative_key`` as transformers 4 had it; 5 has it no more."""
    return _legacy(query, key, value, both=False)


def relative_key_query(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """BERT's ``relative_key_query`` as transformers 4 had it; 5 has it no more."""
    return _legacy(query, key, value, both=True)


def _legacy(query: Tensor, key: Tensor, value: Tensor, both: bool) -> tuple[Callable[[], Tensor], list[Tensor]]:
    length, width = query.shape[2:]
    table = torch.randn(2 * length - 1, width).mul_(0.02).to(query).requires_grad_(query.requires_grad)

    def attend() -> Tensor:
        places = torch.arange(length, device=query.device)
        vectors = table[places[:, None] - places + length - 1]
        scores = query @ key.transpose(-1, -2) + torch.einsum("bhld,lrd->bhlr", query, vectors)
        if both:
            scores = scores + torch.einsum("bhrd,lrd->bhlr", key, vectors)
        return (scores / width**0.5).softmax(-1) @ value

    return attend, [query, key, value, table]


def deberta(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """DeBERTa's own attention, reach 512 as in the published checkpoints."""
    heads = query.shape[1]
    config = DebertaConfig(
        **_deberta_options(query), max_relative_positions=512, relative_attention=True, pos_att_type=["c2p", "p2c"]
    )
    module: Any = modeling_deberta.DisentangledSelfAttention(config)
    # by head, and in each its query, key and value
    fused = _leaf(torch.cat((query, key, value), dim=-1).transpose(1, 2).flatten(2), query)
    module.in_proj = _Given(fused)
    distances = modeling_deberta.build_relative_position(query, key)
    return _disentangled(module, [fused], query, distances, 1024, heads)


def deberta_v2(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """DeBERTa-v2's own attention, 256 buckets over 512 distances as in the published checkpoints."""
    heads = query.shape[1]
    config = DebertaV2Config(
        **_deberta_options(query),
        max_relative_positions=512,
        position_buckets=256,  # type: ignore[call-arg]
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
    )
    module: Any = modeling_deberta_v2.DisentangledSelfAttention(config)
    parts = [_leaf(_merged(part), query) for part in (query, key, value)]
    module.query_proj, module.key_proj, module.value_proj = map(_Given, parts)
    distances = modeling_deberta_v2.build_relative_position(query, key, bucket_size=256, max_position=512)
    return _disentangled(module, parts, query, distances, 512, heads)


def _deberta_options(query: Tensor) -> dict[str, Any]:
    heads, width = query.shape[1], query.shape[-1]
    return {
        "hidden_size": heads * width,
        "num_attention_heads": heads,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _disentangled(
    module: nn.Module, projected: list[Tensor], query: Tensor, distances: Tensor, rows: int, heads: int
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    batch, _, length, width = query.shape
    table = torch.randn(rows, heads * width).mul_(0.02).to(query).requires_grad_(query.requires_grad)
    hidden = torch.zeros(batch, length, heads * width, dtype=query.dtype, device=query.device)
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool, device=query.device)
    learned = [*projected, table, *_learning(module, query)]
    return lambda: _split(module(hidden, mask, relative_pos=distances, rel_embeddings=table)[0], heads), learned


def xlnet(query: Tensor, key: Tensor, value: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """XLNet's own attention, which is that of Transformer-XL, without its segments."""
    batch, heads, length, width = query.shape
    config = XLNetConfig(vocab_size=8, d_model=heads * width, n_layer=1, n_head=heads, d_inner=8, dropout=0.0)
    module: Any = XLNetRelativeAttention(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    _learning(module, query)
    parts = [_leaf(part.permute(2, 0, 1, 3), query) for part in (query, key, value)]
    positions = XLNetModel(config).relative_positional_encoding(length, length, bsz=batch).to(query)

    def attend() -> Tensor:
        position_keys = torch.einsum("ibh,hnd->ibnd", positions, module.r)
        return module.rel_attn_core(*parts, position_keys).permute(1, 2, 0, 3)

    return attend, [*parts, module.r, module.r_w_bias, module.r_r_bias]
