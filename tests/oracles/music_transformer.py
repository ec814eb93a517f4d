"""Music Transformer, arXiv 1809.04281: ``(q . k + q . Er[h, j - i + M - 1]) * scale`` where that row exists, else ``q . k * scale``;
rows for 0 <= i - j < M, or for |i - j| < M in both directions."""

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    longest = options["max_distance"]
    rows = longest if options["direction"] == "causal" else 2 * longest - 1

    def score(b, h, q, k, i, j):
        row = j - i + longest - 1
        if not 0 <= row < rows:
            return q @ k * scale
        table = params["table"][h] if options["per_head"] else params["table"]
        return (q @ k + q @ table[row]) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
