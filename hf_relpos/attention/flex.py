"""Attention by PyTorch's FlexAttention (arXiv 2412.05496): a fused kernel, made for each kind of bias and mask, that never holds the scores. For GPUs.

*Terms.* The kernel calls ``score_mod(score, b, h, i, j)`` for one pair at a time: ``score`` plus the terms' ``at``. It reads numbers and multiplies no vectors,
so a term of distance vectors is handed over as products, ``query . table[n]`` ``[B, H, Tq, N]``: linear in the length where the table ends, which is why a
vector for every distance is refused. What a term reads is float32 at least, since the gradient of what is learned is summed over pairs in its precision.

*Masks.* ``mask_mod`` is ``Mask.at``. Beside it stands which blocks of 128 x 128 pairs are seen in part, which as a whole, and which are passed over, worked
out from the first and last slot, the padding and the document numbers of a block: no ``[Tq, Tk]`` tensor. It is kept for each shape where it does not
depend on data. A block that is said to be seen in part may turn out empty; a row without a visible key gives zero, and zero gradients.

*Compilation.* On a GPU the kernel is compiled, once for each shape: with lengths left open, tables fail to compile. Beyond :data:`MOST_KERNELS` of them
PyTorch would go on uncompiled, and so dense; here that is an error. A handful of queries over a growing cache, for which a kernel would be compiled at
every token, is another matter (``few_queries.py``).

On a CPU the operator's own uncompiled reference runs, which holds all scores: it is there to be compared with, and has no backward pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..encodings.positions import Positions
from ..encodings.terms import KeyBuckets, OnHeads, PairFunction, QueryBuckets, ScoreTerm
from .call import AttentionCall, Mask
from .few_queries import FEW_QUERIES
from .few_queries import run as run_few

# rows and columns of a block of the mask, as PyTorch's kernels have it
BLOCK = 128
# compiled kernels beyond which one more is an error: lengths, dtypes, kinds of encoding, with and without gradients
MOST_KERNELS = 128
# the narrowest head of a product on a GPU
LEAST_WIDTH = 16
# where PyTorch's function takes what requires a gradient
TRAINS_ON = ("cuda",)


def objections(call: AttentionCall) -> list[str]:
    """Reasons not to run ``call``."""
    query, device = call.query, call.query.device.type
    kinds = [_inner(term) for term in call.score_terms]
    reasons = []
    if call.need_weights:
        reasons.append("attention weights are asked for, and the fused kernel does not return them")
    if call.value_terms:
        reasons.append("the encoding adds to the values by distance, which needs the attention weights")
    if call.row_maps:
        reasons.append("the encoding maps whole rows of scores, which the fused kernel does not show")
    if call.dropout:
        reasons.append("FlexAttention has no dropout")
    if any(isinstance(term, QueryBuckets | KeyBuckets) and term.bucket is None and not term.ends for term in kinds):
        reasons.append("products with a vector for every distance would be held in memory, more of them than scores")
    if any(isinstance(term, PairFunction) for term in kinds):
        reasons.append(
            "the encoding is computed for all heads at once, and FlexAttention's kernels compute single numbers"
        )
    if device not in ("cpu", "cuda"):
        reasons.append(f"FlexAttention is used on devices of type cuda and cpu, not {device}")
    if device not in TRAINS_ON and _learns(query, call.key, call.value, *_learned(call)):
        reasons.append(f"FlexAttention has no backward pass on devices of type {device}")
    if device == "cuda":
        if query.dtype == torch.float64:
            reasons.append("FlexAttention's GPU kernels compute in float32 at most, not in float64")
        width = min(query.shape[-1], call.value.shape[-1])
        if width < LEAST_WIDTH:
            reasons.append(f"FlexAttention's GPU kernels take heads of width {LEAST_WIDTH} at least, not {width}")
        if torch.are_deterministic_algorithms_enabled() and _learns(*_learned(call)):
            reasons.append(
                "deterministic algorithms are asked for, and FlexAttention sums what is learned in any order"
            )
    return reasons


def suits(call: AttentionCall) -> bool:
    """Whether "auto" may take it: not before it has been measured on a GPU."""
    return False


def run(call: AttentionCall) -> tuple[Tensor, None]:
    """Output ``[B, Tq, H, Dv]``; no weights. RuntimeError when more than :data:`MOST_KERNELS` kernels would be compiled."""
    if call.query.shape[2] <= FEW_QUERIES:
        return run_few(call), None
    dtype = torch.promote_types(call.query.dtype, torch.float32)
    terms = tuple(_readable(term, dtype) for term in call.score_terms)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        # the kernel's score is float32 though it is traced with the query's dtype, to which the terms must not be rounded
        for term in terms:
            score = score + term.at(b, h, i, j)
        return score

    query, key, value = (x.to(call.query.dtype) for x in (call.query, call.key, call.value))
    if not torch.is_grad_enabled():
        query, key, value = query.detach(), key.detach(), value.detach()
    blocks = block_mask(_for_each_sample(call.mask, query.shape[0]))
    output = _kernel(query.device)(query, key, value, score_mod, blocks, call.scale, call.groups > 1)
    return output.transpose(1, 2), None


def _kernel(device: torch.device) -> Callable[..., Tensor]:
    """What computes attention on ``device``, with the first seven arguments of PyTorch's ``flex_attention``."""
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention
    return _reference if device.type == "cpu" else _compiled


