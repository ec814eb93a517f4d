"""KERPLE, arXiv 2205.09921, power variant: ``q . k * scale - a |i - j|^p``, a at least 0.01, p from 0.01 to 2; nothing at distance 0."""

import torch

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        if i == j:
            return q @ k * scale
        a = torch.clamp(params["a"][h], min=0.01)
        p = torch.clamp(params["p"][h], min=0.01, max=2.0)
        return q @ k * scale - a * float(abs(i - j)) ** p

    return attend(query, key, value, query_slots, key_slots, allowed, score)
