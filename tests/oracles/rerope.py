"""ReRoPE, kexue.fm/archives/9708: RoPE whose distance n is kept below the window w and else is w, or w + (n - w) / k (leaky), mirrored for n < 0.

With ``train_length`` T the query number i of its text is multiplied by ``max(1, ln(i + 1) / ln T)``.
"""

import math

from oracles.common import attend_pairs
from oracles.rope import frequencies, turn


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, query_index):
    window, factor, trained = options["window"], options["factor"], options["train_length"]
    theta = frequencies(query.shape[-1], options["base"])

    def distance(n):
        if abs(n) < window:
            return n
        return math.copysign(window if factor is None else window + (abs(n) - window) / factor, n)

    def sharpening(b, qi):
        length = int(query_index[b, qi]) + 1
        return 1.0 if trained is None or length <= trained else math.log(length) / math.log(trained)

    def score(b, h, qi, kj):
        n = distance(int(query_slots[qi]) - int(key_slots[kj]))
        q = query[b, h, qi] * sharpening(b, qi)
        return turn(q, [n * f for f in theta], options["layout"]) @ key[b, h, kj] * scale

    return attend_pairs(query, value, allowed, score)
