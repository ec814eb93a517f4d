"""Peak working memory of one call, in a fresh process: outputs, gradients and temporaries, without queries, keys, values and parameters.

On a CPU it is the high-water mark of resident memory above what was resident before the call (``VmHWM - VmRSS``; Linux resets the mark
through ``/proc/self/clear_refs``), on a GPU the same of PyTorch's allocator. A call over few tokens goes first, so that what libraries set
up once does not count.
"""

import ctypes
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from attention_case import Case, prepare

WARM_UP_LENGTH = 64
# what is left to the rest of the machine when a call takes all that it may
USABLE = 0.9
STATUS, CLEAR_REFS, MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")

# The server has loaded the libraries but computed nothing, so each of its forks is a fresh process without a slow start.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "hf_relpos"])


class OutOfMemory(RuntimeError):
    """The call needs more memory than there is."""


def peak_memory(case: Case, limit: int | None = None) -> int | None:
    """Bytes at the peak of ``case``, measured in a process of its own; None for a CPU outside Linux.

    ``limit``: bytes that the call may take, on a CPU; most of what is available unless given. Raises OutOfMemory when that is too little, and
    BackendRefusal when the backend refuses.
    """
    on_gpu = torch.device(case.setting.device).type == "cuda"
    if on_gpu:
        # what this process keeps for reuse is missing in the other
        torch.cuda.empty_cache()
    elif not CLEAR_REFS.exists():
        return None
    measure = _peak_on_gpu if on_gpu else _peak_on_cpu
    with ProcessPoolExecutor(1, mp_context=_processes) as pool:
        try:
            return pool.submit(measure, case, limit).result()
        except BrokenProcessPool:
            raise OutOfMemory("the system ended the process that measured the memory") from None


def _kibibytes(path: Path) -> dict[str, int]:
    """The entries of a ``/proc`` file that are given in kB, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines if line[-1] == "kB"}


def _return_free_memory() -> None:
    """Give the system what glibc keeps of freed memory, which the call would use again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run(case: Case) -> None:
    prepare(case)()


def _peak_on_cpu(case: Case, limit: int | None) -> int:
    _run(replace(case, length=min(WARM_UP_LENGTH, case.length)))
    call = prepare(case)
    if limit is None:
        limit = int(USABLE * _kibibytes(MEMINFO)["MemAvailable"])
    # a refused allocation is an exception; without a limit the system would end some process, perhaps another one
    allowed = _kibibytes(STATUS)["VmData"] + limit
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    _return_free_memory()
    CLEAR_REFS.write_text("5")
    before = _kibibytes(STATUS)["VmRSS"]
    try:
        call()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"the call needs more than the {limit / 2**30:.1f} GiB that it may take") from None
    return _kibibytes(STATUS)["VmHWM"] - before


def _peak_on_gpu(case: Case, limit: int | None) -> int:
    try:
        _run(replace(case, length=min(WARM_UP_LENGTH, case.length)))
        call = prepare(case)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        total = torch.cuda.get_device_properties(case.setting.device).total_memory
        raise OutOfMemory(f"the call needs more than the GPU has ({total / 2**30:.1f} GiB)") from None
    return torch.cuda.max_memory_allocated() - before
