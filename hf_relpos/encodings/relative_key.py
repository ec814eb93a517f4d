"""BERT's ``relative_key``: a vector for each distance, met by the query. The form transformers 4 gave Shaw et al. 2018 (arXiv 1803.02155).

``score = scale * (q_i . k_j + q_i . E[i - j + P - 1])``, ``E`` being ``[2P - 1, D]`` with ``P = max_position_embeddings``. Note the sign ``i - j``,
opposite to the paper's, and that the term is scaled like the content. transformers 4 raised for texts longer than ``P``; here
distances are clipped to the table's ends (``beyond="clip"``) unless ``beyond="error"`` asks for the old behaviour.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding, EncodingInputs, register_encoding
from .options import EncodingOptions, Host
from .terms import QueryBuckets, ScoreTerm


@dataclass(frozen=True, kw_only=True)
class RelativeKeyOptions(EncodingOptions):
    """``max_position_embeddings`` is P, the host's unless given; ``beyond``: what happens to distances of P and more."""

    max_position_embeddings: int | None = None
    beyond: Literal["clip", "error"] = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.max_position_embeddings is None or self.max_position_embeddings >= 1,
            "max_position_embeddings",
            "at least 1",
        )

    def resolve(self, host: Host) -> Self:
        if self.max_position_embeddings is not None:
            return self
        if host.max_position_embeddings is None:
            raise ValueError(
                "max_position_embeddings=None is not valid: the host has none either, so the table's size must be given"
            )
        return replace(self, max_position_embeddings=host.max_position_embeddings)


@register_encoding
class RelativeKey(Encoding[RelativeKeyOptions]):
    """Parameter ``distance_embedding`` ``[2P - 1, D]`` for each layer, shared by its heads, drawn from N(0, 0.02)."""

    name = "relative_key"
    Options = RelativeKeyOptions
    legacy_position_embedding_type = "relative_key"
    legacy_parameter_names: ClassVar[dict[str, str]] = {"distance_embedding": "distance_embedding.weight"}
    card = Card(
        title="Self-Attention with Relative Position Representations",
        authors="Shaw, Peter and Uszkoreit, Jakob and Vaswani, Ashish",
        year=2018,
        arxiv="1803.02155",
        formula="score = (q_i·k_j + q_i·E[i − j + P − 1]) / √D",
        depends_on="content",
        directions="both",
        beyond_training="distances are clipped at P − 1, or an error (option beyond)",
    )

    @property
    def size(self) -> int:
        """P, the number of positions that the table knows."""
        size = self.options.max_position_embeddings
        assert size is not None
        return size

    @property
    def max_length(self) -> int | None:
        return self.size if self.options.beyond == "error" else None

    def create_parameters(self) -> None:
        self.distance_embedding = nn.Parameter(torch.empty(2 * self.size - 1, self.host.head_dim))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.distance_embedding, std=0.02)

    def bucket(self, inputs: EncodingInputs) -> Tensor:
        """The table row of each distance of the call; raises ValueError beyond the table when ``beyond="error"``."""
        longest = max(inputs.positions.num_queries, inputs.positions.num_keys)
        if self.options.beyond == "error" and longest > self.size:
            raise ValueError(
                f"a sequence of {longest} tokens is longer than the distance table of {self.name!r} "
                f"(max_position_embeddings={self.size}); set beyond='clip' to clip distances"
            )
        limit = self.size - 1
        return inputs.positions.distances().clamp(-limit, limit) + limit

    def table(self, inputs: EncodingInputs) -> Tensor:
        """The table in the precision of the query, scaled like the content."""
        return inputs.scale * self.distance_embedding.to(inputs.query.dtype)

    def score_terms(self, inputs: EncodingInputs) -> tuple[ScoreTerm, ...]:
        return (QueryBuckets(inputs.query, self.table(inputs), self.bucket(inputs), inputs.positions),)
