"""Forgetting Transformer, arXiv 2503.02130: ``q . k * scale + sum_{l=j+1..i} log f_l``, ``f_l = sigmoid(w_h . x_l + b_h)``.

For a key after the query, where it may see one, the sum runs over l = i+1..j and the gates have weights of their own (x-transformers). x_l is
the layer's input for key number l; the query at slot i is key number ``i - key_slots[0]``.
"""

from torch.nn.functional import logsigmoid

from oracles.common import attend_pairs


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, hidden_states):
    def log_gate(b, h, token, direction=""):
        weight, bias = params[f"weight{direction}"][h], params[f"bias{direction}"][h]
        return logsigmoid(weight @ hidden_states[b, token] + bias)

    def score(b, h, qi, kj):
        i, j = int(query_slots[qi]) - int(key_slots[0]), kj
        content = query[b, h, qi] @ key[b, h, kj] * scale
        if j <= i:
            return content + sum(log_gate(b, h, token) for token in range(j + 1, i + 1))
        if options["direction"] == "causal":
            return content
        return content + sum(log_gate(b, h, token, "_future") for token in range(i + 1, j + 1))

    return attend_pairs(query, value, allowed, score)
