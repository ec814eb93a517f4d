"""Self-Extend, arXiv 2401.01325: RoPE whose distance n is kept below the window w and else is ``floor(i / G) - floor(j / G) + w - w / G``.

i and j are the numbers of the tokens in their texts, the shift is mirrored for n < 0; the paper has ``floor(w / G)``.
"""

import math

from oracles.common import attend_pairs
from oracles.rope import frequencies, turn


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, query_index, key_index):
    window, group = options["window"], options["group_size"]
    theta = frequencies(query.shape[-1], options["base"])
    shift = window - (window // group if options["shift"] == "paper" else window / group)

    def distance(n, i, j):
        if abs(n) < window:
            return n
        return i // group - j // group + math.copysign(shift, n)

    def score(b, h, qi, kj):
        n = int(query_slots[qi]) - int(key_slots[kj])
        n = distance(n, int(query_index[b, qi]), int(key_index[b, kj]))
        return turn(query[b, h, qi], [n * f for f in theta], options["layout"]) @ key[b, h, kj] * scale

    return attend_pairs(query, value, allowed, score)
