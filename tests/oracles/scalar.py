"""One learned number per head and distance, as Wu et al., AAAI 2021, doi 10.1609/aaai.v35i16.17654, without buckets:
``q . k * scale + t_h[clip(j - i, -K, K) + K]``."""

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    limit = options["max_distance"]

    def score(b, h, q, k, i, j):
        return q @ k * scale + params["bias"][h, min(max(j - i, -limit), limit) + limit]

    return attend(query, key, value, query_slots, key_slots, allowed, score)
