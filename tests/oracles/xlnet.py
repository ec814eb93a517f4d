"""XLNet, arXiv 1906.08237, sections 2.4 and 2.5: ``((q + r_w) . k + (q + r_r) . W R(i - j) + (q + r_s) . s_ij) * scale``.

R has sines first, then cosines; s_ij is row 0 of the segment table for tokens of one segment and row 1 for tokens of two; without segments
that part is absent. The query at slot i is key number ``i - key_slots[0]``.
"""

from oracles.common import attend_pairs, wave


def attention(query, key, value, params, options, query_slots, key_slots, allowed, scale, segment_ids=None):
    width, limit = query.shape[-1], options["clamp_len"]
    projection = params["projection"]

    def score(b, h, qi, kj):
        q, k = query[b, h, qi], key[b, h, kj]
        i, j = int(query_slots[qi]), int(key_slots[kj])
        n = i - j if limit is None else min(max(i - j, -limit), limit)
        r = projection[h * width : (h + 1) * width] @ wave(n, projection.shape[1], 10000.0, interleaved=False)
        terms = (q + params["content_bias"][h]) @ k + (q + params["position_bias"][h]) @ r
        if segment_ids is not None:
            different = int(segment_ids[b, i - key_slots[0]] != segment_ids[b, kj])
            terms = terms + (q + params["segment_bias"][h]) @ params["segment_embedding"][different, h]
        return terms * scale

    return attend_pairs(query, value, allowed, score)
