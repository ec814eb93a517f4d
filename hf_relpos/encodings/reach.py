"""How far a table of distances reaches: the rule for texts that go beyond it."""

from dataclasses import dataclass
from typing import Literal, Self

from .encoding import Encoding
from .options import EncodingOptions, Host
from .positions import Positions


def require_reach(positions: Positions, max_length: int | None, name: str) -> None:
    """Raise a ValueError when ``positions`` may hold distances of ``max_length`` and more, which the table of encoding ``name`` lacks."""
    longest = positions.limit or max(positions.num_queries, positions.num_keys)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the distance table of {name!r}, which serves at most {max_length}; "
            "set beyond='clip' to clip distances"
        )


@dataclass(frozen=True, kw_only=True)
class ReachOptions(EncodingOptions):
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
        return self.or_host("max_position_embeddings", host)


class DistanceTableEncoding(Encoding[ReachOptions]):
    """Base of methods with something learned for each of the distances that ``P`` positions can have."""

    Options = ReachOptions

    @property
    def size(self) -> int:
        """P, the number of positions that the table knows."""
        size = self.options.max_position_embeddings
        assert size is not None
        return size

    @property
    def max_length(self) -> int | None:
        return self.size if self.options.beyond == "error" else None
