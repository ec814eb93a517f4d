"""WavLM's gated T5 bias, arXiv 2110.13900: ``q . k * scale + g_ih B[bucket(j - i), h]``, ``g = a (b c_h - 1) + 2``.

a and b are sigmoids of the first and the last four of ``W x_ih + w`` summed, x_ih the h-th of H equal parts of the layer's input at the
query, which at slot i is key number ``i - key_slots[0]``.
"""

import torch

from oracles.common import attend_pairs
from oracles.t5 import bucket


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, hidden_states):
    part = hidden_states.shape[-1] // query.shape[1]
    bidirectional = options["direction"] == "bidirectional"

    def gate(b, h, i):
        x = hidden_states[b, i - key_slots[0], h * part : (h + 1) * part]
        eight = params["gate_weight"] @ x + params["gate_bias"]
        first, second = torch.sigmoid(eight[:4].sum()), torch.sigmoid(eight[4:].sum())
        return first * (second * params["gate_constant"][h] - 1) + 2

    def score(b, h, qi, kj):
        i, j = int(query_slots[qi]), int(key_slots[kj])
        place = bucket(j - i, options["num_buckets"], options["max_distance"], bidirectional)
        return query[b, h, qi] @ key[b, h, kj] * scale + gate(b, h, i) * params["shared_part.bias"][place, h]

    return attend_pairs(query, value, allowed, score)
