"""RoPE, arXiv 2104.09864: pair c of the rotating coordinates turns by ``slot * base**(-2c / rd)`` in query and key.

Scalings for long texts replace the frequencies, some also multiply the turned coordinates by an attention factor: linear (arXiv 2306.15595), ntk
and dynamic (base grown by a power of the stretch), yarn (arXiv 2309.00071), llama3 (arXiv 2407.21783), longrope (arXiv 2402.13753), with the
settings that transformers' ``modeling_rope_utils`` knows by these names.

Of a scaled RoPE, transformers' own numbers are the definition: it computes them in float32, and checkpoints were trained with them. ``scaled`` has the
formulas in float64 and ``reference`` those numbers; ``tests/test_rope_scaling.py`` holds them against each other, and attention takes the latter.
"""

import math

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from oracles.common import attend


def pairs(rotating, layout):
    """The two coordinates of each pair."""
    half = rotating // 2
    return [(c, c + half) if layout == "half" else (2 * c, 2 * c + 1) for c in range(half)]


def frequencies(rotating, base):
    return [base ** (-2 * c / rotating) for c in range(rotating // 2)]


def turn(x, angles, layout):
    """The vector with its first pairs turned by ``angles``."""
    result = list(x)
    for angle, (a, b) in zip(angles, pairs(2 * len(angles), layout), strict=True):
        result[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        result[b] = x[b] * math.cos(angle) + x[a] * math.sin(angle)
    return torch.stack(result)


def grown(base, stretch, rotating):
    return base * stretch ** (rotating / (rotating - 2))


def yarn(theta, rotating, base, factor, original, scaling):
    def dim(rotations):
        return rotating * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(base))

    low, high = dim(scaling.get("beta_fast") or 32), dim(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotating - 1)
    if high == low:
        high += 0.001
    kept = [1 - min(max((c - low) / (high - low), 0), 1) for c in range(len(theta))]
    return [f / factor * (1 - g) + f * g for f, g in zip(theta, kept, strict=True)]


def yarn_attention_factor(factor, scaling):
    def mscale(m):
        return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1)


def llama3(theta, factor, original, scaling):
    low, high = scaling.get("low_freq_factor", 1), scaling.get("high_freq_factor", 4)
    result = []
    for f in theta:
        wave_length = 2 * math.pi / f
        if wave_length < original / high:
            result.append(f)
        elif wave_length > original / low:
            result.append(f / factor)
        else:
            t = (original / wave_length - low) / (high - low)
            result.append((1 - t) * f / factor + t * f)
    return result


def longrope_attention_factor(factor, original, scaling):
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def scaled(rotating, base, scaling, longest):
    """The frequencies and the attention factor of a call whose last token is number ``longest``, counted from 1."""
    theta = frequencies(rotating, base)
    if scaling is None:
        return theta, 1.0
    original = scaling.get("original_max_position_embeddings") or scaling.get("max_position_embeddings")
    trained = scaling.get("max_position_embeddings") or original
    factor = scaling.get("factor") or trained / original
    match scaling["rope_type"]:
        case "linear":
            return [f / factor for f in theta], 1.0
        case "ntk":
            return frequencies(rotating, grown(base, factor, rotating)), 1.0
        case "dynamic":
            stretch = factor * max(longest, trained) / trained - (factor - 1)
            return frequencies(rotating, grown(base, stretch, rotating)), 1.0
        case "yarn":
            return yarn(theta, rotating, base, factor, original, scaling), yarn_attention_factor(factor, scaling)
        case "llama3":
            return llama3(theta, factor, original, scaling), 1.0
        case "longrope":
            stretches = scaling["long_factor"] if longest > original else scaling["short_factor"]
            return (
                [f / s for f, s in zip(theta, stretches, strict=True)],
                longrope_attention_factor(factor, original, scaling),
            )
    raise NotImplementedError(scaling["rope_type"])


def reference(rotating, base, scaling, longest):
    """The same as transformers computes them in a Llama with one head that rotates as a whole; ntk and unscaled RoPE are none of its recipes."""
    if scaling is None or scaling["rope_type"] == "ntk":
        return scaled(rotating, base, scaling, longest)
    parameters = {"rope_theta": base, **scaling}
    # the kinds without a length of their own read the model's
    trained = scaling.get("original_max_position_embeddings", longest)
    config = LlamaConfig(
        hidden_size=rotating, num_attention_heads=1, max_position_embeddings=trained, rope_parameters=parameters
    )
    theta, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"), seq_len=longest)
    return theta.tolist(), factor


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    rotating = int(query.shape[-1] * options["fraction"])
    longest = max([*query_slots, *key_slots]) + 1
    theta, factor = reference(rotating, options["base"], options.get("rope_scaling"), longest)

    def turned(x, slot):
        y = turn(x, [slot * f for f in theta], options["layout"])
        return torch.cat((y[:rotating] * factor, y[rotating:]))

    def score(b, h, q, k, i, j):
        return turned(q, i) @ turned(k, j) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
