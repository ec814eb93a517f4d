"""DeBERTa v2 and v3, arXiv 2111.09543: ``(q . k + q . Kr[d] + k . Qr[d]) * f``, ``d = clamp(bucket(i - j) + S, 0, 2 S - 1)``.

``Kr = Wk T + bk`` and ``Qr = Wq T + bq`` for the table T of all layers, its rows normalised where the model says so. S is the number of buckets,
or the longest distance where there are none. f is the host's scale or, in the paper, that over the square root of the number of terms.
Projections that the content shares are not covered.
"""

import math

from torch.nn.functional import layer_norm

from oracles.common import attend


def bucket(n, buckets, longest):
    """Whole distances up to the middle, then logarithmic ones, the sign kept; beyond ``longest`` it grows on, as in transformers."""
    middle = buckets // 2
    if abs(n) <= middle:
        return n
    place = middle + math.ceil(math.log(abs(n) / middle) / math.log((longest - 1) / middle) * (middle - 1))
    return place if n > 0 else -place


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    if options["share_att_key"]:
        raise NotImplementedError("share_att_key")
    width, buckets, longest = query.shape[-1], options["position_buckets"], options["max_relative_positions"]
    span = longest if buckets is None else buckets
    terms = 1 + options["c2p"] + options["p2c"]
    factor = scale / math.sqrt(terms) if options["scaling"] == "paper" else scale

    def row(n):
        place = n if buckets is None else bucket(n, buckets, longest)
        r = params["shared_part.table"][min(max(place + span, 0), 2 * span - 1)]
        if options["norm"]:
            r = layer_norm(r, r.shape, params["shared_part.norm_weight"], params["shared_part.norm_bias"], 1e-7)
        return r

    def score(b, h, q, k, i, j):
        rows = slice(h * width, (h + 1) * width)
        total = q @ k
        if options["c2p"]:
            total = total + q @ (params["key_projection"][rows] @ row(i - j) + params["key_bias"][rows])
        if options["p2c"]:
            total = total + k @ (params["query_projection"][rows] @ row(i - j) + params["query_bias"][rows])
        return total * factor

    return attend(query, key, value, query_slots, key_slots, allowed, score)
