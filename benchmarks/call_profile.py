"""Where the time of one call goes, by PyTorch's profiler."""

from pathlib import Path

import torch
from result_files import write_atomically
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record_operators
from workload import Workload

OPERATORS = 25


def profile(name: str, workload: Workload, folder: Path) -> str:
    """The operators that took the most time of their own in one call of ``workload``, after one that does not count; also written to ``folder``."""
    call = workload.prepare()
    call()
    on_gpu = torch.device(workload.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with record_operators(activities=activities) as recorded:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    device = "cuda" if on_gpu else "cpu"
    table = recorded.key_averages(group_by_input_shape=True).table(
        sort_by=f"self_{device}_time_total", row_limit=OPERATORS, max_name_column_width=45, max_shapes_column_width=60
    )
    text = f"{name}, {workload.work}, {workload.length} tokens, {workload.dtype} on {workload.device}\n\n{table}"
    folder.mkdir(parents=True, exist_ok=True)
    work = workload.work.replace("+", "-")
    path = folder / f"profile-{name}-{device}-{workload.length}-{workload.dtype}-{work}.txt"
    write_atomically(path, text)
    return f"{text}\nwrote {path}"
