"""Log-spaced continuous position bias, Swin v2, arXiv 2111.09883, in one dimension: ``q . k * scale + 16 sigmoid(MLP(t))_h``,
t = sign(r) log2(8 |r| + 1) / log2(8), r = (i - j) / (W - 1), ReLU inside; with cosine
``cos(q, k) exp(min(logit_scale_h, ln 100))`` in place of ``q . k * scale``."""

import math

import torch

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def bias(h, n):
        r = n / (options["window"] - 1)
        t = math.copysign(math.log2(8 * abs(r) + 1) / math.log2(8), r)
        hidden = torch.relu(params["input_weight"][:, 0] * t + params["input_bias"])
        return 16 * torch.sigmoid(params["output_weight"][h] @ hidden)

    def score(b, h, q, k, i, j):
        if options["cosine"]:
            temperature = torch.exp(torch.clamp(params["logit_scale"][h], max=math.log(100)))
            return q @ k / (torch.sqrt(q @ q) * torch.sqrt(k @ k)) * temperature + bias(h, i - j)
        return q @ k * scale + bias(h, i - j)

    return attend(query, key, value, query_slots, key_slots, allowed, score)
