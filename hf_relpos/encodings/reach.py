"""How far a table of distances reaches: the rule for texts that go beyond it."""

from .positions import Positions


def require_reach(positions: Positions, max_length: int | None, name: str) -> None:
    """Raise a ValueError when ``positions`` may hold distances of ``max_length`` and more, which the table of encoding ``name`` lacks."""
    longest = positions.limit or max(positions.num_queries, positions.num_keys)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than the distance table of {name!r}, which serves at most {max_length}; "
            "set beyond='clip' to clip distances"
        )
