"""What the commands of this folder measure: anything that can be prepared and called, here or in a fresh process."""

from collections.abc import Callable
from typing import Protocol, Self

# tokens of the call that goes first in a fresh process
WARM_UP_LENGTH = 64


class Workload(Protocol):
    """A call to measure. It is a frozen dataclass, so that it can be compared, hashed and sent to another process.

    ``device``: a torch name. ``length``: its tokens. ``dtype``: a torch name. ``work``: what the call does, such as "forward".
    """

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def length(self) -> int: ...

    @property
    def work(self) -> str: ...

    def __hash__(self) -> int: ...

    def prepare(self) -> Callable[[], None]:
        """The call with everything that it needs; it returns nothing, so that outputs and gradients are freed within it."""

    def shortened(self) -> Self:
        """The same over ``WARM_UP_LENGTH`` tokens at most, so that what libraries set up once does not count."""
