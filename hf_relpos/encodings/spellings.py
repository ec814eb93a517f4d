"""How checkpoints of other model types of transformers hold a method: its options in their config, its parameters among their weights.

A :class:`Spelling` says no more than that; what else a model of such a type consists of is not known here. Functions get the checkpoint's config, read
its keys as attributes, and raise ValueError where it describes positions of another kind.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def _nothing(config: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Spelling:
    """One method in the checkpoints of one model type.

    ``method``: its name here. ``options``: those that its parameters and its distances depend on. ``native``: further ones that belong to the
    model that it was trained in, above all the factor of the content score; they hold where the whole model is taken over. ``parameters``: for each
    parameter the keys in the base model that may hold it, the first that exists counts; ``{layer}`` stands for the number of a layer, ``{side}`` for
    "encoder" or "decoder". ``tensors``: functions from their tensor to ours, where it is not the same. ``constants``: parameters that
    the model type does not have, since they follow from the config.
    """

    method: str
    options: Callable[[Any], dict[str, Any]] = _nothing
    native: Callable[[Any], dict[str, Any]] = _nothing
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    constants: Callable[[Any], dict[str, Tensor]] = _nothing

    def rel_pos(self, config: Any, *, native: bool) -> dict[str, Any]:
        """The ``rel_pos`` value of a checkpoint with ``config``, as in its own model (``native``) or for use in another."""
        return {"type": self.method, **self.options(config), **(self.native(config) if native else {})}

    def read(
        self, config: Any, weights: Mapping[str, Tensor], *, causal: bool
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """The parameters that all layers share, and those of each layer, found among the ``weights`` of a base model."""
        side = "decoder" if causal else "encoder"

        def find(layer: int | None) -> dict[str, Tensor]:
            found = {}
            for name, keys in self.parameters.items():
                if ("{layer}" in keys[0]) != (layer is not None):
                    continue
                key = next(
                    (key for key in (key.format(layer=layer, side=side) for key in keys) if key in weights), None
                )
                if key is not None:
                    found[name] = self.tensors.get(name, torch.clone)(weights[key])
            return found

        layers = list(itertools.takewhile(bool, map(find, itertools.count())))
        return {**self.constants(config), **find(None)}, layers


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _terms(config: Any) -> dict[str, bool]:
    """Which position terms a DeBERTa has."""
    terms = list(config.pos_att_type or [])
    _require(bool(config.relative_attention), "relative_attention=False: it has no relative positions")
    _require(
        bool(terms) and len(set(terms)) == len(terms) and set(terms) <= {"c2p", "p2c"},
        f"pos_att_type={terms}: only c2p and p2c, once each, are known here, and one of them must be there",
    )
    return {"c2p": "c2p" in terms, "p2c": "p2c" in terms}


def _farthest(config: Any) -> int:
    given = config.max_relative_positions
    return config.max_position_embeddings if given < 1 else given


def _deberta(config: Any) -> dict[str, Any]:
    return {"max_relative_positions": _farthest(config), **_terms(config)}


def _deberta_v2(config: Any) -> dict[str, Any]:
    norm = "layer_norm" in [part.strip() for part in getattr(config, "norm_rel_ebd", "none").lower().split("|")]
    _require(
        not norm or config.layer_norm_eps == 1e-7,
        f"layer_norm_eps={config.layer_norm_eps}: the table's LayerNorm is known here with 1e-7 only",
    )
    buckets = getattr(config, "position_buckets", -1)
    return {
        "position_buckets": buckets if buckets > 0 else None,
        "max_relative_positions": _farthest(config),
        "norm": norm,
        **_terms(config),
    }


def _deberta_v2_native(config: Any) -> dict[str, Any]:
    return {"share_att_key": bool(getattr(config, "share_att_key", False)), "scaling": "paper"}


def _t5(config: Any) -> dict[str, Any]:
    return {
        "num_buckets": config.relative_attention_num_buckets,
        "max_distance": config.relative_attention_max_distance,
    }


def _mpnet(config: Any) -> dict[str, Any]:
    buckets = config.relative_attention_num_buckets
    _require(
        buckets == 32,
        f"relative_attention_num_buckets={buckets}: transformers' MPNet computes buckets of 32, whatever its table",
    )
    return {"num_buckets": buckets, "max_distance": 128}


def _xlnet(config: Any) -> dict[str, Any]:
    _require(not config.bi_data, "bi_data=True: half of each batch has its distances turned around")
    return {"clamp_len": config.clamp_len if config.clamp_len > 0 else None}


def _mpt(config: Any) -> dict[str, Any]:
    attention = config.attn_config
    _require(attention.alibi, "attn_config.alibi=False: its positions are of another kind")
    _require(
        attention.alibi_bias_max == 8,
        f"attn_config.alibi_bias_max={attention.alibi_bias_max}: slopes of the paper go down to 2**-8",
    )
    return {}


def _falcon(config: Any) -> dict[str, Any]:
    _require(config.alibi, "alibi=False: its positions are rotations")
    return {"learned": True}


def _falcon_scale(config: Any) -> dict[str, Tensor]:
    # Falcon scales the penalty together with the content score
    width = config.hidden_size // config.num_attention_heads
    return {"log_scale": torch.full((config.num_attention_heads,), -math.log(width) / 2, dtype=torch.float64)}


_BLOCK = "{side}.block.%s.layer.0.SelfAttention.relative_attention_bias.weight"
_ATTENTION = "encoder.layer.{layer}.attention.self."
_T5 = Spelling("t5", _t5, parameters={"bias": (_BLOCK % 0,)})

# by model type of transformers
SPELLINGS: dict[str, Spelling] = {
    "t5": _T5,
    "mt5": _T5,
    "umt5": Spelling(
        "t5", lambda config: {**_t5(config), "share_layers": False}, parameters={"bias": (_BLOCK % "{layer}",)}
    ),
    "mpnet": Spelling("t5", _mpnet, parameters={"bias": ("encoder.relative_attention_bias.weight",)}),
    "deberta": Spelling(
        "deberta",
        _deberta,
        lambda config: {"scaling": "paper"},
        parameters={
            "shared_part.table": ("encoder.rel_embeddings.weight",),
            "key_projection": (f"{_ATTENTION}pos_proj.weight",),
            "query_projection": (f"{_ATTENTION}pos_q_proj.weight",),
            "query_bias": (f"{_ATTENTION}pos_q_proj.bias",),
        },
    ),
    # without projections of its own for positions it uses those for content, which then are both
    "deberta-v2": Spelling(
        "deberta_v2",
        _deberta_v2,
        _deberta_v2_native,
        parameters={
            "shared_part.table": ("encoder.rel_embeddings.weight",),
            "shared_part.norm_weight": ("encoder.LayerNorm.weight",),
            "shared_part.norm_bias": ("encoder.LayerNorm.bias",),
            "key_projection": (f"{_ATTENTION}pos_key_proj.weight", f"{_ATTENTION}key_proj.weight"),
            "key_bias": (f"{_ATTENTION}pos_key_proj.bias", f"{_ATTENTION}key_proj.bias"),
            "query_projection": (f"{_ATTENTION}pos_query_proj.weight", f"{_ATTENTION}query_proj.weight"),
            "query_bias": (f"{_ATTENTION}pos_query_proj.bias", f"{_ATTENTION}query_proj.bias"),
        },
    ),
    "xlnet": Spelling(
        "xlnet",
        _xlnet,
        parameters={
            "content_bias": ("layer.{layer}.rel_attn.r_w_bias",),
            "position_bias": ("layer.{layer}.rel_attn.r_r_bias",),
            "segment_bias": ("layer.{layer}.rel_attn.r_s_bias",),
            "segment_embedding": ("layer.{layer}.rel_attn.seg_embed",),
            "projection": ("layer.{layer}.rel_attn.r",),
        },
        tensors={"projection": lambda tensor: tensor.flatten(1).T.clone()},
    ),
    "bloom": Spelling("alibi"),
    "mpt": Spelling("alibi", _mpt),
    "falcon": Spelling("alibi", _falcon, constants=_falcon_scale),
}
