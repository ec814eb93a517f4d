"""KERPLE, arXiv 2205.09921, logarithmic variant: ``q . k * scale - p log(1 + a |i - j|)``, p and a at least 0.01."""

import torch

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        p = torch.clamp(params["p"][h], min=0.01)
        a = torch.clamp(params["a"][h], min=0.01)
        return q @ k * scale - p * torch.log(1 + a * abs(i - j))

    return attend(query, key, value, query_slots, key_slots, allowed, score)
