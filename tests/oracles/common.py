"""The double loop that all oracles share: a score for each pair, a softmax over the keys that are allowed, a sum of values."""

import math

import torch


def attend_rows(query, value, allowed, row, value_of=None):
    """``row(b, h, qi, keys)`` gives the logits of query number qi for the key numbers ``keys``, all it may see; ``value_of(b, h, qi, kj)`` what
    a key hands over. A query that sees no key gives zero."""
    batch, heads, queries, _ = query.shape
    samples = []
    for b in range(batch):
        per_head = []
        for h in range(heads):
            rows = []
            for qi in range(queries):
                keys = [kj for kj in range(value.shape[2]) if bool(allowed[b, qi, kj])]
                if not keys:
                    rows.append(torch.zeros_like(value[b, h, 0]))
                    continue
                logits = row(b, h, qi, keys)
                values = [value[b, h, kj] if value_of is None else value_of(b, h, qi, kj) for kj in keys]
                kept = [(logit, v) for logit, v in zip(logits, values, strict=True) if logit is not None]
                if not kept:
                    rows.append(torch.zeros_like(value[b, h, 0]))
                    continue
                exponentials = [torch.exp(logit - max(x.detach() for x, _ in kept)) for logit, _ in kept]
                total = sum(exponentials)
                rows.append(sum(e / total * v for e, (_, v) in zip(exponentials, kept, strict=True)))
            per_head.append(torch.stack(rows))
        samples.append(torch.stack(per_head))
    return torch.stack(samples)


def attend_pairs(query, value, allowed, score, value_of=None):
    """As :func:`attend_rows`, with ``score(b, h, qi, kj)`` for one pair; None hides the key."""
    return attend_rows(query, value, allowed, lambda b, h, qi, keys: [score(b, h, qi, kj) for kj in keys], value_of)


def attend(query, key, value, query_slots, key_slots, allowed, score, value_of=None, visible=None):
    """``score(b, h, q, k, i, j)`` is the logit of query vector q at slot i and key vector k at slot j; ``value_of(b, h, v, i, j)`` what the
    key hands over; ``visible(h, i, j)`` hides pairs from a head."""

    def pair(b, h, qi, kj):
        i, j = int(query_slots[qi]), int(key_slots[kj])
        if visible is not None and not visible(h, i, j):
            return None
        return score(b, h, query[b, h, qi], key[b, h, kj], i, j)

    def hand_over(b, h, qi, kj):
        return value_of(b, h, value[b, h, kj], int(query_slots[qi]), int(key_slots[kj]))

    return attend_pairs(query, value, allowed, pair, None if value_of is None else hand_over)


def wave(distance, width, base, interleaved):
    """The sinusoid of one integer as a vector of ``width`` numbers."""
    phases = [distance / base ** (2 * k / width) for k in range(width // 2)]
    sines, cosines = [math.sin(p) for p in phases], [math.cos(p) for p in phases]
    numbers = [x for pair in zip(sines, cosines, strict=True) for x in pair] if interleaved else sines + cosines
    return torch.tensor(numbers, dtype=torch.float64)
