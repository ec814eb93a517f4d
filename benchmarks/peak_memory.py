"""Peak working memory of one call, in a fresh process: outputs, gradients and temporaries, without its inputs and parameters.

On a CPU it is the high-water mark of resident memory above what was resident before the call (``VmHWM - VmRSS``; Linux resets the mark
through ``/proc/self/clear_refs``), on a GPU the same of PyTorch's allocator. A call over few tokens goes first, so that what libraries set
up once does not count.
"""

import ctypes
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import torch
from workload import Workload

# what is left to the rest of the machine when a call takes all that it may
USABLE = 0.9
STATUS, CLEAR_REFS, MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")

# The server has loaded the libraries but computed nothing, so each of its forks is a fresh process without a slow start.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "hf_relpos"])


def preload(*modules: str) -> None:
    """Let the server load these too; of use before the first measurement only."""
    _processes.set_forkserver_preload(["torch", "hf_relpos", *modules])


class OutOfMemory(RuntimeError):
    """The call needs more memory than there is."""


class Alone(NamedTuple):
    """What one call took in a fresh process: its time, the rise of memory above what was held before it, and all that was held at the peak, with
    inputs and parameters (on a CPU also the interpreter and the libraries). Bytes; None for a CPU outside Linux."""

    milliseconds: float
    memory: int | None
    resident: int | None


def run_alone(workload: Workload, limit: int | None = None) -> Alone:
    """``workload`` once, in a process of its own.

    ``limit``: bytes that the call may take, on a CPU; most of what is available unless given. Raises OutOfMemory when that is too little, and
    BackendRefusal when the backend refuses.
    """
    on_gpu = torch.device(workload.device).type == "cuda"
    if on_gpu:
        # what this process keeps for reuse is missing in the other
        torch.cuda.empty_cache()
    measure = _alone_on_gpu if on_gpu else _alone_on_cpu
    with ProcessPoolExecutor(1, mp_context=_processes) as pool:
        try:
            return pool.submit(measure, workload, limit).result()
        except BrokenProcessPool:
            raise OutOfMemory("the system ended the process that measured the memory") from None


def peak_memory(workload: Workload, limit: int | None = None) -> int | None:
    """The rise of memory of :func:`run_alone`."""
    if torch.device(workload.device).type != "cuda" and not CLEAR_REFS.exists():
        return None
    return run_alone(workload, limit).memory


def _kibibytes(path: Path) -> dict[str, int]:
    """The entries of a ``/proc`` file that are given in kB, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}


def available_memory() -> int:
    """Bytes that a call on the CPU may take: most of what the system has left; endless where it does not tell."""
    return int(USABLE * _kibibytes(MEMINFO)["MemAvailable"]) if MEMINFO.exists() else 2**62


def _return_free_memory() -> None:
    """Give the system what glibc keeps of freed memory, which the call would use again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _alone_on_cpu(workload: Workload, limit: int | None) -> Alone:
    workload.shortened().prepare()()
    call = workload.prepare()
    if not CLEAR_REFS.exists():
        start = time.perf_counter()
        call()
        return Alone(1e3 * (time.perf_counter() - start), None, None)
    if limit is None:
        limit = available_memory()
    # a refused allocation is an exception; without a limit the system would end some process, perhaps another one
    allowed = _kibibytes(STATUS)["VmData"] + limit
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    _return_free_memory()
    CLEAR_REFS.write_text("5")
    before = _kibibytes(STATUS)["VmRSS"]
    start = time.perf_counter()
    try:
        call()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"the call needs more than the {limit / 2**30:.1f} GiB that it may take") from None
    milliseconds = 1e3 * (time.perf_counter() - start)
    peak = _kibibytes(STATUS)["VmHWM"]
    return Alone(milliseconds, peak - before, peak)


def _alone_on_gpu(workload: Workload, limit: int | None) -> Alone:
    try:
        workload.shortened().prepare()()
        call = workload.prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        total = torch.cuda.get_device_properties(workload.device).total_memory
        raise OutOfMemory(f"the call needs more than the GPU has ({total / 2**30:.1f} GiB)") from None
    milliseconds = 1e3 * (time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated()
    return Alone(milliseconds, peak - before, peak)
