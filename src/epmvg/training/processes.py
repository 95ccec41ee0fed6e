"""Data-parallel training: every process holds the whole model and takes its part of each batch.

Gradients are summed after the backward pass instead of in DDP's hooks (docs/design.md says why).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import cast

import accelerate
import torch
from torch import nn

from epmvg.core.distributed import rank_and_world_size
from epmvg.core.hardware import select_device
from epmvg.core.types import InputError


def join_processes(device: str = "auto") -> accelerate.PartialState:
    """Join the launcher's process group, each process on its own device.

    Args:
        device: As for `epmvg.core.hardware.select_device`.

    Raises:
        InputError: There is no such device, one GPU is named for several processes, the launcher's variables are
            incomplete, or it is to train in another way.
    """
    world_size = rank_and_world_size()[1]
    chosen = select_device(device)
    if world_size > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device} is one GPU for {world_size} processes. Give cuda or auto.")
    _check_environment()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    several_gpus = world_size > 1 and chosen.type == "cuda"
    backend = {"backend": "cuda:nccl,cpu:gloo"} if several_gpus else {}  # gloo sums what is on the host
    state = accelerate.PartialState(cpu=chosen.type == "cpu", **backend)
    if state.num_processes != world_size:
        raise InputError(f"WORLD_SIZE={world_size} is set but LOCAL_RANK is not. Start with torchrun.")
    state.device = chosen  # it keeps the device of this process's last training
    return state


def _check_environment() -> None:
    """Reject launches for other ways to train on several devices, since they would have no effect."""
    for strategy in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        variable = f"ACCELERATE_USE_{strategy}"
        value = os.environ.get(variable, "")
        if value.lower() not in ("", "false", "no", "0"):
            raise InputError(
                f"{variable}={value}, but training is data-parallel only. Choose multi-GPU in `accelerate config`."
            )


def broadcast_weights(module: nn.Module, world_size: int) -> None:
    """Give every process the weights of the first."""
    if world_size > 1:
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Sum the gradients of all processes in place; a parameter that has one on any of them gets one on all."""
    if world_size == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    local = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    present = sum_over_processes([p.grad is not None for p in trained], world_size)
    flat = torch.cat([gradient.reshape(-1) for gradient in local])
    torch.distributed.all_reduce(flat)
    sums = flat.split([gradient.numel() for gradient in local])
    for parameter, gradient, summed, anywhere in zip(trained, local, sums, present, strict=True):
        if anywhere:
            parameter.grad = gradient.copy_(summed.view_as(gradient))


def sum_over_processes(values: Sequence[float], world_size: int) -> list[float]:
    """Sum each number over all processes, on the host: a GPU is not waited for."""
    if world_size == 1:
        return [*values]
    summed = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(summed)
    return cast(list[float], summed.tolist())
