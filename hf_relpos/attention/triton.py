"""Attention with relative positions in one pass on a GPU, gradients included: Triton kernels that never hold more than a tile of scores.

*Identity.* A tile of ``T`` queries and ``T`` keys meets ``2T - 1`` distances only, and all tiles on one diagonal of tiles meet the same ones. Every term that this
backend takes is therefore brought to a number or a vector for each distance, ``table[h, n]`` or ``near[h, n]`` (buckets are looked up once, ``[L, W]``, so that clipped and full
tables are one case): memory linear in length. Several tables are added; several content terms are laid side by side, as ``a . x + b . y = (a, b) . (x, y)``.

*Scores.* A table is read at ``i - j``. Of a content term a tile needs ``X = query @ near^T`` ``[T, 2T]``, a matrix product, and ``X[r, r - c + T - 1]``: a gather
within rows. Its transpose puts each score's gradient into its distance's column, again a gather, since a row has one key at a distance. KeyBuckets do the same with
keys for rows. The online softmax keeps the logsumexp; dropout draws its mask by sample, head, query and key from a seed, so that the backward pass draws the same.

*Gradients.* The scores are computed again, three times, and each number is written by one program: no atomics, the same bits in every run. A program owns queries (``query``, the
query's side of content), or keys (``key``, ``value``, gates), or, where a table learns, one diagonal of tiles: it sums their ``2T`` distances over all tiles and samples, and
two neighbouring diagonals are added afterwards. Tiles are fixed by width and dtype, not tuned at run time, which would change bits between runs.

Tiles that causality, the window, padding or documents hide are left out. How it fares on a GPU has not been measured: the kernels are tested in Triton's interpreter
(TRITON_INTERPRET=1, on the CPU), which is also the only place where they take float64.
"""

import os
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..encodings.terms import DistanceTable, KeyBuckets, KeyVector, OnHeads, QueryBuckets, ScoreTerm
from .call import AttentionCall, Mask

