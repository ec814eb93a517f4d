"""ALiBi, arXiv 2108.12409: ``q . k * scale - m_h |i - j|`` over past keys; over all keys; or one side for each half of the heads.
Learned slopes are ``m_h exp(log_scale_h)``."""

import math

import torch

from oracles.common import attend


def slopes(heads):
    if math.log2(heads).is_integer():
        ratio = 2 ** (-8 / heads)
        return [ratio ** (h + 1) for h in range(heads)]
    below = 2 ** int(math.log2(heads))
    return slopes(below) + slopes(2 * below)[::2][: heads - below]


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    heads = query.shape[1]
    if options["direction"] == "one_sided":
        past = heads // 2
        m = slopes(past) + slopes(heads - past)

        def visible(h, i, j):
            return j <= i if h < past else j >= i
    else:
        m, visible = slopes(heads), None
    causal = options["direction"] == "causal"

    def slope(h):
        return m[h] * torch.exp(params["log_scale"][h]) if options.get("learned") else m[h]

    def score(b, h, q, k, i, j):
        return q @ k * scale - slope(h) * (max(i - j, 0) if causal else abs(i - j))

    return attend(query, key, value, query_slots, key_slots, allowed, score, visible=visible)
