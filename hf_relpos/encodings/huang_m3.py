"""Huang et al.'s method 3: every coordinate of the content score times a learned number. Huang, Liang, Xu, Xiang 2020, arXiv 2009.13658.

``score = scale * sum_d q_id k_jd a[clip(i - j, -(P - 1), P - 1) + P - 1]_d``. Note the sign ``i - j``, the one of ``relative_key``; the paper writes
``j - i``.

The score that the host computes is kept and ``scale * sum_d q_id k_jd (a_d - 1)`` is added, which is the same number, so that what other
encodings of the call do to the content score is not lost. It is summed coordinate by coordinate: memory is that of the scores and never
D times that.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .card import Card
from .content_factors import ContentFactors
from .inputs import Contribution, EncodingInputs, RowMap, per_head
from .registry import register_encoding


@register_encoding
class HuangM3(ContentFactors):
    """Parameter ``factor`` ``[2P - 1, D]`` of :class:`ContentFactors`."""

    name = "huang_m3"
    card = Card(
        title="Improve Transformer Models with Better Relative Position Embeddings",
        authors="Huang, Zhiheng and Liang, Davis and Xu, Peng and Xiang, Bing",
        year=2020,
        arxiv="2009.13658",
        formula="score = Σ_d q_id·k_jd·a[i − j + P − 1]_d / √D",
        depends_on="content",
        directions="bidirectional",
        beyond_training="distances are clipped at P − 1, or an error (option beyond)",
    )

    def create_parameters(self) -> None:
        self.factor = nn.Parameter(torch.empty(self.num_rows, self.host.head_dim))

    @property
    def rescores(self) -> bool:
        return True

    def row_map(self, inputs: EncodingInputs, before: Contribution) -> RowMap:
        query, key = before.query.to(inputs.dtype), per_head(before.query, before.key).to(inputs.dtype)
        change = self.by_distance(inputs) - 1
        index = inputs.positions.distance_index()

        def coordinate(q: Tensor, k: Tensor, by_distance: Tensor) -> Tensor:
            return q[..., :, None] * k[..., None, :] * by_distance[index]

        def changed(scores: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float) -> Tensor:
            for d in range(self.host.head_dim):
                parts = (scale * query[..., d], key[..., d], change[:, d])
                # recomputed for the gradient, or each coordinate would keep products as large as the scores
                scores = scores + checkpoint(coordinate, *parts, use_reentrant=False, preserve_rng_state=False)
            return scores

        return changed