WIDEST = 256
TAKEN = (DistanceTable, KeyVector, QueryBuckets, KeyBuckets)


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(device: torch.device) -> list[str]:
    """What this machine lacks to run anything on tensors of ``device``."""
    reasons = []
    if not _installed():
        reasons.append("triton is not installed")
    if device.type == "cpu" and not _interpreted():
        reasons.append("tensors are on the CPU: triton runs there only under TRITON_INTERPRET=1")
    elif device.type not in ("cpu", "cuda"):
        reasons.append(f"tensors are on {device}: triton runs on cuda")
    return reasons


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``, wherever it is."""
    reasons = []
    positions = call.mask.positions
    if call.need_weights:
        reasons.append("attention weights are asked for, and the kernels do not hold them")
    if call.value_terms:
        reasons.append("the encoding adds to the values by distance")
    if call.row_maps:
        reasons.append("the encoding maps whole rows of scores")
    if call.mask.dense is not None:
        reasons.append("the mask is a dense tensor, quadratic in length already")
    if not isinstance(positions.query_start, int) or not isinstance(positions.key_start, int):
        reasons.append("slots are counted on the device, as with a static cache")
    if positions.has_gaps:
        reasons.append("slots have gaps")
    terms = [_bare(term) for term in call.score_terms]
    for kind in sorted({type(term).__name__ for term in terms if not isinstance(term, TAKEN)}):
        reasons.append(f"there is no kernel for {kind}")
    if any(isinstance(term, TAKEN) and term.positions.has_gaps and not isinstance(term, KeyVector) for term in terms):
        reasons.append("the encoding's slots have gaps")
    widths = {
        "queries and keys": call.query.shape[-1],
        "values": call.value.shape[-1],
        "content terms of queries": sum(term.query.shape[-1] for term in terms if isinstance(term, QueryBuckets)),
        "content terms of keys": sum(term.key.shape[-1] for term in terms if isinstance(term, KeyBuckets)),
    }
    reasons += [f"{what} are {width} wide, tiles {WIDEST}" for what, width in widths.items() if width > WIDEST]
    if call.query.dtype not in (torch.float32, torch.bfloat16, torch.float16) and not _interpreted():
        reasons.append(f"{call.query.dtype} is taken in the interpreter only")
    if torch.compiler.is_compiling():
        reasons.append("the call is traced, which the kernels have not been tried in")
    return reasons


def suits(call: AttentionCall) -> bool:
    """Never chosen by itself: it has not been measured on a GPU yet."""
    return False


def run(call: AttentionCall) -> tuple[Tensor, None]:
    """Output ``[B, Tq, H, Dv]``; no weights."""
    query = call.query
    heads, dtype = query.shape[1], torch.promote_types(query.dtype, torch.float32)
    terms = _Terms.none()
    for term in call.score_terms:
        terms = terms.plus(_flatten(term, query.dtype, dtype))
    terms = terms.for_heads(query.shape[0], heads)
    seed = None
    if call.dropout:
        # drawn on the device: nothing waits for it, and checkpointing draws it again
        seed = torch.randint(2**31, (1,), device=query.device)
    call = AttentionCall(
        query, call.key.to(query.dtype), call.value.to(query.dtype), call.mask, call.scale, dropout=call.dropout
    )
    tensors = [getattr(terms, field.name) for field in fields(terms)]
    return _Attention.apply(call, seed, call.query, call.key, call.value, *tensors), None


def _bare(term: ScoreTerm) -> ScoreTerm:
    while isinstance(term, OnHeads):
        term = term.term
    return term


@dataclass(frozen=True)
class _Terms:
    """All that is added to the scores, each None where there is none.

    ``table`` ``[1, H|1, L]``, ``columns`` ``[B|1, H, Tk]``, ``lines`` ``[B|1, H, Tq]``; ``by_query`` ``[B, H, Tq, W]`` with ``near_query`` ``[1, H|1, L, W]``, a row for each
    distance; ``by_key`` ``[B, H, Tk, W]`` with ``near_key``.
    """

    table: Tensor | None
    columns: Tensor | None
    lines: Tensor | None
    by_query: Tensor | None
    near_query: Tensor | None
    by_key: Tensor | None
    near_key: Tensor | None

    @classmethod
    def none(cls, **some: Tensor | None) -> "_Terms":
        return cls(**{field.name: some.get(field.name) for field in fields(cls)})

    def plus(self, other: "_Terms") -> "_Terms":
        """Both: numbers are added, vectors laid side by side."""
        joined: dict[str, Tensor | None] = {}
        for field in fields(self):
            one, two = getattr(self, field.name), getattr(other, field.name)
            if one is None or two is None:
                joined[field.name] = two if one is None else one
            elif one.ndim == 3:
                joined[field.name] = one + two
            else:
                count = max(one.shape[1], two.shape[1])
                joined[field.name] = torch.cat([x.expand(-1, count, -1, -1) for x in (one, two)], dim=-1)
        return _Terms(**joined)

    def on_heads(self, first: int, last: int, total: int) -> "_Terms":
        """These for the heads ``first .. last - 1`` of ``total``, nothing for the others."""

        def spread(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            after = (0, 0) * (x.ndim - 2)
            return pad(x.expand(-1, last - first, *x.shape[2:]), (*after, first, total - last))

        return _Terms(**{field.name: spread(getattr(self, field.name)) for field in fields(self)})

    def for_heads(self, batch: int, heads: int) -> "_Terms":
        """As the kernels read them: ``table`` ``[H, L]``, ``near_*`` ``[H|1, L, W]``, the others with all samples; contiguous."""
        found: dict[str, Tensor | None] = {}
        for field in fields(self):
            x = getattr(self, field.name)
            if x is not None and field.name == "table":
                x = x[0].expand(heads, -1)
            elif x is not None and field.name.startswith("near"):
                x = x[0]
            elif x is not None:
                x = x.expand(batch, heads, *x.shape[2:])
            found[field.name] = None if x is None else x.contiguous()
        return _Terms(**found)


def _flatten(term: ScoreTerm, content: torch.dtype, number: torch.dtype) -> _Terms:
    """A term as numbers and vectors by distance or token, vectors in the dtype ``content``, for the matrix units."""
    if isinstance(term, OnHeads):
        return _flatten(term.term, content, number).on_heads(term.first, term.last, term.total)
    if isinstance(term, DistanceTable):
        return _Terms.none(table=term.table[None].to(number))
    if isinstance(term, KeyVector):
        lines = None if term.rows is None else term.rows.to(number)
        return _Terms.none(columns=term.values.to(number), lines=lines)
    if isinstance(term, (QueryBuckets, KeyBuckets)):
        near = term.table if term.bucket is None else term.table[..., term.bucket, :]
        near = (near if near.ndim == 3 else near[None])[None].to(content)
        if isinstance(term, QueryBuckets):
            return _Terms.none(by_query=term.query.to(content), near_query=near)
        return _Terms.none(by_key=term.key.to(content), near_key=near)
    raise TypeError(f"there is no kernel for {type(term).__name__}")


@dataclass(frozen=True)
class _Tiles:
    """Queries and keys of a tile, and how a GPU shares the work on one."""

    rows: int
    cols: int
    num_warps: int
    num_stages: int


def _tiles(call: AttentionCall, tensors: dict[str, Tensor | None], learning: bool) -> _Tiles:
    """By the widest vector that a tile holds for each token, and by dtype; content and the diagonals of the backward pass need square tiles.

    Chosen so that registers suffice as the compiler counts them for compute capability 8.0 and 9.0.
    """
    if _interpreted():
        return _Tiles(16, 16, 4, 1)
    named = [tensors[name] for name in ("query", "value", "by_query", "by_key")]
    widest = max(_widened(x.shape[-1]) for x in named if x is not None)
    contents = sum(tensors[name] is not None for name in ("by_query", "by_key"))
    single = call.query.dtype == torch.float32
    wide = widest > 128 or (single and widest > 64)
    if single and widest > 128 and (contents or learning):
        return _Tiles(16, 16, 4, 1)
    if contents == 2 or (wide and (contents or learning)):
        return _Tiles(32, 32, 4, 1)
    if contents or learning:
        return _Tiles(64, 64, 8, 2)
    return _Tiles(64, 32, 4, 2) if wide else _Tiles(128, 64, 4 if widest <= 64 else 8, 3)


def _widened(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _launch(kernel: Any, grid: tuple[int, ...], values: dict[str, Any], tiles: _Tiles) -> None:
    """Run a kernel on those of ``values`` that it names."""
    options = {} if _interpreted() else {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    kernel[grid](**{name: values[name] for name in kernel.arg_names}, **options)


def _rows(x: Tensor) -> Tensor:
    """The same with contiguous rows."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _values(
    call: AttentionCall, seed: Tensor | None, tensors: dict[str, Tensor | None], tiles: _Tiles
) -> dict[str, Any]:
    """What all kernels take, by name."""
    mask, positions = call.mask, call.mask.positions
    query, value = tensors["query"], tensors["value"]
    assert query is not None
    assert value is not None
    batch, heads, queries, width = query.shape
    found: dict[str, Any] = dict(tensors)
    for name in ("query", "key", "value", "by_query", "by_key"):
        x = tensors[name]
        found[f"{name}_at"] = (0, 0, 0) if x is None else tuple(x.stride()[:3])
    for name in ("near_query", "near_key"):
        x = tensors[name]
        found[f"{name}_at"] = (0, 0) if x is None else (x.stride(0) if x.shape[0] > 1 else 0, x.stride(1))
    for name, size in (
        ("WIDTH", width),
        ("OUT", value.shape[-1]),
        ("BY_QUERY", 1 if tensors["by_query"] is None else tensors["by_query"].shape[-1]),
        ("BY_KEY", 1 if tensors["by_key"] is None else tensors["by_key"].shape[-1]),
    ):
        found[name], found[f"{name}_TILE"] = size, _widened(size)
    documents = mask.query_documents is not None and mask.key_documents is not None
    exact = query.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        **found,
        "padding": None if mask.key_padding is None else mask.key_padding.to(torch.uint8).contiguous(),
        "query_documents": _of_samples(mask.query_documents, batch) if documents else None,
        "key_documents": _of_samples(mask.key_documents, batch) if documents else None,
        "seed": seed,
        "drop": call.dropout,
        "samples": batch,
        "heads": heads,
        "groups": call.groups,
        "queries": queries,
        "keys": positions.num_keys,
        "offset": int(positions.query_start) - int(positions.key_start),
        "window": mask.window,
        "scale": call.scale,
        "CAUSAL": mask.causal,
        "ROWS": tiles.rows,
        "COLS": tiles.cols,
        "TILE": tiles.rows,
        "PRECISION": "ieee" if exact or query.dtype == torch.float64 else "tf32",
    }


