"""What is to be reached, as data: for each row its encoding and the highest ratios to plain SDPA of the same direction and dtype.

Shape: B=1, H=12, D=64 where a row says nothing else.
"""

from dataclasses import dataclass
from typing import Any

from attention_case import Case, Setting

LENGTHS = [2048, 4096]
# how much memory may grow where the length doubles: two, and a tenth for the noise of the system's accounting
LINEAR_GROWTH = 2.2
CACHE = 4096
# parts of the length that are tokens, in a padded batch
RAGGED = (1.0, 0.9, 0.75, 0.5)


@dataclass(frozen=True)
class Limits:
    """The highest ratios: time forward (or for one new token), time forward and backward, memory forward and backward. None: not asked for."""

    forward: float | None
    backward: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class TargetRow:
    """One row. ``limits`` by dtype: only these dtypes are measured. ``lengths``: its own, where the command's do not apply; the other fields as in ``Case``."""

    name: str
    family: str
    encoding: str
    limits: dict[str, Limits]
    options: tuple[tuple[str, Any], ...] = ()
    causal: bool = False
    batch: int = 1
    dropout: float = 0.0
    padding: tuple[float, ...] = ()
    decode: bool = False
    lengths: tuple[int, ...] = ()

    def case(self, setting: Setting, length: int, backward: bool, backend: str) -> Case:
        """Its call; ``setting`` has the row's batch."""
        return Case(
            setting,
            length,
            self.causal,
            backward,
            self.encoding,
            backend,
            self.options,
            self.dropout,
            self.padding,
            self.decode,
        )

    @property
    def passes(self) -> tuple[bool, ...]:
        """Whether gradients are asked for, in each of its measurements."""
        forward = any(limits.forward is not None for limits in self.limits.values())
        backward = any(limits.backward is not None for limits in self.limits.values())
        return (False,) * forward + (True,) * backward


def _rows(
    family: str, limits: Limits, encodings: dict[str, tuple[str, dict[str, Any]]], **fields: Any
) -> list[TargetRow]:
    """Rows of a family, in float32 unless ``fields`` say otherwise, for encodings and options by the rows' names."""
    by_dtype = fields.pop("by_dtype", {"float32": limits})
    return [
        TargetRow(name, family, encoding, by_dtype, tuple(options.items()), **fields)
        for name, (encoding, options) in encodings.items()
    ]


_DISTANCE = Limits(1.08, 1.25, 2.5)
_HALF_DISTANCE = Limits(1.08, 1.45, 2.5)

ROWS: dict[str, TargetRow] = {
    row.name: row
    for row in [
        *_rows(
            "distance table",
            _DISTANCE,
            {"distance-t5": ("t5", {}), "distance-alibi-learned": ("alibi", {"learned": True})},
            by_dtype={"float32": _DISTANCE, "bfloat16": _HALF_DISTANCE},
        ),
        *_rows(
            "distance table",
            _DISTANCE,
            {
                "distance-alibi-fixed": ("alibi", {}),
                "distance-kerple_log": ("kerple_log", {}),
                "distance-tisa": ("tisa", {}),
                "distance-mlp_bias": ("mlp_bias", {}),
            },
        ),
        *_rows(
            "causal distance table",
            Limits(1.15, 1.40, 2.5),
            {
                "causal-t5": ("t5", {}),
                "causal-alibi-learned": ("alibi", {"learned": True}),
                "causal-kerple_log": ("kerple_log", {}),
                "causal-tisa": ("tisa", {}),
                "causal-mlp_bias": ("mlp_bias", {}),
            },
            causal=True,
        ),
        *_rows(
            "causal ALiBi with fixed slopes",
            Limits(1.05, 1.10, 2.5),
            {"causal-alibi-fixed": ("alibi", {})},
            causal=True,
        ),
        *_rows(
            "FoX, CABLE (learned gates)",
            Limits(1.15, 1.20, 2.5),
            {"gates-fox": ("fox", {}), "gates-cable": ("cable", {})},
            causal=True,
        ),
        *_rows(
            "sinusoidal_bias, Sandwich",
            Limits(1.15, 1.25, 2.5),
            {"sinusoid-sinusoidal_bias": ("sinusoidal_bias", {}), "sinusoid-sandwich": ("sandwich", {})},
        ),
        *_rows(
            "clipped content at 64",
            Limits(1.35, 1.40, 4.0),
            {
                "clipped-shaw": ("shaw", {"max_distance": 64, "values": False}),
                "clipped-relative_key": ("relative_key", {"max_position_embeddings": 64}),
            },
        ),
        *_rows(
            "relative_key_query clipped at 64",
            Limits(1.6, 1.9, 4.0),
            {"clipped-relative_key_query": ("relative_key_query", {"max_position_embeddings": 64})},
        ),
        *_rows(
            "full content",
            Limits(2.0, 2.2, 4.0),
            {
                "full-transformer_xl": ("transformer_xl", {}),
                "full-music_transformer": ("music_transformer", {}),
                "full-relative_key": ("relative_key", {}),
            },
        ),
        *_rows(
            "deberta, deberta_v2",
            Limits(2.6, 3.3, 8.0),
            # the reach of the published checkpoints
            {"deberta": ("deberta", {"max_relative_positions": 512}), "deberta_v2": ("deberta_v2", {})},
        ),
        *_rows(
            "padded batch of 4",
            Limits(1.0, 1.25, 2.5),
            {"padded-t5": ("t5", {})},
            batch=len(RAGGED),
            padding=RAGGED,
        ),
        *_rows("attention dropout 0.1 in training", Limits(None, 0.5, 1 / 3), {"dropout-t5": ("t5", {})}, dropout=0.1),
        *_rows(
            "one-token decoding, distance",
            Limits(1.08),
            {"decode-t5": ("t5", {}), "decode-alibi": ("alibi", {})},
            by_dtype={"float32": Limits(1.08), "bfloat16": Limits(0.4)},
            causal=True,
            decode=True,
            batch=4,
            lengths=(CACHE,),
        ),
        *_rows(
            "one-token decoding, content",
            Limits(1.25),
            {
                "decode-shaw": ("shaw", {"max_distance": 64, "values": False}),
                "decode-relative_key": ("relative_key", {}),
            },
            by_dtype={"float32": Limits(1.25), "bfloat16": Limits(0.4)},
            causal=True,
            decode=True,
            batch=4,
            lengths=(CACHE,),
        ),
    ]
}
