"""TUPE, arXiv 2006.15595, section 3: ``(q . k + B_st) * f + bias[bucket(j - i), h]``, ``B_st = (Wq p_s + bq)_h . (Wk p_t + bk)_h``.

p are the normalised rows of the position table; the token at index t of its text has row t + 1. f is the host's scale or, in the paper, that
over sqrt(2). The bias is T5's, of the variant with relative positions. Untied, every pair whose key is index 0 has B_11 and the last
bias, and then every pair whose query is index 0 has B_00 and the bias that T5's buckets leave unused, as in the published code.
"""

import math

from torch.nn.functional import layer_norm

from oracles.common import attend_pairs
from oracles.t5 import bucket


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, query_index, key_index):
    width, buckets = query.shape[-1], options["num_buckets"]
    factor = scale / math.sqrt(2) if options["scaling"] == "paper" else scale

    def position(row):
        p = params["position_table"][row]
        return layer_norm(p, p.shape, params["norm_weight"], params["norm_bias"], 1e-5)

    def correlation(h, s, t):
        rows = slice(h * width, (h + 1) * width)
        u = params["query_projection"][rows] @ position(s) + params["query_bias"][rows]
        v = params["key_projection"][rows] @ position(t) + params["key_bias"][rows]
        return u @ v

    def score(b, h, qi, kj):
        s, t = int(query_index[b, qi]) + 1, int(key_index[b, kj]) + 1
        distance = int(key_slots[kj]) - int(query_slots[qi])
        place = bucket(distance, buckets, options["max_distance"], bidirectional=True)
        if options["untie_cls"] and s == 1:
            s, t, place = 0, 0, buckets // 2
        elif options["untie_cls"] and t == 1:
            s, t, place = 1, 1, buckets
        logit = (query[b, h, qi] @ key[b, h, kj] + correlation(h, s, t)) * factor
        return logit + params["bias"][place, h] if options["relative"] else logit

    return attend_pairs(query, value, allowed, score)
