"""Matrices that learn only what the product of two thin ones adds to them (LoRA, Hu et al. 2021, arXiv 2106.09685), and keep it when the training ends.

``W + B A``, ``W`` ``[m, n]`` frozen, ``B`` ``[m, rank]`` zero at first, ``A`` ``[rank, n]`` normal with variance ``1 / n``.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _WithProduct(nn.Module):
    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        rows, columns = weight.shape
        first = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.first = nn.Parameter(first.to(weight))
        self.second = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.second @ self.first


def add(model: nn.Module, rank: int, seed: int) -> None:
    """Let the matrices of ``model``, but for tables of vectors and encodings, learn by products of this ``rank``; all else is frozen beforehand by the caller."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in list(model.named_modules()):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or isinstance(module, nn.Embedding):
            continue
        if weight.ndim == 2 and "relpos" not in name.split("."):
            parametrize.register_parametrization(module, "weight", _WithProduct(weight, rank, generator))


def merge(model: nn.Module) -> None:
    """Write what was learned into the matrices, which are plain parameters again; nothing where there is none."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
