"""Attention with encodings: the one path from queries, keys and values to an output, used by models and by tensors alike."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..encodings.composition import contribute
from ..encodings.inputs import Contribution, EncodingInputs
from .backends import choose
from .call import AttentionCall, Mask, with_content_biases


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    encodings: Sequence[nn.Module],
    mask: Mask,
    *,
    scale: float,
    dropout: float = 0.0,
    backend: str = "auto",
    need_weights: bool = False,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """Output ``[B, Tq, H, Dv]`` and weights ``[B, H, Tq, Tk]`` or None, for ``query`` ``[B, H, Tq, D]``, ``key`` ``[B, G, Tk, D]``, ``value`` ``[B, G, Tk, Dv]``.

    ``given``: optional fields of ``EncodingInputs``. Raises ValueError when an encoding lacks one that it needs, or the backend is unknown
    or refuses the call.
    """
    inputs = EncodingInputs(query, key, mask.positions, scale, **given)
    total = contribute(encodings, inputs, Contribution(query, key, scale))
    call = AttentionCall(
        total.query,
        total.key,
        value,
        mask,
        total.scale,
        total.score_terms,
        total.value_terms,
        total.row_maps,
        dropout,
        need_weights,
        inputs.forward,
    )
    call = with_content_biases(call)
    output, weights = choose(backend, call).run(call)
    return output, weights if need_weights else None
