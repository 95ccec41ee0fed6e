"""How a training spreads over processes: whole copies that agree (DDP), or weights dealt out among them (FSDP).

Accelerate says which, and wraps for DDP. Shards are torch's own, made here: as `accelerate config` sets it up,
`Accelerator.prepare` fails on a network with buffers, and in mixed precision it would round boxes to bfloat16.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import accelerate
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import register_dataclass, tree_map_only

from epmvg.config import TrainSettings
from epmvg.hardware import select_device, use_bf16
from epmvg.types import InputError, Output

T = TypeVar("T")

register_dataclass(Output)  # in what is no tree, torch 2.8 finds no tensors whose backward pass would gather shards


def join(settings: TrainSettings) -> accelerate.Accelerator:
    """Join the processes that were started together.

    Raises:
        InputError: Accelerate is set to a way of spreading that training does not know.
    """
    for name in ("DeepSpeed", "Megatron_LM"):  # before Accelerate asks for packages that would not help
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            raise _refusal(name.replace("_", "-"))
    accelerate.state.AcceleratorState._reset_state()  # it keeps the precision of this process's last training
    device = select_device()
    accelerator = accelerate.Accelerator(
        cpu=device.type == "cpu",  # else several processes stay alone
        mixed_precision="bf16" if use_bf16(settings.precision, device) else "no",
        gradient_accumulation_steps=settings.accumulate,
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise _refusal("FSDP version 1")
    return accelerator


def _refusal(name: str) -> InputError:
    return InputError(f"Training does not run under {name}: choose multi-GPU or FSDP version 2 in `accelerate config`.")


def spread(part: nn.Module, accelerator: accelerate.Accelerator, units: Iterable[nn.Module] = ()) -> nn.Module:
    """Make what learns ready for the processes, before an optimiser knows its parameters.

    What is frozen stays whole everywhere, so that it may still be asked on its own. The rest, where it is dealt out, is
    gathered for each pass; `units` are gathered one by one, and must be called equally often by every process.
    """
    if not accelerator.is_fsdp2:
        return cast(nn.Module, accelerator.prepare_model(part))
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing is written into answers
    for module in part.to(accelerator.device).modules():
        for name, number in list(module.named_parameters(recurse=False)):
            if number.dim() == 0:  # has no rows to deal out
                setattr(module, name, nn.Parameter(number.detach()[None], number.requires_grad))
    plugin = accelerator.state.fsdp_plugin
    how: dict[str, Any] = {
        "mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,)),
        "offload_policy": plugin.cpu_offload,
        "ignored_params": {parameter for parameter in part.parameters() if not parameter.requires_grad},
    }
    for unit in units:
        if any(parameter.requires_grad for parameter in unit.parameters()):
            fully_shard(unit, reshard_after_forward=plugin.reshard_after_forward, **how)
    fully_shard(part, **how)
    return part


def whole(tree: T) -> T:
    """Put the shards in a tree of tensors together; all processes must do so at once."""
    return cast(T, tree_map_only(DTensor, lambda shards: shards.full_tensor().cpu(), tree))


def like(tensor: Tensor, own: Tensor) -> Tensor:
    """Return of a whole tensor what a process holds of `own`, whose values do not matter."""
    tensor = tensor.reshape(own.shape)
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, without asking the others."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
