"""CABLE, arXiv 2503.08067: ``q . k * scale + b_i - b_j``, ``b_t = -sum_{l<=t} softplus(w_h . x_l + c_h)``; unscaled in the paper's code.

So ``b_i - b_j = -sum_{l=j+1..i} softplus(..)``, which is how it stands here; for a key after the query the symmetric direction has
``b_j - b_i``. x_l is the layer's input for key number l; the query at slot i is key number ``i - key_slots[0]``.
"""

from torch.nn.functional import softplus

from oracles.common import attend_pairs


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, hidden_states):
    factor = 1.0 if options["scaling"] == "paper" else scale

    def step(b, h, token):
        return softplus(params["weight"][h] @ hidden_states[b, token] + params["bias"][h])

    def score(b, h, qi, kj):
        i, j = int(query_slots[qi]) - int(key_slots[0]), kj
        content = query[b, h, qi] @ key[b, h, kj] * factor
        if j > i and options["direction"] == "causal":
            return content
        return content - sum(step(b, h, token) for token in range(min(i, j) + 1, max(i, j) + 1))

    return attend_pairs(query, value, allowed, score)
