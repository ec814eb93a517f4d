"""One attention call, as every backend receives it."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..encodings.inputs import OncePerForward, RowMap
from ..encodings.positions import Positions
from ..encodings.terms import ALL, ContentBias, ScoreTerm, ValueTerm


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: the conjunction of all conditions that are given.

    ``causal``: no key later than the query. ``window``: keys at a distance below it only, on both sides unless ``causal``.
    ``key_padding`` ``[B, Tk]`` bool: keys that are tokens. ``query_documents`` ``[B, Tq]`` and ``key_documents`` ``[B, Tk]``: a query
    sees its own document. ``dense`` ``[B|1, 1|H, Tq, Tk]`` bool: anything else, such as a host's own mask.
    """

    positions: Positions
    causal: bool = False
    window: int | None = None
    key_padding: Tensor | None = None
    query_documents: Tensor | None = None
    key_documents: Tensor | None = None
    dense: Tensor | None = None

    @property
    def is_plain_causal(self) -> bool:
        """Whether this is the square lower triangle and nothing else."""
        p = self.positions
        others = (self.window, self.key_padding, self.key_documents, self.dense)
        aligned = isinstance(p.query_start, int) and isinstance(p.key_start, int) and p.query_start == p.key_start
        return self.causal and aligned and p.num_queries == p.num_keys and all(other is None for other in others)

    @property
    def hides_nothing(self) -> bool:
        """Whether every query sees every key."""
        others = (self.window, self.key_padding, self.key_documents, self.dense)
        return not self.causal and all(other is None for other in others)

    def tile(self, rows: slice = ALL, cols: slice = ALL) -> Tensor | None:
        """Visibility of a block, ``[B|1, 1|H, rows, cols]`` bool; None when every key is visible."""
        parts = []
        if self.causal or self.window is not None:
            distance = self.positions.query[:, rows, None] - self.positions.key[:, None, cols]
            if self.causal:
                parts.append(distance >= 0)
            if self.window is not None:
                parts.append(distance.abs() < self.window)
        if self.key_padding is not None:
            parts.append(self.key_padding[:, None, cols])
        if self.query_documents is not None and self.key_documents is not None:
            parts.append(self.query_documents[:, rows, None] == self.key_documents[:, None, cols])
        visible = None
        for part in parts:
            visible = part if visible is None else visible & part
        if visible is not None:
            visible = visible[:, None]
        if self.dense is not None:
            block = self.dense[:, :, rows, cols]
            visible = block if visible is None else visible & block
        return visible

    def at(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Visibility of key ``j`` for query ``i`` of sample ``b`` and head ``h``; indices broadcast against each other."""
        distance = i - j + self.positions.query_start - self.positions.key_start
        visible = torch.ones_like(distance, dtype=torch.bool)
        if self.causal:
            visible = visible & (distance >= 0)
        if self.window is not None:
            visible = visible & (distance.abs() < self.window)
        if self.key_padding is not None:
            visible = visible & self.key_padding[b, j]
        if self.query_documents is not None and self.key_documents is not None:
            visible = visible & (self.query_documents[b, i] == self.key_documents[b, j])
        if self.dense is not None:
            sample = b if self.dense.shape[0] > 1 else torch.zeros_like(b)
            head = h if self.dense.shape[1] > 1 else torch.zeros_like(h)
            visible = visible & self.dense[sample, head, i, j]
        return visible


def rows_without_keys(scores: Tensor) -> Tensor | None:
    """Which rows ``[..., R, 1]`` of scores ``[..., R, C]`` are minus infinity throughout; None where it is seen that there are none, which is not looked for where looking
    has a price: on an accelerator, or in a graph."""
    if not scores.shape[-1]:
        return scores.new_ones(*scores.shape[:-1], 1, dtype=torch.bool)
    # the largest of a row takes a fraction of the time of a comparison of all
    blind = scores.detach().amax(dim=-1, keepdim=True) == -math.inf
    if scores.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return blind
    try:
        return blind if bool(blind.any()) else None
    except RuntimeError:
        # under torch.func.vmap, and of a fake tensor, there is no value to look at
        return blind


@dataclass(frozen=True)
class AttentionCall:
    """Queries ``[B, H, Tq, D]``, keys ``[B, G, Tk, D]`` and values ``[B, G, Tk, Dv]``, as encodings have mapped them, and what is added.

    ``scale`` multiplies the content score only; terms already stand on the logit scale. ``need_weights`` asks for the attention
    weights ``[B, H, Tq, Tk]``, after dropout as the hosts return them. ``forward``: what layers of a model compute once for all of them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    scale: float
    score_terms: tuple[ScoreTerm, ...] = ()
    value_terms: tuple[ValueTerm, ...] = ()
    row_maps: tuple[RowMap, ...] = ()
    dropout: float = 0.0
    need_weights: bool = False
    forward: OncePerForward | None = None

    @property
    def groups(self) -> int:
        """How many query heads share a key head."""
        return self.query.shape[1] // self.key.shape[1]

    def bias(self, rows: slice = ALL, cols: slice = ALL) -> Tensor | None:
        """The sum of the score terms for a block, ``[B|1, H|1, rows, cols]`` in float32 at least; None when there is none."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        total = None
        for term in self.score_terms:
            tile = term.tile(rows, cols).to(dtype)
            total = tile if total is None else total + tile
        return total


def with_content_biases(call: AttentionCall) -> AttentionCall:
    """``call`` without terms of the kind ``ContentBias``: ``(q + u) . k`` is one product, where ``u . k`` by itself would be added to every score. A bias becomes a number for
    each key where another encoding has mapped the keys since, or scales content scores, or asks for them as they are."""
    query, terms = call.query, []
    for term in call.score_terms:
        if not isinstance(term, ContentBias):
            terms.append(term)
        elif term.key is call.key and term.scale == call.scale and not call.row_maps:
            query = query + term.vector[:, None]
        else:
            terms.append(term.numbers())
    return replace(call, query=query, score_terms=tuple(terms))
