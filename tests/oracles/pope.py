"""PoPE, arXiv 2509.10534: ``scale * sum_c softplus(q_c) softplus(k_c) cos((i - j) base**(-c / D) - delta_hc)``, delta within [-2 pi, 0]."""

import math

import torch
from torch.nn.functional import softplus

from oracles.common import attend


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    width = query.shape[-1]

    def score(b, h, q, k, i, j):
        total = 0
        for c in range(width):
            delta = torch.clamp(params["phase"][h, c], min=-2 * math.pi, max=0)
            angle = (i - j) * options["base"] ** (-c / width)
            total += softplus(q[c]) * softplus(k[c]) * torch.cos(angle - delta)
        return total * scale

    return attend(query, key, value, query_slots, key_slots, allowed, score)
