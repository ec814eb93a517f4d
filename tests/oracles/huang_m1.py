"""Huang et al., arXiv 2009.13658, method 1: ``q . k * a[|i - j|] * scale``, distances clipped to the table."""

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    limit = options["max_position_embeddings"] - 1

    def score(b, h, q, k, i, j):
        return q @ k * params["factor"][min(abs(i - j), limit)] * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
