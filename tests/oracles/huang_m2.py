"""Huang et al., arXiv 2009.13658, method 2: ``q . k * a[i - j + P - 1] * scale``, distances clipped to the table."""

from oracles.common import attend
from oracles.relative_key import row


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        return q @ k * params["factor"][row(options, i, j)] * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
