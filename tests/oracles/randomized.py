"""Randomised positions, Ruoss et al., arXiv 2305.16843: the inner encoding at the given slots, which in training are the drawn ids."""

import importlib
import inspect


def attention(
    query,
    key,
    value,
    params,
    options,
    query_slots,
    key_slots,
    allowed,
    scale,
    hidden_states=None,
    segment_ids=None,
    relation_ids=None,
    query_index=None,
    key_index=None,
):
    inner = importlib.import_module(f"oracles.{options['encoding']['type']}")
    inner_params = {name.removeprefix("inner."): x for name, x in params.items() if name.startswith("inner.")}
    known = {
        "hidden_states": hidden_states,
        "segment_ids": segment_ids,
        "relation_ids": relation_ids,
        "query_index": query_index,
        "key_index": key_index,
    }
    wanted = {name: x for name, x in known.items() if name in inspect.signature(inner.attention).parameters}
    return inner.attention(
        query, key, value, inner_params, options["encoding"], query_slots, key_slots, allowed, scale, **wanted
    )
