"""Sandwich, arXiv 2212.10356: ``q . k * scale + (sum over k = 1..d/2 of cos(n / base^(2k/d)) - d/2) / (8h/H)``, n = i - j, h = 1..H."""

import math

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    heads, d = query.shape[1], options["dim"]

    def score(b, h, q, k, i, j):
        cosines = sum(math.cos((i - j) / options["base"] ** (2 * m / d)) for m in range(1, d // 2 + 1))
        return q @ k * scale + (cosines - d / 2) / (8 * (h + 1) / heads)

    return attend(query, key, value, query_slots, key_slots, allowed, score)
