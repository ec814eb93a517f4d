"""The content score times something learned for each distance: what Huang et al.'s methods 1 to 3 have in common. Huang, Liang, Xu, Xiang 2020,
arXiv 2009.13658.

``score = scale * q_i . k_j * a[d]``, ``d`` the row of ``a`` for the distance of ``i`` and ``j``. Being a factor, it needs the dense scores. It scales the content score
as other encodings of the same call have left it.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from .inputs import Contribution, EncodingInputs, RowMap
from .reach import DistanceTableEncoding, require_reach


class ContentFactors(DistanceTableEncoding):
    """Learned factors of the content score by distance, for the paper's methods 1 to 3.

    Parameter ``factor`` for each layer, all ones: a row for each distance of ``-(P - 1) .. P - 1``, or of ``0 .. P - 1`` unless ``signed``.
    """

    signed: ClassVar[bool] = True

    @property
    def num_rows(self) -> int:
        """How many distances have a factor."""
        return 2 * self.size - 1 if self.signed else self.size

    def create_parameters(self) -> None:
        self.factor = nn.Parameter(torch.empty(self.num_rows))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.factor)

    def by_distance(self, inputs: EncodingInputs) -> Tensor:
        """The row of ``factor`` for each distance of the call; raises ValueError beyond the table when ``beyond="error"``."""
        require_reach(inputs.positions, self.max_length, self.name)
        limit = self.size - 1
        distances = inputs.positions.distances().clamp(-limit, limit)
        return self.factor.to(inputs.dtype)[distances + limit if self.signed else distances.abs()]

    def row_map(self, inputs: EncodingInputs, before: Contribution) -> RowMap:
        factors = self.by_distance(inputs)[inputs.positions.distance_index()]

        def scaled(scores: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
            return scores * factors

        return scaled
