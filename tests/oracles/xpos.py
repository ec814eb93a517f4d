"""xPos, arXiv 2212.10554: the score of RoPE by pairs, that of pair c times ``zeta_c**((i - j) / scale_base)``, zeta_c = (2c + 0.4 D) / (1.4 D).

``|i - j|`` in the exponent for a symmetric direction.
"""

from oracles.common import attend
from oracles.rope import frequencies, pairs, turn


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    width, layout = query.shape[-1], options["layout"]
    theta = frequencies(width, options["base"])

    def score(b, h, q, k, i, j):
        n = i - j
        reach = abs(n) if options["direction"] == "symmetric" else n
        turned = turn(q, [n * f for f in theta], layout)
        total = 0
        for c, (first, second) in enumerate(pairs(width, layout)):
            zeta = (2 * c + 0.4 * width) / (1.4 * width)
            total += (turned[first] * k[first] + turned[second] * k[second]) * zeta ** (reach / options["scale_base"])
        return total * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
