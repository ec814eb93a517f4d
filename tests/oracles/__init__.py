"""Each method as its paper defines it: explicit double loops over queries and keys, in float64, on torch for the gradients.

Nothing here imports the package. Every module has ``attention(query, key, value, params, options, query_slots, key_slots, allowed,
scale)`` for ``query`` ``[B, H, Tq, D]``, ``key`` ``[B, H, Tk, D]``, ``value`` ``[B, H, Tk, Dv]`` and ``allowed`` ``[B, Tq, Tk]``.
"""
