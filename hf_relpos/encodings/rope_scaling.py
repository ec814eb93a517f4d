"""Frequencies of RoPE for texts longer than those of pretraining: the recipes of transformers, under its names.

``rope_type`` linear (Chen et al. 2023, arXiv 2306.15595), dynamic (bloc97's NTK-aware scaling, following the length of the text), yarn (Peng
et al. 2023, arXiv 2309.00071), llama3 (Llama 3.1) and longrope (Ding et al. 2024, arXiv 2402.13753) are computed by transformers itself, so
that its checkpoints find their numbers; ``ntk`` is the fixed form of dynamic, ``base * factor**(rd / (rd - 2))``.

Dynamic and longrope depend on the length of the call alone, where transformers keeps the longest one seen. What transformers takes from a
model's ``original_max_position_embeddings`` or, where there is none, ``max_position_embeddings`` is the first of the two here as well.
"""

from typing import Any

import torch
from torch import Tensor

from .options import Host

# required and optional keys of each kind, apart from rope_type
KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "ntk": ({"factor"}, set()),
    "dynamic": ({"factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        },
    ),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "longrope": (
        {"short_factor", "long_factor"},
        {"factor", "original_max_position_embeddings", "attention_factor"},
    ),
}
LISTS = ("short_factor", "long_factor")
BY_LENGTH = ("dynamic", "longrope")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def check_scaling(scaling: dict[str, Any]) -> None:
    """ValueError unless ``scaling`` is a known ``rope_type`` with its keys and numbers."""
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise ValueError(f"rope_scaling: rope_type={kind!r} is not valid; valid types: {', '.join(KEYS)}")
    required, optional = KEYS[kind]
    valid = ", ".join(sorted(required | optional))
    for key in sorted(required - scaling.keys()):
        raise ValueError(f"rope_scaling of type {kind!r} lacks {key!r}; keys: {valid}")
    for key, value in scaling.items():
        if key == "rope_type":
            continue
        if key not in required | optional:
            raise ValueError(f"rope_scaling of type {kind!r} has no key {key!r}; valid keys: {valid}")
        if key in LISTS:
            fits, what = (
                isinstance(value, (list, tuple)) and all(map(_is_positive, value)),
                "a list of positive numbers",
            )
        elif key == "truncate":
            fits, what = isinstance(value, bool), "true or false"
        else:
            fits, what = _is_positive(value) or (value is None and key in optional), "a positive number"
        if not fits:
            raise ValueError(f"rope_scaling: {key}={value!r} is not valid: it must be {what}")
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ValueError(
            f"rope_scaling: low_freq_factor={scaling['low_freq_factor']!r} is not valid: it must be below "
            f"high_freq_factor={scaling['high_freq_factor']!r}"
        )


def resolve_scaling(scaling: dict[str, Any], rotated: int, host: Host) -> dict[str, Any]:
    """``scaling`` with what it leaves to the host filled in; ValueError where it does not fit ``rotated`` coordinates or the host."""
    kind = scaling["rope_type"]
    resolved = {key: value for key, value in scaling.items() if value is not None}
    if kind in ("ntk", "dynamic") and rotated < 4:
        raise ValueError(
            f"rope_scaling of type {kind!r} needs at least 4 rotating coordinates, but there are {rotated}"
        )
    for key in LISTS:
        if key in resolved and len(resolved[key]) != rotated // 2:
            raise ValueError(
                f"rope_scaling: {key} has {len(resolved[key])} numbers, but {rotated} rotating coordinates form {rotated // 2} pairs"
            )
    longest = host.max_position_embeddings
    missing = [key for key in ("original_max_position_embeddings",) if key in KEYS[kind][1] and key not in resolved]
    # longrope's temperature comes from how far the text was stretched
    if kind == "longrope" and not resolved.keys() & {"factor", "attention_factor"}:
        missing.append("factor")
    if missing and longest is None:
        raise ValueError(
            f"rope_scaling of type {kind!r} lacks {missing[0]!r}, and the host has no max_position_embeddings"
        )
    if longest is not None:
        if "original_max_position_embeddings" in missing:
            resolved["original_max_position_embeddings"] = longest
        if "factor" in missing:
            resolved["factor"] = longest / resolved["original_max_position_embeddings"]
    return resolved


class _Config:
    """What transformers' functions read of a config: one head, all of which rotates."""

    def __init__(self, rope_parameters: dict[str, Any], rotated: int, original: int | None):
        self.rope_parameters = rope_parameters
        self.head_dim = self.hidden_size = rotated
        self.num_attention_heads = 1
        self.max_position_embeddings = original

    def standardize_rope_params(self) -> None:
        """Nothing to do: they never had an older form."""


def scaled_frequencies(
    scaling: dict[str, Any], base: float, rotated: int, length: int | Tensor, device: torch.device
) -> tuple[Tensor, float]:
    """Radians per slot of each pair ``[rotated / 2]``, and the factor of rotated queries and keys, for a text of ``length`` tokens."""
    kind = scaling["rope_type"]
    if kind == "ntk":
        exponents = torch.arange(0, rotated, 2, device=device, dtype=torch.float64) / rotated
        return (base * scaling["factor"] ** (rotated / (rotated - 2))) ** -exponents, 1.0
    # the package's encodings are plain torch otherwise: only those who scale RoPE need transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = scaling.get("original_max_position_embeddings")
    config = _Config({**scaling, "rope_theta": base}, rotated, original)
    compute: Any = ROPE_INIT_FUNCTIONS[kind]
    if kind not in BY_LENGTH:
        return compute(config, device)
    if kind == "longrope" and isinstance(length, Tensor):
        # both sets, because asking a tensor for its value would synchronise
        short, factor = compute(config, device, seq_len=original)
        long, _ = compute(config, device, seq_len=original + 1)
        return torch.where(length > original, long, short), factor
    return compute(config, device, seq_len=length)
