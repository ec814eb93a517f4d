"""The double loop that all oracles share: a score for each pair, a softmax over the keys that are allowed, a sum of values."""

import math

import torch


def attend(query, key, value, query_slots, key_slots, allowed, score, value_of=None, visible=None):
    """``score(b, h, q, k, i, j)`` is the logit of query vector q at slot i and key vector k at slot j; ``value_of(b, h, v, i, j)`` what the
    key hands over; ``visible(h, i, j)`` hides pairs from a head."""
    batch, heads, queries, _ = query.shape
    samples = []
    for b in range(batch):
        per_head = []
        for h in range(heads):
            rows = []
            for qi in range(queries):
                i = int(query_slots[qi])
                logits, values = [], []
                for kj in range(key.shape[2]):
                    j = int(key_slots[kj])
                    if not bool(allowed[b, qi, kj]) or (visible is not None and not visible(h, i, j)):
                        continue
                    logits.append(score(b, h, query[b, h, qi], key[b, h, kj], i, j))
                    v = value[b, h, kj]
                    values.append(v if value_of is None else value_of(b, h, v, i, j))
                if not logits:
                    rows.append(torch.zeros_like(value[b, h, 0]))
                    continue
                exponentials = [torch.exp(logit - max(x.detach() for x in logits)) for logit in logits]
                total = sum(exponentials)
                rows.append(sum(e / total * v for e, v in zip(exponentials, values, strict=True)))
            per_head.append(torch.stack(rows))
        samples.append(torch.stack(per_head))
    return torch.stack(samples)


def wave(distance, width, base, interleaved):
    """The sinusoid of one integer as a vector of ``width`` numbers."""
    phases = [distance / base ** (2 * k / width) for k in range(width // 2)]
    sines, cosines = [math.sin(p) for p in phases], [math.cos(p) for p in phases]
    numbers = [x for pair in zip(sines, cosines, strict=True) for x in pair] if interleaved else sines + cosines
    return torch.tensor(numbers, dtype=torch.float64)
