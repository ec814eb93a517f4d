"""FIRE, arXiv 2310.04418: ``q . k * scale + MLP(log(|c n| + 1) / (log(|c max(i, |mu L0|)| + 1) + eps))_h``, |n| the distance of the slots,
i the query's index in its own text, ReLU inside."""

import torch

from oracles.common import attend_pairs


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, query_index):
    def bias(h, n, i):
        c = params["c"][0]
        threshold = torch.abs(params["length_multiplier"][0] * options["init_length"])
        longest = torch.maximum(torch.as_tensor(float(i), dtype=threshold.dtype), threshold)
        x = torch.log(torch.abs(c * n) + 1) / (torch.log(torch.abs(c * longest) + 1) + options["eps"])
        hidden = torch.relu(params["input_weight"][:, 0] * x + params["input_bias"])
        return params["output_weight"][h] @ hidden + params["output_bias"][h]

    def score(b, h, qi, kj):
        n = int(query_slots[qi]) - int(key_slots[kj])
        return query[b, h, qi] @ key[b, h, kj] * scale + bias(h, n, int(query_index[b, qi]))

    return attend_pairs(query, value, allowed, score)
