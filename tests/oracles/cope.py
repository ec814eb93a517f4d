"""CoPE, arXiv 2405.18719, equations 3 to 6: positions counted by gates, and between two whole ones interpolated.

``g_ij = sigmoid(q_i . k_j * scale)``; ``p_ij = min(sum_{t=j..i} g_it, npos - 1)`` over the keys that the query may see; ``z_ij = (1 - w) q_i .
e[floor p] + w q_i . e[ceil p]`` with ``w = p - floor p``. The score is ``(q_i . k_j + z_ij) * scale``, with ``nodiv`` ``q_i . k_j * scale + z_ij``.
For a key after the query the symmetric direction counts t = i..j.
"""

import math

import torch

from oracles.common import attend_rows


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    table, last = params["table"], options["npos"] - 1

    def between(i, j, t):
        if options["direction"] == "symmetric":
            return min(i, j) <= t <= max(i, j)
        return j <= t <= i

    def row(b, h, qi, keys):
        q, i = query[b, h, qi], int(query_slots[qi])
        content = {kj: q @ key[b, h, kj] * scale for kj in keys}
        gate = {kj: torch.sigmoid(content[kj]) for kj in keys}

        def z(kj):
            j = int(key_slots[kj])
            p = sum((gate[t] for t in keys if between(i, j, int(key_slots[t]))), torch.zeros_like(content[kj]))
            if p >= last:
                return q @ table[last]
            below, above = math.floor(p.detach()), math.ceil(p.detach())
            w = p - below
            return (1 - w) * (q @ table[below]) + w * (q @ table[above])

        return [content[kj] + (z(kj) if options["nodiv"] else z(kj) * scale) for kj in keys]

    return attend_rows(query, value, allowed, row)
