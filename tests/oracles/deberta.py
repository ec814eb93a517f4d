"""DeBERTa, arXiv 2006.03654, equation 4: ``(q . k + q . Kr[d(i - j)] + k . Qr[d(n)]) * f``, ``d(n) = clamp(n, -P, P - 1) + P``.

``Kr = Wk T`` and ``Qr = Wq T + b`` for the table T of all layers. In both published codes n = i - j, in the paper n = j - i. f is the host's
scale or, in the paper, that over the square root of the number of terms.
"""

import math

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    width, limit = query.shape[-1], options["max_relative_positions"]
    table = params["shared_part.table"]
    terms = 1 + options["c2p"] + options["p2c"]
    factor = scale / math.sqrt(terms) if options["scaling"] == "paper" else scale

    def row(n):
        return table[min(max(n, -limit), limit - 1) + limit]

    def score(b, h, q, k, i, j):
        rows = slice(h * width, (h + 1) * width)
        total = q @ k
        if options["c2p"]:
            total = total + q @ (params["key_projection"][rows] @ row(i - j))
        if options["p2c"]:
            n = j - i if options["p2c_distance"] == "paper" else i - j
            total = total + k @ (params["query_projection"][rows] @ row(n) + params["query_bias"][rows])
        return total * factor

    return attend(query, key, value, query_slots, key_slots, allowed, score)
