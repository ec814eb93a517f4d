"""RoPE, arXiv 2104.09864: pair c of the rotating coordinates turns by ``slot * base**(-2c / rd)`` in query and key."""

import math

import torch

from oracles.common import attend


def turn(x, slot, options):
    rotating = int(len(x) * options["fraction"])
    result = list(x)
    for c in range(rotating // 2):
        first, second = (c, c + rotating // 2) if options["layout"] == "half" else (2 * c, 2 * c + 1)
        angle = slot * options["base"] ** (-2 * c / rotating)
        result[first] = x[first] * math.cos(angle) - x[second] * math.sin(angle)
        result[second] = x[second] * math.cos(angle) + x[first] * math.sin(angle)
    return torch.stack(result)


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        return turn(q, i, options) @ turn(k, j, options) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
