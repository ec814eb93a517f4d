"""Knowing when a config of this package comes into being."""

from collections.abc import Callable
from typing import Any, ClassVar


class FirstUse:
    """Left-hand base of every config class.

    ``listener``: called with the class of each config that is made, loaded, copied or unpickled, before anyone has it; set by the installed
    package, which then lets transformers' Auto classes know the models. None in code that was itself loaded from a saved folder.
    """

    listener: ClassVar[Callable[[type], None] | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if FirstUse.listener is not None:
            FirstUse.listener(cls)
        return super().__new__(cls)
