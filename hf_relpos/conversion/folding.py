"""Keeping what is not position: the parts of a table of absolute positions that are the same for every token, or belong to one token.

A table adds ``p_i`` to the token at ``i``. Its mean is no position, and a token that always stands at one place, such as the first of an encoder's
input, always gets the same vector: both are added to weights that are there anyway. What dropping the rest moves on average is taken up by the gain
and the bias of the LayerNorm that ends each layer, or by its last bias: as in the correction of quantised networks (Nagel et al. 2019, arXiv 1906.04721).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.architectures import ArchSpec
from ..models.neutral import NoPosition
from .layerwise import LayeredModel


def position_vectors(base: Any, spec: ArchSpec, ids: Tensor) -> Tensor:
    """What a model's own table adds to the tokens of ``ids`` ``[B, T]``, ``[T, W]``."""
    found: list[Tensor] = []
    hook = base.get_submodule(spec.position_module).register_forward_hook(
        lambda module, args, output: found.append(output)
    )
    try:
        base(input_ids=ids[:1], **({"use_cache": False} if spec.causal else {}))
    finally:
        hook.remove()
    return found[0].reshape(-1, found[0].shape[-1])


def tokens_with_a_place(batches: Sequence[Tensor]) -> dict[int, int]:
    """The ids that stand in every text of ``batches`` at one place, always the same, and nowhere else; with that place."""
    places: dict[int, int] = {}
    first = batches[0]
    for place in range(min(ids.shape[1] for ids in batches)):
        token = int(first[0, place])
        if not all(bool((ids[:, place] == token).all()) for ids in batches):
            break
        places[token] = place
    return {
        token: place
        for token, place in places.items()
        if sum(int((ids == token).sum()) for ids in batches) == sum(len(ids) for ids in batches)
    }


@torch.no_grad()
def fold_positions(original: Any, converted: Any, spec: ArchSpec, batches: Sequence[Tensor]) -> list[str]:
    """Move what is no position from the table of ``original`` into the weights of ``converted``, both base models; says what was done."""
    if spec.native != "table":
        return ["nothing: rotary angles add nothing to the input"]
    if isinstance(original.get_submodule(spec.position_module), NoPosition):
        return ["nothing: the original has no absolute positions"]
    longest = max(batches, key=lambda ids: ids.shape[1])
    vectors = position_vectors(original, spec, longest)
    words = converted.get_input_embeddings().weight
    if words.shape[1] != vectors.shape[1]:
        return [f"nothing: word vectors are {words.shape[1]} wide, positions {vectors.shape[1]}"]
    placed = tokens_with_a_place(batches)
    weights = torch.zeros(len(vectors))
    for ids in batches:
        weights[: ids.shape[1]] += len(ids)
    for place in placed.values():
        weights[place] = 0
    mean = (weights[:, None] * vectors).sum(0) / weights.sum()
    types = (
        None
        if spec.embeddings is None
        else getattr(converted.get_submodule(spec.embeddings), "token_type_embeddings", None)
    )
    (words if types is None else types.weight).add_(mean)
    told = [
        f"the mean of the table of positions, into {'the word vectors' if types is None else 'the vectors of token types'}"
    ]
    for token, place in placed.items():
        words[token] += vectors[place] - mean
        told.append(f"position {place}, into the vector of token {token}, which always stands there")
    return told


@torch.no_grad()
def correct_layer(original: LayeredModel, converted: LayeredModel, layer: int) -> str | None:
    """Bring the next input of ``converted`` nearer to that of ``original`` by gain and bias of the module that ended ``layer`` (-1: what stands before the first);
    says what was done, None when there is no such module.

    Raises RuntimeError when that module does not end the layer after all.
    """
    module = converted.outlet(layer)
    if module is None:
        return None
    wanted, found = original.hidden, converted.hidden
    count = sum(hidden[..., 0].numel() for hidden in found)

    def mean(values: Any) -> Tensor:
        return sum(value.double().sum((0, 1)) for value in values) / count

    mean_wanted, mean_found = mean(wanted), mean(found)
    gain = torch.ones_like(mean_found)
    if isinstance(module, nn.LayerNorm):
        apart = [hidden - mean_found.to(hidden.dtype) for hidden in found]
        spread = mean(hidden.square() for hidden in apart)
        shared = mean(a * (b - mean_wanted.to(b.dtype)) for a, b in zip(apart, wanted, strict=True))
        gain = torch.where(spread > 0, shared / spread.clamp(min=1e-30), 1.0)
        module.weight.mul_(gain)
        module.bias.mul_(gain)
    shift = mean_wanted - gain * mean_found
    bias: Any = module.bias
    if bias.shape != shift.shape:
        raise RuntimeError(
            f"the bias of {type(module).__name__} at the end of layer {layer} is not as wide as the layer"
        )
    bias.add_(shift)
    converted.hidden = [hidden * gain.to(hidden.dtype) + shift.to(hidden.dtype) for hidden in found]
    return "gain and bias" if isinstance(module, nn.LayerNorm) else "bias"
