"""TISA, Wennberg and Henter, arXiv 2106.01950: ``q . k * scale + sum over s of a_s exp(-|b_s| (n - c_s)^2)``, n = i - j, for each head."""

import torch

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        bumps = [
            params["amplitude"][s, h]
            * torch.exp(-torch.abs(params["sharpness"][s, h]) * (i - j - params["offset"][s, h]) ** 2)
            for s in range(options["kernels"])
        ]
        return q @ k * scale + sum(bumps)

    return attend(query, key, value, query_slots, key_slots, allowed, score)
