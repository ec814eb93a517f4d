"""The plain sinusoidal encoding as a scalar: ``q . k * scale + w_h . RPE(i - j)``, RPE interleaved."""

from oracles.common import attend, wave


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, q, k, i, j):
        return q @ k * scale + params["weight"][h] @ wave(i - j, options["dim"], options["base"], interleaved=True)

    return attend(query, key, value, query_slots, key_slots, allowed, score)
