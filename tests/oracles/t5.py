"""T5, arXiv 1910.10683, section 2.1: ``q . k + B[bucket(j - i), h]``; unscaled in the paper, scaled where the host says so."""

import math

from oracles.common import attend


def bucket(relative, buckets, longest, bidirectional):
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    place = exact + int(math.log(distance / exact) / math.log(longest / exact) * (buckets - exact))
    return offset + min(place, buckets - 1)


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    factor = 1.0 if options["scaling"] == "paper" else scale
    bidirectional = options["direction"] == "bidirectional"

    def score(b, h, q, k, i, j):
        return (
            q @ k * factor
            + params["bias"][bucket(j - i, options["num_buckets"], options["max_distance"], bidirectional), h]
        )

    return attend(query, key, value, query_slots, key_slots, allowed, score)
