"""DAPE, arXiv 2405.14722: ``A + B + f([A; B])``, A the content scores of all heads for one pair, B the biases of another encoding.

``f(x) = W2 leaky_relu(W1 x + b1) + b2``, slope 0.01. Without a bias ``A + f(A)``.
"""

import torch
from torch.nn.functional import leaky_relu

from oracles.alibi import slopes
from oracles.common import attend_pairs


def inner_bias(params, inner, h, heads, n):
    """KERPLE's ``-p log(1 + a |n|)`` or ALiBi's ``-m_h |n|``."""
    if inner["type"] == "kerple_log":
        p, a = (torch.clamp(params[f"inner.{name}"][h], min=0.01) for name in "pa")
        return -p * torch.log(1 + a * abs(n))
    if inner["type"] == "alibi" and inner["direction"] in ("causal", "symmetric"):
        m = torch.tensor(slopes(heads)[h], dtype=torch.float64)
        if inner.get("learned"):
            m = m * torch.exp(params["inner.log_scale"][h])
        return -m * (max(n, 0) if inner["direction"] == "causal" else abs(n))
    raise NotImplementedError(inner)


def scores_and_biases(query, key, params, options, query_slots, key_slots, scale, b, qi, kj):
    """A and B of all heads for one pair, B empty without a bias."""
    heads = range(query.shape[1])
    n = int(query_slots[qi]) - int(key_slots[kj])
    scores = [query[b, h, qi] @ key[b, h, kj] * scale for h in heads]
    biases = [] if options["bias"] is None else [inner_bias(params, options["bias"], h, len(heads), n) for h in heads]
    return scores, biases


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale):
    def score(b, h, qi, kj):
        scores, biases = scores_and_biases(query, key, params, options, query_slots, key_slots, scale, b, qi, kj)
        hidden = leaky_relu(params["input_weight"] @ torch.stack(scores + biases) + params["input_bias"], 0.01)
        mixed = params["output_weight"][h] @ hidden + params["output_bias"][h]
        return scores[h] + (biases[h] if biases else 0) + mixed

    return attend_pairs(query, value, allowed, score)
