"""No position: ``q . k * scale``."""

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    return attend(query, key, value, query_slots, key_slots, allowed, lambda b, h, q, k, i, j: q @ k * scale)