def _of_samples(documents: Tensor | None, batch: int) -> Tensor | None:
    return None if documents is None else documents.expand(batch, -1).contiguous()


def _ranges(mask: Mask, batch: int, tiles: _Tiles, by_key: bool) -> dict[str, Tensor | None]:
    """For each tile of queries the ``first`` tile of keys that shares a document with it and the ``stop`` behind the last, ``[B, tiles]``, or with ``by_key``
    the other way round; None where neither padding nor documents hide anything.

    Tiles are compared by their smallest and largest document. The running maximum of the largest never falls, so the first tile to reach a number is where that does.
    """
    if mask.key_padding is None and mask.key_documents is None:
        return {"first": None, "stop": None}
    positions = mask.positions
    queries, keys = mask.query_documents, mask.key_documents
    if queries is None or keys is None:
        queries = torch.zeros(batch, positions.num_queries, dtype=torch.long, device=positions.device)
        keys = queries.new_zeros(batch, positions.num_keys)
    none = torch.iinfo(torch.long)

    def extent(ids: Tensor, size: int, shown: Tensor | None) -> tuple[Tensor, Tensor]:
        ids = ids.long().expand(batch, -1)
        found = []
        for empty, fold in ((none.max, torch.amin), (none.min, torch.amax)):
            known = ids if shown is None else ids.masked_fill(~shown, empty)
            known = pad(known, (0, -ids.shape[1] % size), value=empty)
            found.append(fold(known.unflatten(1, (-1, size)), 2))
        return found[0], found[1]

    sides = [extent(queries, tiles.rows, None), extent(keys, tiles.cols, mask.key_padding)]
    (low, high), (other_low, other_high) = reversed(sides) if by_key else sides
    rising = other_high.cummax(1).values
    falling = other_low.flip(1).cummin(1).values.flip(1)
    return {
        "first": torch.searchsorted(rising, low.contiguous()).int(),
        "stop": torch.searchsorted(falling.contiguous(), high.contiguous(), right=True).int(),
    }


