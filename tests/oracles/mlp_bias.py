"""Dynamic position bias, CrossFormer, arXiv 2108.00154, in one dimension: ``q . k * scale + MLP(x)_h``, x = sign(n) log(|n| + 1) or
x = n with n = i - j; SiLU after the input layer and after each hidden layer."""

import math

import torch

from oracles.common import attend


def silu(x):
    return x / (1 + torch.exp(-x))


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def bias(h, n):
        x = math.copysign(math.log(abs(n) + 1), n) if options["log_distance"] else float(n)
        hidden = silu(params["input_weight"][:, 0] * x + params["input_bias"])
        for layer in range(options["depth"] - 1):
            hidden = silu(params["hidden_weight"][layer] @ hidden + params["hidden_bias"][layer])
        return params["output_weight"][h] @ hidden + params["output_bias"][h]

    def score(b, h, q, k, i, j):
        return q @ k * scale + bias(h, i - j)

    return attend(query, key, value, query_slots, key_slots, allowed, score)
