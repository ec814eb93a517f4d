"""What dense backends add to scores: the terms, and minus infinity at keys that a query does not see.

Causality and windows hide distances, and are written into a table of numbers by distance where there is one: a number for each distance instead of one for each
pair. Layers that share their terms share what is made of them.
"""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..encodings.terms import ALL, DistanceTable
from .call import AttentionCall, rows_without_keys
from .regions import visible_distances


@dataclass(frozen=True)
class Added:
    """``bias`` ``[B|1, H|1, rows, cols]``, None where nothing is added; ``visible`` alike, keys that are not hidden otherwise, None where all are; ``blind``
    ``[B|1, H|1, rows, 1]``: rows of the bias that hide all keys, None where it hides none in this way."""

    bias: Tensor | None
    visible: Tensor | None
    blind: Tensor | None


def added(call: AttentionCall, rows: slice = ALL, cols: slice = ALL) -> Added:
    """What is added to the scores of some queries and keys."""
    mask, terms = call.mask, call.score_terms
    if not any(_holds_distances(call, term) for term in terms):
        return Added(call.bias(rows, cols), mask.tile(rows, cols), None)
    otherwise = replace(mask, causal=False, window=None).tile(rows, cols)
    place = mask.positions.identity
    if call.forward is None or place is None or (rows, cols) != (ALL, ALL) or not all(map(call.forward.holds, terms)):
        bias, blind = _folded(call, rows, cols)
    else:
        key = ("added", tuple(map(id, terms)), mask.causal, mask.window, place, call.query.dtype)
        bias, blind = call.forward.get(key, lambda: _folded(call, rows, cols))
    return Added(bias, otherwise, blind)


def _holds_distances(call: AttentionCall, term: object) -> bool:
    """Whether the columns of a term are the distances of the mask, one after the other."""
    return isinstance(term, DistanceTable) and not (term.positions.has_gaps or call.mask.positions.has_gaps)


def _folded(call: AttentionCall, rows: slice, cols: slice) -> tuple[Tensor, Tensor | None]:
    """The sum of all terms, minus infinity at distances that the mask hides, and its rows without keys."""
    if call.mask.causal or call.mask.window is not None:
        lowest, highest = visible_distances(call.mask)
        distances = call.mask.positions.distances()
        hidden = (distances < lowest) | (distances > highest)
        terms = list(call.score_terms)
        first = next(number for number, term in enumerate(terms) if _holds_distances(call, term))
        table: DistanceTable = terms[first]  # type: ignore[assignment]
        terms[first] = replace(table, table=table.table.masked_fill(hidden, -math.inf))
        call = replace(call, score_terms=tuple(terms))
    bias = call.bias(rows, cols)
    assert bias is not None
    return bias, rows_without_keys(bias)