class _Attention(torch.autograd.Function):
    """The kernels with their gradients, of all tensors but ``lines``, which the softmax does not see."""

    @staticmethod
    def forward(ctx: Any, call: AttentionCall, seed: Tensor | None, *given: Tensor | None) -> Tensor:
        from .triton_kernels import forward

        tensors = dict(zip(NAMES, (None if x is None else _rows(x) for x in given), strict=True))
        query, value = call.query, call.value
        batch, heads, queries, _ = query.shape
        tiles = _tiles(call, tensors, learning=False)
        dtype = torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(batch, queries, heads, value.shape[-1])
        logsumexp = query.new_empty(batch, heads, queries, dtype=dtype)
        values = _values(call, seed, tensors, tiles) | _ranges(call.mask, batch, tiles, by_key=False)
        values |= {"output": output, "logsumexp": logsumexp, "output_at": _by_head(output)}
        _launch(forward, (-(-queries // tiles.rows), heads, batch), values, tiles)
        ctx.save_for_backward(seed, output, logsumexp, *tensors.values())
        ctx.call = call
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from .triton_kernels import backward_distances, backward_keys, backward_queries

        seed, output, logsumexp, *given = ctx.saved_tensors
        tensors = dict(zip(NAMES, given, strict=True))
        call: AttentionCall = ctx.call
        query, key = tensors["query"], tensors["key"]
        batch, heads, queries, _ = query.shape
        keys = key.shape[2]
        wanted = dict(zip(NAMES, ctx.needs_input_grad[2:], strict=True))
        tiles = _tiles(call, tensors, learning=True)
        gradient = _rows(gradient)

        def empty(x: Tensor | None) -> Tensor | None:
            return None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)

        grads = {name: empty(tensors[name]) for name in ("query", "key", "value", "by_query", "by_key")}
        grads["columns"] = empty(tensors["columns"]) if wanted["columns"] else None
        values = _values(call, seed, tensors, tiles) | {f"grad_{name}": x for name, x in grads.items()}
        values |= {"output": output, "output_at": _by_head(output), "logsumexp": logsumexp}
        values |= {"gradient": gradient, "gradient_at": _by_head(gradient), "inner": torch.empty_like(logsumexp)}
        across = _ranges(call.mask, batch, tiles, by_key=False)
        query_tiles, key_tiles = -(-queries // tiles.rows), -(-keys // tiles.cols)
        _launch(backward_queries, (query_tiles, heads, batch), values | across, tiles)
        down = _ranges(call.mask, batch, tiles, by_key=True)
        _launch(backward_keys, (key_tiles, key.shape[1], batch), values | down, tiles)
        shared = {name: wanted[name] for name in ("table", "near_query", "near_key")}
        if any(shared.values()):
            diagonals = query_tiles + key_tiles - 1
            parts: dict[str, Tensor | None] = {}
            for name, needed in shared.items():
                like = tensors[name]
                parts[name] = None
                if needed and like is not None:
                    parts[name] = logsumexp.new_empty(heads, diagonals, 2 * tiles.rows, *like.shape[2:])
            values |= {f"grad_{name}": x for name, x in parts.items()}
            _launch(backward_distances, (diagonals, heads), values | across, tiles)
            for name, part in parts.items():
                if part is not None:
                    grads[name] = _of_distances(part, keys, queries + keys - 1, tiles.rows, tensors[name])
        return None, None, *(grads.get(name) for name in NAMES)


NAMES = ("query", "key", "value", *(field.name for field in fields(_Terms)))


def _by_head(x: Tensor) -> tuple[int, int, int]:
    """Strides of samples, heads and tokens of ``[B, T, H, D]``."""
    return x.stride(0), x.stride(2), x.stride(1)


def _of_distances(parts: Tensor, keys: int, distances: int, tile: int, like: Tensor) -> Tensor:
    """The gradient of a table ``[H|1, L, ...]`` from the ``2 tile`` distances of each diagonal of tiles, ``[H, diagonals, 2 tile, ...]``: neighbours share half."""
    total = pad(parts[:, :, :tile].flatten(2), (0, 0, 0, 1)) + pad(parts[:, :, tile:].flatten(2), (0, 0, 1, 0))
    total = total.view(parts.shape[0], -1, *parts.shape[3:])
    start = -keys % tile
    total = total[:, start : start + distances]
    return (total if like.shape[0] > 1 else total.sum(0, keepdim=True)).to(like.dtype)
