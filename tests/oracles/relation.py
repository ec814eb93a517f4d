"""Labelled relations, Shaw et al., arXiv 1803.02155, section 3.1, r the relation of query and key as given:
``q . (k + aK[r]) * scale + s[r, h]``, values ``v + aV[r]``."""

from oracles.common import attend_pairs


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, relation_ids):
    def score(b, h, qi, kj):
        q, k, r = query[b, h, qi], key[b, h, kj], int(relation_ids[b, qi, kj])
        logit = q @ k * scale
        if options["keys"]:
            logit = logit + q @ params["key_table"][r] * scale
        if options["scalars"]:
            logit = logit + params["scalar_table"][r, h]
        return logit

    def value_of(b, h, qi, kj):
        r = int(relation_ids[b, qi, kj])
        return value[b, h, kj] + params["value_table"][r] if options["values"] else value[b, h, kj]

    return attend_pairs(query, value, allowed, score, value_of)
