"""Shaw et al., arXiv 1803.02155, equations 3 to 5: ``q . (k + aK) * scale``, values ``v + aV``, tables over ``clip(j - i, -K, K)``."""

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    limit = options["max_distance"]

    def row(i, j):
        return min(max(j - i, -limit), limit) + limit

    def score(b, h, q, k, i, j):
        return q @ (k + params["key_table"][row(i, j)]) * scale if options["keys"] else q @ k * scale

    def value_of(b, h, v, i, j):
        return v + params["value_table"][row(i, j)] if options["values"] else v

    return attend(query, key, value, query_slots, key_slots, allowed, score, value_of)
