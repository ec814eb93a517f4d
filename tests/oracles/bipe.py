"""BiPE, arXiv 2401.16421, the part between segments: RoPE or ALiBi on the number of the segment that a token stands in.

ALiBi has its slopes times ``slope_factor``: ``q . k * scale - slope_factor m_h |s_i - s_j|``. Queries stand among the keys.
"""

from oracles.alibi import slopes
from oracles.common import attend_pairs
from oracles.rope import frequencies, turn


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, segment_ids):
    theta = frequencies(query.shape[-1], options["base"])
    m = slopes(query.shape[1])

    def score(b, h, qi, kj):
        q, k = query[b, h, qi], key[b, h, kj]
        n = int(segment_ids[b, key_slots.index(query_slots[qi])]) - int(segment_ids[b, kj])
        if options["inter"] == "alibi":
            return q @ k * scale - options["slope_factor"] * m[h] * abs(n)
        return turn(q, [n * f for f in theta], options["layout"]) @ k * scale

    return attend_pairs(query, value, allowed, score)
