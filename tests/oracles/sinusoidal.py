"""The plain sinusoidal encoding met inside attention: ``((q + u) . k + (q + v) . W RPE(i - j)) * scale``, RPE interleaved; or with nothing
learned ``(q . k + q . RPE(i - j)) * scale``."""

from oracles.common import attend, wave


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    width, base = query.shape[-1], options["base"]

    def score(b, h, q, k, i, j):
        if not options["learned"]:
            return (q @ k + q @ wave(i - j, width, base, interleaved=True)) * scale
        projection = params["projection"]
        r = projection[h * width : (h + 1) * width] @ wave(i - j, projection.shape[1], base, interleaved=True)
        return ((q + params["content_bias"][h]) @ k + (q + params["position_bias"][h]) @ r) * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