def _reference(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Any, mask: Any, scale: float, grouped: bool
) -> Tensor:
    # the function around the operator would warn that it is not compiled, and trace it for every kind of call
    output, _, _ = torch.ops.higher_order.flex_attention(query, key, value, score_mod, mask.as_tuple(), scale, {})
    return output


def _compiled(*arguments: Any) -> Tensor:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_KERNELS):
            return _compile()(*arguments)
    except FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"FlexAttention would be compiled for more than {MOST_KERNELS} kinds of call (a length is one), and go on uncompiled, which is dense; "
            "pad texts to a few lengths, or choose another backend"
        ) from error


@cache
def _compile() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


@dataclass(frozen=True)
class _Products(ScoreTerm):
    """``values[b, h, t, bucket(n)]``, ``t`` being the query or the key: the numbers that distance vectors come to."""

    values: Tensor
    bucket: Tensor
    positions: Positions
    by_query: bool

    def tile(self, rows: slice = slice(None), cols: slice = slice(None)) -> Tensor:
        raise NotImplementedError("the kernel asks for single numbers")

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        column = self.bucket[self.positions.distance_index_at(i, j)]
        return self.values[b, h, i if self.by_query else j, column]


def _readable(term: ScoreTerm, dtype: torch.dtype) -> ScoreTerm:
    """``term`` as a kernel can read it: numbers in ``dtype``, side by side, which know of gradients only where these are wanted."""
    if isinstance(term, OnHeads):
        return replace(term, term=_readable(term.term, dtype))
    if isinstance(term, QueryBuckets | KeyBuckets):
        by_query = isinstance(term, QueryBuckets)
        vectors = term.query if isinstance(term, QueryBuckets) else term.key
        table, bucket = term.table, term.bucket
        if bucket is None:
            bucket = torch.arange(table.shape[-2], device=table.device)
        elif len(bucket) < table.shape[-2]:
            # a short text meets few of the table's rows
            table, bucket = table.index_select(-2, bucket), torch.arange(len(bucket), device=bucket.device)
        term = _Products(vectors @ table.transpose(-1, -2), bucket, term.positions, by_query)
    found = {field.name: getattr(term, field.name) for field in fields(term)}  # type: ignore[arg-type]
    numbers = {
        name: value.to(dtype)
        for name, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    if not torch.is_grad_enabled():
        numbers = {name: value.detach() for name, value in numbers.items()}
    return replace(term, **{name: value.contiguous() for name, value in numbers.items()})  # type: ignore[type-var]


def _inner(term: ScoreTerm) -> ScoreTerm:
    return term.term if isinstance(term, OnHeads) else term


def _learned(call: AttentionCall) -> Iterator[Tensor]:
    """The tensors that the score terms of ``call`` are made of."""
    for term in map(_inner, call.score_terms):
        for field in fields(term):  # type: ignore[arg-type]
            value = getattr(term, field.name)
            if isinstance(value, Tensor):
                yield value


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _for_each_sample(mask: Mask, batch: int) -> Mask:
    """``mask`` with a row of its own for each sample, which ``at`` asks for."""
    rows = {name: getattr(mask, name) for name in ("key_padding", "query_documents", "key_documents")}
    return replace(mask, **{name: row.expand(batch, -1) for name, row in rows.items() if row is not None})


def block_mask(mask: Mask) -> Any:
    """PyTorch's BlockMask of ``mask``: ``mask.at`` with the blocks that it sees in part and as a whole."""
    p = mask.positions
    of_data = (mask.key_padding, mask.key_documents, mask.dense)
    if (
        torch.compiler.is_compiling()
        or any(tensor is not None for tensor in of_data)
        or not (isinstance(p.query_start, int) and isinstance(p.key_start, int))
    ):
        return _block_mask(mask)
    first = p.query_start - p.key_start
    return _of_shape(p.num_queries, p.num_keys, first, mask.causal, mask.window, p.device)


@lru_cache(maxsize=64)
def _of_shape(queries: int, keys: int, first: int, causal: bool, window: int | None, device: torch.device) -> Any:
    with torch.inference_mode(False):
        return _block_mask(Mask(Positions(queries, keys, first, 0, device), causal, window))


def _block_mask(mask: Mask) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return mask.at(b, h, i, j)

    some, whole = seen_blocks(mask)
    lengths = (mask.positions.num_queries, mask.positions.num_keys)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=lengths
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are in, ``[..., rows]``, and the numbers of all, ``[..., rows, columns]``: first those that are, ascending."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)


def seen_blocks(mask: Mask) -> tuple[Tensor, Tensor]:
    """Which blocks of pairs ``[B|1, 1|H, blocks of queries, blocks of keys]`` have a visible pair, and in which all are. The first may say yes of a block
    that each condition leaves something of, but not both together."""
    p = mask.positions
    rows, cols = (torch.arange(0, count, BLOCK, device=p.device) for count in (p.num_queries, p.num_keys))
    last_row, last_col = (rows + BLOCK - 1).clamp(max=p.num_queries - 1), (cols + BLOCK - 1).clamp(max=p.num_keys - 1)
    start = p.query_start - p.key_start
    lowest, highest = start + rows[:, None] - last_col, start + last_row[:, None] - cols
    # a block that sticks out is never whole: the kernel must look where it ends
    whole = ((rows[:, None] + BLOCK <= p.num_queries) & (cols + BLOCK <= p.num_keys))[None, None]
    some = torch.ones_like(whole)
    if mask.causal:
        some, whole = some & (highest >= 0), whole & (lowest >= 0)
    if mask.window is not None:
        some = some & (lowest < mask.window) & (highest > -mask.window)
        whole = whole & (highest < mask.window) & (lowest > -mask.window)
    if mask.key_padding is not None:
        tokens = _by_block(mask.key_padding, 1)[:, None, None]
        some, whole = some & tokens.any(-1), whole & tokens.all(-1)
    if mask.query_documents is not None and mask.key_documents is not None:
        queries, keys = (_by_block(ids, 1) for ids in (mask.query_documents, mask.key_documents))
        low, high = queries.amin(-1)[:, None, :, None], queries.amax(-1)[:, None, :, None]
        first, last = keys.amin(-1)[:, None, None], keys.amax(-1)[:, None, None]
        some = some & (low <= last) & (first <= high)
        whole = whole & (low == high) & (first == last) & (low == first)
    if mask.dense is not None:
        pairs = _by_block(_by_block(mask.dense, 3), 2)
        some, whole = some & pairs.any(-1).any(3), whole & pairs.all(-1).all(3)
    some, whole = torch.broadcast_tensors(some, whole)
    return some, whole


def _by_block(values: Tensor, dim: int) -> Tensor:
    """``values`` with dimension ``dim`` in blocks; the last element fills up the last block."""
    count = values.shape[dim]
    index = torch.arange(-(-count // BLOCK) * BLOCK, device=values.device).clamp(max=count - 1)
    return values.index_select(dim, index).unflatten(dim, (-1, BLOCK))
