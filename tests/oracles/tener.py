"""TENER, arXiv 1911.04474, section 4.2: ``((q + u) . k + (q + v) . R(j - i)) * scale``, unscaled in the paper; sines first, frequencies
``10000**(-k / (D/2 - 1))`` and the sign of the distance as in the authors' code."""

import math

import torch

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    width = query.shape[-1]
    factor = 1.0 if options["scaling"] == "paper" else scale

    def score(b, h, q, k, i, j):
        phases = [(j - i) / 10000 ** (c / (width / 2 - 1)) for c in range(width // 2)]
        r = torch.tensor([math.sin(p) for p in phases] + [math.cos(p) for p in phases], dtype=q.dtype)
        return ((q + params["content_bias"][h]) @ k + (q + params["position_bias"][h]) @ r) * factor

    return attend(query, key, value, query_slots, key_slots, allowed, score)
