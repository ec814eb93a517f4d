"""The machine and the versions that numbers depend on."""

import os
import platform
from pathlib import Path

import torch
import transformers
from result_files import Machine

import hf_relpos


def describe_machine(device: str) -> Machine:
    """This machine, seen from ``device``."""
    on_gpu = torch.device(device).type == "cuda"
    return Machine(
        processor=torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def cpu_model() -> str:
    """The CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_relpos": hf_relpos.__version__,
    }
