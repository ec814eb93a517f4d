"""Relation-aware attention over labelled pairs: the relation of two tokens is given, not read off their distance. Shaw, Uszkoreit, Vaswani 2018,
arXiv 1803.02155, section 3.

``score = scale * q_i . (k_j + a^K[r_ij]) + s[r_ij, h]`` and ``output_i = sum_j p_ij (v_j + a^V[r_ij])`` for ``relation_ids`` ``r`` ``[B, Tq, Tk]``, such as edges of
a parse or of a database schema. Tables are shared by the heads of a layer, not by layers. The paper has vectors for keys and values; the number per
head ``s`` (option ``scalars``) is the bias that graph transformers use (Graphormer, arXiv 2106.05234).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .card import Card
from .encoding import Encoding
from .inputs import EncodingInputs
from .options import EncodingOptions
from .registry import register_encoding
from .terms import PairBuckets, ValuePairs


@dataclass(frozen=True, kw_only=True)
class RelationOptions(EncodingOptions):
    """``num_relations`` is N: ids are 0 to N - 1; ``keys``, ``values`` and ``scalars`` say which of the three tables exist."""

    num_relations: int = 16
    keys: bool = True
    values: bool = True
    scalars: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.num_relations >= 1, "num_relations", "at least 1")
        self.require(self.keys or self.values or self.scalars, "keys", "true when values and scalars are false")


@register_encoding
class Relation(Encoding[RelationOptions]):
    """Parameters ``key_table`` and ``value_table`` ``[N, D]`` and ``scalar_table`` ``[N, H]`` for each layer, drawn from N(0, 0.02)."""

    name = "relation"
    Options = RelationOptions
    reads = frozenset({"relation_ids"})
    card = Card(
        title="Self-Attention with Relative Position Representations",
        authors="Shaw, Peter and Uszkoreit, Jakob and Vaswani, Ashish",
        year=2018,
        arxiv="1803.02155",
        formula="score = q_i·(k_j + aK[r_ij]) / √D; values v_j + aV[r_ij]",
        depends_on="content",
        directions="both",
        beyond_training="defined: relations are given, whatever the distance",
    )

    def create_parameters(self) -> None:
        options, host = self.options, self.host

        def table(exists: bool, width: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(options.num_relations, width)) if exists else None

        self.key_table = table(options.keys, host.head_dim)
        self.value_table = table(options.values, host.head_dim)
        self.scalar_table = table(options.scalars, host.num_heads)

    def reset_parameters(self) -> None:
        for table in self.parameters(recurse=False):
            nn.init.normal_(table, std=0.02)

    def _relations(self, inputs: EncodingInputs) -> Tensor:
        """The given ids; raises ValueError when one has no row in the tables."""
        given = inputs.require("relation_ids", self.name)
        ids = given.long()
        positions = inputs.positions
        if ids.shape[1:] != (positions.num_queries, positions.num_keys):
            raise ValueError(
                f"relation_ids has shape {list(ids.shape)}, but must be [{inputs.query.shape[0]}, {positions.num_queries}, {positions.num_keys}]"
            )
        # a graph under construction and the meta device have no values to look at
        if ids.is_meta or torch.compiler.is_compiling() or not ids.numel():
            return ids
        low, high = inputs.once(("range", given), lambda: tuple(int(bound) for bound in ids.aminmax()))
        if low < 0 or high >= self.options.num_relations:
            raise ValueError(
                f"relation_ids holds {low if low < 0 else high}, but must be 0 to {self.options.num_relations - 1} "
                f"(num_relations={self.options.num_relations})"
            )
        return ids

    def score_terms(self, inputs: EncodingInputs) -> tuple[PairBuckets, ...]:
        terms = []
        relations = self._relations(inputs)
        if self.key_table is not None:
            table = inputs.scale * self.key_table.to(inputs.query.dtype)
            terms.append(PairBuckets(inputs.query @ table.T, relations))
        if self.scalar_table is not None:
            terms.append(PairBuckets(self.scalar_table.to(inputs.dtype).T[None, :, None], relations))
        return tuple(terms)

    def value_terms(self, inputs: EncodingInputs) -> tuple[ValuePairs, ...]:
        if self.value_table is None:
            return ()
        # score_terms has checked them
        return (ValuePairs(self.value_table, inputs.require("relation_ids", self.name).long()),)
