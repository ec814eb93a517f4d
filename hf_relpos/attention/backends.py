"""The table of backends, and the choice among them. A backend refuses with reasons; nothing falls back silently."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .call import AttentionCall
from .eager import objections as eager_objections
from .eager import run as eager_run
from .flex import objections as flex_objections
from .flex import run as flex_run
from .flex import suits as flex_suits
from .linear_memory import objections as linear_memory_objections
from .linear_memory import run as linear_memory_run
from .linear_memory import suits as linear_memory_suits
from .sdpa import objections as sdpa_objections
from .sdpa import run as sdpa_run
from .sdpa import suits as sdpa_suits
from .triton import missing as triton_missing
from .triton import objections as triton_objections
from .triton import run as triton_run
from .triton import suits as triton_suits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """A way to compute attention: ``objections(call)`` lists why it will not, ``run(call)`` gives ``[B, Tq, H, Dv]`` and weights or None, ``suits(call)``
    tells "auto" whether it is a good choice where it can. ``missing(device)`` lists what the machine lacks to run it on tensors there, whatever the call;
    ``note``: what must be known of it, or why "auto" does not take it."""

    name: str
    objections: Callable[[AttentionCall], list[str]]
    run: Callable[[AttentionCall], tuple[Tensor, Tensor | None]]
    suits: Callable[[AttentionCall], bool] = lambda call: True
    note: str = ""
    missing: Callable[[torch.device], list[str]] = lambda device: []

    def refusals(self, call: AttentionCall) -> list[str]:
        """All reasons not to run ``call`` here."""
        return self.missing(call.query.device) + self.objections(call)


_FLEX_NOTE = "not measured on a GPU yet; on a CPU it holds all scores and has no backward pass"

# in the order in which "auto" prefers them
BACKENDS: dict[str, Backend] = {
    "linear_memory": Backend("linear_memory", linear_memory_objections, linear_memory_run, linear_memory_suits),
    "sdpa": Backend("sdpa", sdpa_objections, sdpa_run, sdpa_suits),
    "flex": Backend("flex", flex_objections, flex_run, flex_suits, _FLEX_NOTE),
    "eager": Backend("eager", eager_objections, eager_run),
    "triton": Backend(
        "triton", triton_objections, triton_run, triton_suits, "not measured on a GPU yet", triton_missing
    ),
}

_announced: set[tuple[str, ...]] = set()


class BackendRefusal(ValueError):
    """The chosen backend cannot run a call; the message gives its reasons and the backends that can."""


def list_backends() -> list[str]:
    """Names of the backends, for ``backend=`` and ``attn_implementation=``."""
    return sorted(BACKENDS)


def backends_for(device: torch.device | str) -> list[str]:
    """Names of those that this machine can run on tensors of ``device``."""
    return [name for name, backend in BACKENDS.items() if not backend.missing(torch.device(device))]


def choose(name: str, call: AttentionCall) -> Backend:
    """The backend called ``name``; for ``"auto"`` the first that has no objection and suits the call, logged once for each outcome.

    Raises ValueError for an unknown name, :class:`BackendRefusal` when the named backend objects to the call.
    """
    if name == "auto":
        refused: list[str] = []
        for backend in BACKENDS.values():
            reasons = backend.refusals(call)
            if not reasons and not backend.suits(call):
                reasons = [backend.note or "it is not the faster choice here"]
            if not reasons:
                _announce(backend.name, refused)
                return backend
            refused.append(f"{backend.name}: {'; '.join(reasons)}")
        raise BackendRefusal(f"no backend can run this call: {' | '.join(refused)}")
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; valid backends: auto, {', '.join(list_backends())}")
    reasons = BACKENDS[name].refusals(call)
    if reasons:
        able = [other.name for other in BACKENDS.values() if not other.refusals(call)]
        raise BackendRefusal(
            f"backend {name!r} cannot run this call: {'; '.join(reasons)}. Backends that can: {', '.join(able)}"
        )
    return BACKENDS[name]


def _announce(chosen: str, refused: list[str]) -> None:
    outcome = (chosen, *refused)
    if outcome not in _announced:
        _announced.add(outcome)
        because = f" ({' | '.join(refused)})" if refused else ""
        logger.info("auto chose the attention backend %r%s", chosen, because)
