"""BERT's relative_key (transformers 4): ``(q . k + q . E[i - j + P - 1]) * scale``, distances clipped to the table."""

from oracles.common import attend


def row(options, i, j):
    limit = options["max_position_embeddings"] - 1
    return min(max(i - j, -limit), limit) + limit


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        return (q @ k + q @ params["distance_embedding"][row(options, i, j)]) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
