"""The processes of a distillation: this one alone, on the CPU, or those of `accelerate launch` with the device and precision that they were given."""

import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16")


def launched() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def native_precision() -> str:
    """bfloat16 where this CPU multiplies in it, which takes about half the time."""
    # before some version PyTorch does not tell
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"


def is_first() -> bool:
    """Whether this process is alone or the first of those that were launched together."""
    return os.environ.get("RANK", "0") == "0" or not launched()


class Processes:
    """This process alone."""

    index, count = 0, 1
    device = torch.device("cpu")

    def __init__(self, precision: str | None = None):
        self.precision = precision or native_precision()

    def autocast(self) -> AbstractContextManager[Any]:
        """Where models run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over processes, on each of them."""
        return tensor

    def wait(self) -> None:
        """Until all are here."""


class LaunchedProcesses(Processes):
    """The processes of a launcher, by accelerate."""

    def __init__(self, precision: str | None):
        from accelerate import Accelerator

        self._accelerator = Accelerator()
        if self._accelerator.mixed_precision not in ("no", "bf16"):
            raise ValueError(
                f"mixed_precision={self._accelerator.mixed_precision} is not valid for a distillation; use no or bf16"
            )
        # nothing said: GPUs of the launcher compute as it says
        super().__init__("bfloat16" if self._accelerator.mixed_precision == "bf16" else precision or "float32")
        self.index, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device

    def add(self, tensor: Tensor) -> Tensor:
        return self._accelerator.reduce(tensor, "sum")

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def processes(precision: str | None) -> Processes:
    """Those that this process belongs to; ValueError for a precision that a distillation cannot use."""
    return LaunchedProcesses(precision) if launched() else Processes(precision)
