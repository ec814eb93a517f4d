"""Transformer-XL, arXiv 1901.02860, section 3.3: ``((q + u) . k + (q + v) . W R(i - j)) * scale``, R with sines first, then cosines."""

from oracles.common import attend, wave


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    width, limit = query.shape[-1], options["clamp_len"]
    projection = params["projection"]

    def score(b, h, q, k, i, j):
        n = i - j if limit is None else min(max(i - j, -limit), limit)
        r = projection[h * width : (h + 1) * width] @ wave(n, projection.shape[1], 10000.0, interleaved=False)
        return ((q + params["content_bias"][h]) @ k + (q + params["position_bias"][h]) @ r) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
