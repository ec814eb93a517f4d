"""Kernels of the ``triton`` backend: what one program does with its tiles. The strategy and the identity they use stand in ``triton.py``.

A tile is ``ROWS`` queries from ``i0`` on and ``COLS`` keys from ``j0`` on. What is None is not there, and is compiled away. Matrices have contiguous rows; ``at``
holds the strides of ``[B, H|G, T, ...]``. Widths (``WIDTH`` of heads, ``OUT`` of values, ``BY_QUERY`` and ``BY_KEY`` of content terms) have beside them
the power of two that tiles are padded to, ``*_TILE``. Sums are kept in float32, in float64 for float64.
"""

try:
    import triton
    import triton.language as tl
except ImportError as missing:
    raise ImportError(
        "the kernels of the triton backend need triton, which is not installed: pip install triton"
    ) from missing

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if INTERPRETED and a.dtype == tl.bfloat16:
        # the interpreter would multiply the bit patterns
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _matrix(pointer, first, limit, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Rows ``first`` on of a matrix ``[limit, WIDTH]``, ``[ROWS, TILE]``; zero outside of it."""
    row, col = first + tl.arange(0, ROWS), tl.arange(0, TILE)
    inside = ((row >= 0) & (row < limit))[:, None] & (col < WIDTH)[None, :]
    return tl.load(pointer + row[:, None].to(tl.int64) * stride + col[None, :], mask=inside, other=0.0)


@triton.jit
def _store(pointer, values, first, limit, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    row, col = first + tl.arange(0, ROWS), tl.arange(0, TILE)
    inside = (row < limit)[:, None] & (col < WIDTH)[None, :]
    place = pointer + row[:, None].to(tl.int64) * stride + col[None, :]
    tl.store(place, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _vector(pointer, first, limit, COUNT: tl.constexpr):
    place = first + tl.arange(0, COUNT)
    return tl.load(pointer + place, mask=place < limit, other=0)


@triton.jit
def _start(pointer, at, b, h):
    """Where the matrix of a sample and head begins."""
    return pointer + tl.cast(b, tl.int64) * at[0] + tl.cast(h, tl.int64) * at[1]


@triton.jit
def _by_pair(by_distance, SIGN: tl.constexpr, TILE: tl.constexpr):
    """``out[x, y] = by_distance[x, SIGN (x - y) + TILE - 1]``: from ``[TILE, 2 TILE]``, a column for each distance of a tile, to one for each partner."""
    x, y = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    return tl.gather(by_distance, SIGN * (x - y) + (TILE - 1), 1)


@triton.jit
def _by_distance(by_pair, SIGN: tl.constexpr, TILE: tl.constexpr):
    """The transpose of :func:`_by_pair`, ``[TILE, TILE]`` to ``[TILE, 2 TILE]``: each number goes to its distance's column, which has one of a row at most."""
    x, t = tl.arange(0, TILE)[:, None], tl.arange(0, 2 * TILE)[None, :]
    y = x - SIGN * (t - (TILE - 1))
    inside = (y >= 0) & (y < TILE)
    return tl.where(inside, tl.gather(by_pair, tl.where(inside, y, 0), 1), 0.0)


@triton.jit
def _kept(seed, drop, pair, i0, j0, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Which weights of a tile dropout keeps. A number is drawn for sample and head, query and key, whatever tile they are in."""
    nothing = tl.zeros([ROWS, COLS], tl.int32)
    i, j = i0 + tl.arange(0, ROWS)[:, None] + nothing, j0 + tl.arange(0, COLS)[None, :] + nothing
    drawn, _, _, _ = tl.philox(tl.load(seed), j, i, nothing + pair, nothing)
    return tl.uint_to_uniform_float(drawn) >= drop


@triton.jit
def _scores(
    q,
    k,
    by_query,
    near_query,
    by_key,
    near_key,
    table,
    columns,
    lines,
    padding,
    query_documents,
    key_documents,
    i0,
    j0,
    queries,
    keys,
    offset,
    window,
    scale,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of a tile ``[ROWS, COLS]``, minus infinity where a key is hidden."""
    i, j = i0 + tl.arange(0, ROWS)[:, None], j0 + tl.arange(0, COLS)[None, :]
    visible = (i < queries) & (j < keys)
    scores = _dot(q, tl.trans(k), PRECISION) * scale
    if table is not None:
        scores += tl.load(table + (i - j + (keys - 1)), mask=visible, other=0.0)
    if columns is not None:
        column = _vector(columns, j0, keys, COLS)[None, :]
        if lines is not None:
            # large numbers whose difference is small: before the scores come in
            column = _vector(lines, i0, queries, ROWS)[:, None] + column
        scores += column
    if by_query is not None:
        scores += _by_pair(_dot(by_query, tl.trans(near_query), PRECISION), 1, ROWS)
    if by_key is not None:
        scores += tl.trans(_by_pair(_dot(by_key, tl.trans(near_key), PRECISION), -1, ROWS))
    distance = i - j + offset
    if CAUSAL:
        visible &= distance >= 0
    if window is not None:
        visible &= (distance < window) & (distance > -window)
    if padding is not None:
        visible &= (_vector(padding, j0, keys, COLS) != 0)[None, :]
    if key_documents is not None:
        query_document = _vector(query_documents, i0, queries, ROWS)
        visible &= query_document[:, None] == _vector(key_documents, j0, keys, COLS)[None, :]
    return tl.where(visible, scores, -float("inf"))


@triton.jit
def _keys_of(
    i0,
    tile,
    first,
    stop,
    keys,
    offset,
    window,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The range of keys, from the start of a tile, that some of the queries ``i0 ..`` may see. ``first`` and ``stop``: tiles, for each tile of queries."""
    low, high = 0, keys
    if CAUSAL:
        high = tl.minimum(high, i0 + ROWS + offset)
    if window is not None:
        low = tl.maximum(low, i0 + offset - window + 1)
        high = tl.minimum(high, i0 + ROWS - 1 + offset + window)
    if first is not None:
        low = tl.maximum(low, tl.load(first + tile) * COLS)
        high = tl.minimum(high, tl.load(stop + tile) * COLS)
    return low // COLS * COLS, high


@triton.jit
def _queries_of(
    j0,
    tile,
    first,
    stop,
    queries,
    offset,
    window,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The same the other way round: the queries that may see some of the keys ``j0 ..``."""
    low, high = 0, queries
    if CAUSAL:
        low = tl.maximum(low, j0 - offset)
    if window is not None:
        low = tl.maximum(low, j0 - offset - window + 1)
        high = tl.minimum(high, j0 + COLS - 1 - offset + window)
    if first is not None:
        low = tl.maximum(low, tl.load(first + tile) * ROWS)
        high = tl.minimum(high, tl.load(stop + tile) * ROWS)
    return low // ROWS * ROWS, high


@triton.jit
def _by_sample(pointer, b, count):
    """Where the numbers of a sample begin in ``[B, count]``; None stays None."""
    if pointer is not None:
        pointer += tl.cast(b, tl.int64) * count
    return pointer


@triton.jit
def forward(
    query,
    key,
    value,
    by_query,
    near_query,
    by_key,
    near_key,
    table,
    columns,
    lines,
    padding,
    query_documents,
    key_documents,
    first,
    stop,
    seed,
    output,
    logsumexp,
    query_at,
    key_at,
    value_at,
    by_query_at,
    near_query_at,
    by_key_at,
    near_key_at,
    output_at,
    heads,
    groups,
    queries,
    keys,
    offset,
    window,
    scale,
    drop,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    OUT: tl.constexpr,
    OUT_TILE: tl.constexpr,
    BY_QUERY: tl.constexpr,
    BY_QUERY_TILE: tl.constexpr,
    BY_KEY: tl.constexpr,
    BY_KEY_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the output of ``ROWS`` queries of a head, with a running maximum and sum of their weights."""
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i0, pair = tile * ROWS, b * heads + h
    g = h // groups
    q = _matrix(_start(query, query_at, b, h), i0, queries, query_at[2], ROWS, WIDTH, WIDTH_TILE)
    key, value = _start(key, key_at, b, g), _start(value, value_at, b, g)
    qr = None
    if by_query is not None:
        qr = _matrix(_start(by_query, by_query_at, b, h), i0, queries, by_query_at[2], ROWS, BY_QUERY, BY_QUERY_TILE)
        near_query += h * near_query_at[0]
    if by_key is not None:
        by_key, near_key = _start(by_key, by_key_at, b, h), near_key + h * near_key_at[0]
    distances = queries + keys - 1
    table, columns, lines = (
        _by_sample(table, h, distances),
        _by_sample(columns, pair, keys),
        _by_sample(lines, pair, queries),
    )
    padding, query_documents = _by_sample(padding, b, keys), _by_sample(query_documents, b, queries)
    key_documents = _by_sample(key_documents, b, keys)
    tiles = tl.num_programs(0)
    first, stop = _by_sample(first, b, tiles), _by_sample(stop, b, tiles)

    accumulator: tl.constexpr = tl.float64 if q.dtype == tl.float64 else tl.float32
    highest = tl.full([ROWS], -float("inf"), accumulator)
    total = tl.zeros([ROWS], accumulator)
    result = tl.zeros([ROWS, OUT_TILE], accumulator)
    low, high = _keys_of(i0, tile, first, stop, keys, offset, window, CAUSAL, ROWS, COLS)
    for j0 in range(low, high, COLS):
        k = _matrix(key, j0, keys, key_at[2], COLS, WIDTH, WIDTH_TILE)
        v = _matrix(value, j0, keys, value_at[2], COLS, OUT, OUT_TILE)
        entry = i0 - j0 - COLS + keys
        near_q, kr, near_k = None, None, None
        if by_query is not None:
            near_q = _matrix(near_query, entry, distances, near_query_at[1], 2 * ROWS, BY_QUERY, BY_QUERY_TILE)
        if by_key is not None:
            kr = _matrix(by_key, j0, keys, by_key_at[2], COLS, BY_KEY, BY_KEY_TILE)
            near_k = _matrix(near_key, entry, distances, near_key_at[1], 2 * ROWS, BY_KEY, BY_KEY_TILE)
        scores = _scores(
            q, k, qr, near_q, kr, near_k, table, columns, lines, padding, query_documents, key_documents,
            i0, j0, queries, keys, offset, window, scale, CAUSAL, ROWS, COLS, PRECISION,
        )  # fmt: skip
        raised = tl.maximum(highest, tl.max(scores, 1))
        base = tl.where(raised == -float("inf"), 0.0, raised)
        weights = tl.exp2((scores - base[:, None]) * LOG2E)
        faded = tl.exp2((highest - base) * LOG2E)
        total = total * faded + tl.sum(weights, 1)
        if seed is not None:
            weights = tl.where(_kept(seed, drop, pair, i0, j0, ROWS, COLS), weights / (1 - drop), 0.0)
        result = result * faded[:, None] + _dot(weights.to(v.dtype), v, PRECISION)
        highest = raised
    # what saw nothing gives zero, and infinity makes its weights zero in the backward pass
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    _store(_start(output, output_at, b, h), result / total[:, None], i0, queries, output_at[2], ROWS, OUT, OUT_TILE)
    row = i0 + tl.arange(0, ROWS)
    saved = tl.where(blind, float("inf"), highest + tl.log(total))
    tl.store(_by_sample(logsumexp, pair, queries) + row, saved, mask=row < queries)


@triton.jit
def _change(
    scores,
    gradient,
    v,
    logsumexp,
    inner,
    seed,
    drop,
    pair,
    i0,
    j0,
    queries,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Weights of a tile after dropout, and the gradient of its scores."""
    weights = tl.exp2((scores - _vector(logsumexp, i0, queries, ROWS)[:, None]) * LOG2E)
    of_weights = _dot(gradient, tl.trans(v), PRECISION)
    dropped = weights
    if seed is not None:
        kept = _kept(seed, drop, pair, i0, j0, ROWS, COLS)
        of_weights = tl.where(kept, of_weights / (1 - drop), 0.0)
        dropped = tl.where(kept, weights / (1 - drop), 0.0)
    return dropped, weights * (of_weights - inner[:, None])


@triton.jit
def backward_queries(
    query,
    key,
    value,
    by_query,
    near_query,
    by_key,
    near_key,
    table,
    columns,
    lines,
    padding,
    query_documents,
    key_documents,
    first,
    stop,
    seed,
    output,
    logsumexp,
    gradient,
    inner,
    grad_query,
    grad_by_query,
    query_at,
    key_at,
    value_at,
    by_query_at,
    near_query_at,
    by_key_at,
    near_key_at,
    output_at,
    gradient_at,
    heads,
    groups,
    queries,
    keys,
    offset,
    window,
    scale,
    drop,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    OUT: tl.constexpr,
    OUT_TILE: tl.constexpr,
    BY_QUERY: tl.constexpr,
    BY_QUERY_TILE: tl.constexpr,
    BY_KEY: tl.constexpr,
    BY_KEY_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the gradients of ``ROWS`` queries of a head, and ``inner`` = output . its gradient, which the other kernels read."""
    tile, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i0, pair = tile * ROWS, b * heads + h
    g = h // groups
    q = _matrix(_start(query, query_at, b, h), i0, queries, query_at[2], ROWS, WIDTH, WIDTH_TILE)
    key, value = _start(key, key_at, b, g), _start(value, value_at, b, g)
    qr = None
    if by_query is not None:
        qr = _matrix(_start(by_query, by_query_at, b, h), i0, queries, by_query_at[2], ROWS, BY_QUERY, BY_QUERY_TILE)
        near_query += h * near_query_at[0]
    if by_key is not None:
        by_key, near_key = _start(by_key, by_key_at, b, h), near_key + h * near_key_at[0]
    distances = queries + keys - 1
    table, columns, lines = (
        _by_sample(table, h, distances),
        _by_sample(columns, pair, keys),
        _by_sample(lines, pair, queries),
    )
    padding, query_documents = _by_sample(padding, b, keys), _by_sample(query_documents, b, queries)
    key_documents = _by_sample(key_documents, b, keys)
    tiles = tl.num_programs(0)
    first, stop = _by_sample(first, b, tiles), _by_sample(stop, b, tiles)
    logsumexp = _by_sample(logsumexp, pair, queries)

    accumulator: tl.constexpr = tl.float64 if q.dtype == tl.float64 else tl.float32
    grad = _matrix(_start(gradient, gradient_at, b, h), i0, queries, gradient_at[2], ROWS, OUT, OUT_TILE)
    out = _matrix(_start(output, output_at, b, h), i0, queries, output_at[2], ROWS, OUT, OUT_TILE)
    product = tl.sum(grad.to(accumulator) * out.to(accumulator), 1)
    row = i0 + tl.arange(0, ROWS)
    tl.store(_by_sample(inner, pair, queries) + row, product, mask=row < queries)
    of_query = tl.zeros([ROWS, WIDTH_TILE], accumulator)
    if by_query is not None:
        of_by_query = tl.zeros([ROWS, BY_QUERY_TILE], accumulator)
    low, high = _keys_of(i0, tile, first, stop, keys, offset, window, CAUSAL, ROWS, COLS)
    for j0 in range(low, high, COLS):
        k = _matrix(key, j0, keys, key_at[2], COLS, WIDTH, WIDTH_TILE)
        v = _matrix(value, j0, keys, value_at[2], COLS, OUT, OUT_TILE)
        entry = i0 - j0 - COLS + keys
        near_q, kr, near_k = None, None, None
        if by_query is not None:
            near_q = _matrix(near_query, entry, distances, near_query_at[1], 2 * ROWS, BY_QUERY, BY_QUERY_TILE)
        if by_key is not None:
            kr = _matrix(by_key, j0, keys, by_key_at[2], COLS, BY_KEY, BY_KEY_TILE)
            near_k = _matrix(near_key, entry, distances, near_key_at[1], 2 * ROWS, BY_KEY, BY_KEY_TILE)
        scores = _scores(
            q, k, qr, near_q, kr, near_k, table, columns, lines, padding, query_documents, key_documents,
            i0, j0, queries, keys, offset, window, scale, CAUSAL, ROWS, COLS, PRECISION,
        )  # fmt: skip
        _, change = _change(
            scores, grad, v, logsumexp, product, seed, drop, pair, i0, j0, queries, ROWS, COLS, PRECISION
        )
        of_query += _dot(change.to(k.dtype), k, PRECISION)
        if by_query is not None:
            of_by_query += _dot(_by_distance(change, 1, ROWS).to(qr.dtype), near_q, PRECISION)
    place = tl.cast(pair, tl.int64) * queries
    _store(grad_query + place * WIDTH, of_query * scale, i0, queries, WIDTH, ROWS, WIDTH, WIDTH_TILE)
    if by_query is not None:
        _store(grad_by_query + place * BY_QUERY, of_by_query, i0, queries, BY_QUERY, ROWS, BY_QUERY, BY_QUERY_TILE)


@triton.jit
def backward_keys(
    query,
    key,
    value,
    by_query,
    near_query,
    by_key,
    near_key,
    table,
    columns,
    lines,
    padding,
    query_documents,
    key_documents,
    first,
    stop,
    seed,
    logsumexp,
    gradient,
    inner,
    grad_key,
    grad_value,
    grad_by_key,
    grad_columns,
    query_at,
    key_at,
    value_at,
    by_query_at,
    near_query_at,
    by_key_at,
    near_key_at,
    gradient_at,
    heads,
    groups,
    queries,
    keys,
    offset,
    window,
    scale,
    drop,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    OUT: tl.constexpr,
    OUT_TILE: tl.constexpr,
    BY_QUERY: tl.constexpr,
    BY_QUERY_TILE: tl.constexpr,
    BY_KEY: tl.constexpr,
    BY_KEY_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the gradients of ``COLS`` keys and values of a group, head after head."""
    tile, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j0 = tile * COLS
    k = _matrix(_start(key, key_at, b, g), j0, keys, key_at[2], COLS, WIDTH, WIDTH_TILE)
    v = _matrix(_start(value, value_at, b, g), j0, keys, value_at[2], COLS, OUT, OUT_TILE)
    padding, query_documents = _by_sample(padding, b, keys), _by_sample(query_documents, b, queries)
    key_documents = _by_sample(key_documents, b, keys)
    tiles = tl.num_programs(0)
    first, stop = _by_sample(first, b, tiles), _by_sample(stop, b, tiles)
    distances = queries + keys - 1

    accumulator: tl.constexpr = tl.float64 if k.dtype == tl.float64 else tl.float32
    of_key = tl.zeros([COLS, WIDTH_TILE], accumulator)
    of_value = tl.zeros([COLS, OUT_TILE], accumulator)
    low, high = _queries_of(j0, tile, first, stop, queries, offset, window, CAUSAL, ROWS, COLS)
    for member in range(groups):
        h = g * groups + member
        pair = b * heads + h
        query_h, gradient_h = _start(query, query_at, b, h), _start(gradient, gradient_at, b, h)
        logsumexp_h, inner_h = _by_sample(logsumexp, pair, queries), _by_sample(inner, pair, queries)
        table_h, columns_h = _by_sample(table, h, distances), _by_sample(columns, pair, keys)
        lines_h = _by_sample(lines, pair, queries)
        kr = None
        if by_query is not None:
            by_query_h, near_query_h = _start(by_query, by_query_at, b, h), near_query + h * near_query_at[0]
        if by_key is not None:
            near_key_h = near_key + h * near_key_at[0]
            kr = _matrix(_start(by_key, by_key_at, b, h), j0, keys, by_key_at[2], COLS, BY_KEY, BY_KEY_TILE)
            of_by_key = tl.zeros([COLS, BY_KEY_TILE], accumulator)
        of_columns = tl.zeros([COLS], accumulator)
        for i0 in range(low, high, ROWS):
            q = _matrix(query_h, i0, queries, query_at[2], ROWS, WIDTH, WIDTH_TILE)
            grad = _matrix(gradient_h, i0, queries, gradient_at[2], ROWS, OUT, OUT_TILE)
            entry = i0 - j0 - COLS + keys
            qr, near_q, near_k = None, None, None
            if by_query is not None:
                qr = _matrix(by_query_h, i0, queries, by_query_at[2], ROWS, BY_QUERY, BY_QUERY_TILE)
                near_q = _matrix(near_query_h, entry, distances, near_query_at[1], 2 * ROWS, BY_QUERY, BY_QUERY_TILE)
            if by_key is not None:
                near_k = _matrix(near_key_h, entry, distances, near_key_at[1], 2 * ROWS, BY_KEY, BY_KEY_TILE)
            scores = _scores(
                q, k, qr, near_q, kr, near_k, table_h, columns_h, lines_h, padding, query_documents, key_documents,
                i0, j0, queries, keys, offset, window, scale, CAUSAL, ROWS, COLS, PRECISION,
            )  # fmt: skip
            product = _vector(inner_h, i0, queries, ROWS)
            weights, change = _change(
                scores, grad, v, logsumexp_h, product, seed, drop, pair, i0, j0, queries, ROWS, COLS, PRECISION
            )
            of_value += _dot(tl.trans(weights.to(grad.dtype)), grad, PRECISION)
            of_key += _dot(tl.trans(change.to(q.dtype)), q, PRECISION)
            if grad_columns is not None:
                of_columns += tl.sum(change, 0)
            if by_key is not None:
                of_by_key += _dot(_by_distance(tl.trans(change), -1, ROWS).to(kr.dtype), near_k, PRECISION)
        if grad_columns is not None:
            col = j0 + tl.arange(0, COLS)
            tl.store(_by_sample(grad_columns, pair, keys) + col, of_columns, mask=col < keys)
        if by_key is not None:
            place = grad_by_key + tl.cast(pair, tl.int64) * keys * BY_KEY
            _store(place, of_by_key, j0, keys, BY_KEY, COLS, BY_KEY, BY_KEY_TILE)
    place = (tl.cast(b, tl.int64) * (heads // groups) + g) * keys
    _store(grad_key + place * WIDTH, of_key * scale, j0, keys, WIDTH, COLS, WIDTH, WIDTH_TILE)
    _store(grad_value + place * OUT, of_value, j0, keys, OUT, COLS, OUT, OUT_TILE)


@triton.jit
def backward_distances(
    query,
    key,
    value,
    by_query,
    near_query,
    by_key,
    near_key,
    table,
    columns,
    lines,
    padding,
    query_documents,
    key_documents,
    first,
    stop,
    seed,
    logsumexp,
    gradient,
    inner,
    grad_table,
    grad_near_query,
    grad_near_key,
    query_at,
    key_at,
    value_at,
    by_query_at,
    near_query_at,
    by_key_at,
    near_key_at,
    gradient_at,
    samples,
    heads,
    groups,
    queries,
    keys,
    offset,
    window,
    scale,
    drop,
    CAUSAL: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_TILE: tl.constexpr,
    OUT: tl.constexpr,
    OUT_TILE: tl.constexpr,
    BY_QUERY: tl.constexpr,
    BY_QUERY_TILE: tl.constexpr,
    BY_KEY: tl.constexpr,
    BY_KEY_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: what all tiles ``TILE x TILE`` on one diagonal of tiles, in all samples, give for the ``2 TILE`` distances that they share."""
    diagonal, h = tl.program_id(0), tl.program_id(1)
    query_tiles, key_tiles = tl.cdiv(queries, TILE), tl.cdiv(keys, TILE)
    # number of the tile of queries minus that of keys
    lead = diagonal - (key_tiles - 1)
    low, high = tl.maximum(0, lead), tl.minimum(query_tiles, key_tiles + lead)
    middle = lead * TILE + offset
    if CAUSAL and middle + TILE - 1 < 0:
        high = low
    if window is not None and (middle - (TILE - 1) >= window or middle + TILE - 1 <= -window):
        high = low
    distances = queries + keys - 1
    entry = lead * TILE - TILE + keys
    table = _by_sample(table, h, distances)
    g = h // groups

    accumulator: tl.constexpr = tl.float64 if query.dtype.element_ty == tl.float64 else tl.float32
    of_table = tl.zeros([2 * TILE], accumulator)
    near_q, near_k = None, None
    if by_query is not None:
        near_query += h * near_query_at[0]
        near_q = _matrix(near_query, entry, distances, near_query_at[1], 2 * TILE, BY_QUERY, BY_QUERY_TILE)
        of_near_query = tl.zeros([2 * TILE, BY_QUERY_TILE], accumulator)
    if by_key is not None:
        near_key += h * near_key_at[0]
        near_k = _matrix(near_key, entry, distances, near_key_at[1], 2 * TILE, BY_KEY, BY_KEY_TILE)
        of_near_key = tl.zeros([2 * TILE, BY_KEY_TILE], accumulator)
    for b in range(samples):
        pair = b * heads + h
        query_b, key_b = _start(query, query_at, b, h), _start(key, key_at, b, g)
        value_b, gradient_b = _start(value, value_at, b, g), _start(gradient, gradient_at, b, h)
        logsumexp_b, inner_b = _by_sample(logsumexp, pair, queries), _by_sample(inner, pair, queries)
        columns_b, lines_b = _by_sample(columns, pair, keys), _by_sample(lines, pair, queries)
        padding_b, query_documents_b = _by_sample(padding, b, keys), _by_sample(query_documents, b, queries)
        key_documents_b = _by_sample(key_documents, b, keys)
        first_b, stop_b = _by_sample(first, b, query_tiles), _by_sample(stop, b, query_tiles)
        for tile in range(low, high):
            i0, j0 = tile * TILE, (tile - lead) * TILE
            seen = True
            if first is not None:
                seen = (tl.load(first_b + tile) <= tile - lead) & (tile - lead < tl.load(stop_b + tile))
            if seen:
                q = _matrix(query_b, i0, queries, query_at[2], TILE, WIDTH, WIDTH_TILE)
                k = _matrix(key_b, j0, keys, key_at[2], TILE, WIDTH, WIDTH_TILE)
                v = _matrix(value_b, j0, keys, value_at[2], TILE, OUT, OUT_TILE)
                grad = _matrix(gradient_b, i0, queries, gradient_at[2], TILE, OUT, OUT_TILE)
                qr, kr = None, None
                if by_query is not None:
                    start = _start(by_query, by_query_at, b, h)
                    qr = _matrix(start, i0, queries, by_query_at[2], TILE, BY_QUERY, BY_QUERY_TILE)
                if by_key is not None:
                    kr = _matrix(_start(by_key, by_key_at, b, h), j0, keys, by_key_at[2], TILE, BY_KEY, BY_KEY_TILE)
                scores = _scores(
                    q, k, qr, near_q, kr, near_k, table, columns_b, lines_b, padding_b, query_documents_b,
                    key_documents_b, i0, j0, queries, keys, offset, window, scale, CAUSAL, TILE, TILE, PRECISION,
                )  # fmt: skip
                product = _vector(inner_b, i0, queries, TILE)
                _, change = _change(
                    scores, grad, v, logsumexp_b, product, seed, drop, pair, i0, j0, queries, TILE, TILE, PRECISION
                )
                if grad_table is not None or grad_near_query is not None:
                    by_distance = _by_distance(change, 1, TILE)
                if grad_table is not None:
                    of_table += tl.sum(by_distance, 0)
                if grad_near_query is not None:
                    of_near_query += _dot(tl.trans(by_distance.to(qr.dtype)), qr, PRECISION)
                if grad_near_key is not None:
                    back = _by_distance(tl.trans(change), -1, TILE).to(kr.dtype)
                    of_near_key += _dot(tl.trans(back), kr, PRECISION)
    place = (tl.cast(h, tl.int64) * tl.num_programs(0) + diagonal) * (2 * TILE)
    if grad_table is not None:
        tl.store(grad_table + place + tl.arange(0, 2 * TILE), of_table)
    if grad_near_query is not None:
        start = grad_near_query + place * BY_QUERY
        _store(start, of_near_query, 0, 2 * TILE, BY_QUERY, 2 * TILE, BY_QUERY, BY_QUERY_TILE)
    if grad_near_key is not None:
        start = grad_near_key + place * BY_KEY
        _store(start, of_near_key, 0, 2 * TILE, BY_KEY, 2 * TILE, BY_KEY, BY_KEY_TILE)
