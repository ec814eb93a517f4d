"""Huang et al., arXiv 2009.13658, method 4: ``(q . k + q . E[d] + k . E[d]) * scale``, ``d = i - j + P - 1`` clipped to the table."""

from oracles.common import attend
from oracles.relative_key import row


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        e = params["distance_embedding"][row(options, i, j)]
        return (q @ k + q @ e + k @ e) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
