"""Times of calls that take turns in one process, so that they share whatever else the machine does meanwhile."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least ``rounds``, then more until ``seconds`` have passed, at most ``max_rounds``.

    ``clock``: "wall", or "cpu" for the time that this process computed on all cores, which other processes disturb less; no measure of a GPU.
    """

    rounds: int = 3
    max_rounds: int = 21
    seconds: float = 0.5
    clock: Literal["wall", "cpu"] = "wall"

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= self.max_rounds:
            raise ValueError(f"rounds={self.rounds} is not valid: it must be at least 1 and at most {self.max_rounds}")


def interleaved_times(calls: Sequence[Callable[[], None]], device: str, effort: Effort) -> list[list[float]]:
    """Milliseconds of each call in each round, ``[call][round]``.

    Every round runs every call once, in the given order and in its reverse by turns. A first round warms up and does not count.
    """
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing_to_wait_for
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    synchronize()
    now = time.perf_counter if effort.clock == "wall" else time.process_time
    begin = time.perf_counter()
    for done in range(effort.max_rounds):
        if done >= effort.rounds and time.perf_counter() - begin >= effort.seconds:
            break
        order = range(len(calls)) if done % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            start = now()
            calls[index]()
            synchronize()
            times[index].append(1e3 * (now() - start))
    return times


def _nothing_to_wait_for() -> None:
    """A CPU has finished when the call returns."""


def rounds_at(rounds: int, length: int) -> int:
    """``rounds`` up to 2048 tokens, fewer in proportion beyond, but at least 2 of them where there are more than one."""
    return max(min(rounds, 2), math.ceil(rounds * min(1.0, 2048 / length)))
