"""Models in parts on several processes (FSDP2), and whole again."""

import os
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from checkpoints import SHARDING, RunError


def shard_where_asked(accelerator: Accelerator) -> None:
    """Let processes on CPUs share a model's parameters when the launcher's configuration asks for it.

    accelerate (1.15) turns FSDP on for GPUs and their like only, and on CPUs goes on without a word with a whole model in each process. The
    code behind it runs on gloo all the same. Raises :class:`RunError` for the older FSDP, and for one process.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or is_sharded(accelerator):
        return
    if accelerator.distributed_type != DistributedType.MULTI_CPU:
        raise RunError("FSDP needs several processes: launch more than one, or leave it out")
    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise RunError(f"on CPUs only FSDP2 shards: set fsdp_version to 2, not {plugin.fsdp_version}")
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    # both hold it, and whoever asks next copies the one's to the other
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds only a part of the model's parameters, by FSDP."""
    return accelerator.distributed_type == DistributedType.FSDP


def whole_model(model: Any, accelerator: Accelerator) -> Any:
    """The trained model without what was wrapped around it or spread over processes, on the main process; None on the others. To be called on
    every process, when nothing more is computed."""
    if accelerator.distributed_type not in SHARDING:
        return accelerator.unwrap_model(model, keep_torch_compile=False) if accelerator.is_main_process else None
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return None
    model = accelerator.unwrap_model(model, keep_torch_compile=False)
    from torch.distributed.fsdp import FSDPModule

    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, FSDPModule):
            # sharding gave it a class made of FSDPModule and its own
            module.__class__ = next(cls for cls in type(module).__bases__ if cls is not FSDPModule)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = weights[f"{path}.{name}" if path else name]
                module._parameters[name] = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model
