"""Distance curves weighted by the query (x-transformers, ``RelativeProjPositionalBias``): ``q . k * scale + sum_r (W x_i)_hr bank[r, n]``.

n = i - j, or its absolute value in both directions; nothing is added where the bank has no column n. x_i is the layer's input at the query,
which at slot i is key number ``i - key_slots[0]``.
"""

from oracles.common import attend_pairs


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, hidden_states):
    bases = options["num_bases"]

    def score(b, h, qi, kj):
        i, j = int(query_slots[qi]), int(key_slots[kj])
        n = abs(i - j) if options["direction"] == "symmetric" else i - j
        content = query[b, h, qi] @ key[b, h, kj] * scale
        if not 0 <= n < options["max_distance"]:
            return content
        weights = params["projection"][h * bases : (h + 1) * bases] @ hidden_states[b, i - key_slots[0]]
        return content + weights @ params["bank"][:, n]

    return attend_pairs(query, value, allowed, score)
