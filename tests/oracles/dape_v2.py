"""DAPE V2, arXiv 2410.04798: DAPE whose two maps are convolutions along the keys of a query, centred, with zeros at keys that it does not see.

``hidden_j = leaky_relu(sum_t W1[t] [A; B]_{j + t - kernel // 2} + b1)``, slope 0.01, and the same once more with W2 and b2 on hidden.
"""

import torch
from torch.nn.functional import leaky_relu

from oracles.common import attend_rows
from oracles.dape import scores_and_biases


def convolve(weight, bias, columns, kj):
    """``weight`` [.., in, kernel] on the columns around number ``kj``; a column that is not there is zero."""
    kernel = weight.shape[-1]
    total = bias
    for t in range(kernel):
        neighbour = kj + t - kernel // 2
        if neighbour in columns:
            total = total + weight[..., t] @ columns[neighbour]
    return total


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def row(b, h, qi, keys):
        pairs = {
            kj: scores_and_biases(query, key, params, options, query_slots, key_slots, scale, b, qi, kj) for kj in keys
        }
        inputs = {kj: torch.stack(scores + biases) for kj, (scores, biases) in pairs.items()}
        hidden = {
            kj: leaky_relu(convolve(params["input_weight"], params["input_bias"], inputs, kj), 0.01) for kj in keys
        }
        return [
            scores[h]
            + (biases[h] if biases else 0)
            + convolve(params["output_weight"][h], params["output_bias"][h], hidden, kj)
            for kj, (scores, biases) in pairs.items()
        ]

    return attend_rows(query, value, allowed, row)
