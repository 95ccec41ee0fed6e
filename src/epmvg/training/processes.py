"""Data-parallel training: every process holds the whole model and takes its part of each batch.

Gradients are summed after the backward pass instead of in DDP's hooks (docs/design.md says why).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import accelerate
import torch
from torch import Tensor, nn

from epmvg.config.settings import TrainSettings
from epmvg.core.distributed import rank_and_world_size
from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.types import InputError


def join_processes(settings: TrainSettings, device: str = "auto") -> accelerate.PartialState:
    """Join the launcher's process group, each process on its own device.

    Args:
        settings: Of the recipe.
        device: As for `epmvg.core.hardware.select_device`.

    Raises:
        InputError: There is no such device, one GPU is named for several processes, the launcher's variables are
            incomplete, or an `ACCELERATE_*` variable contradicts the recipe.
    """
    world_size = rank_and_world_size()[1]
    chosen = select_device(device)
    if world_size > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device} is one GPU for {world_size} processes: give cuda or auto.")
    _check_environment(settings, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    state = accelerate.PartialState(cpu=chosen.type == "cpu")
    if state.num_processes != world_size:
        raise InputError(f"WORLD_SIZE={world_size} is set but LOCAL_RANK is not: start with torchrun.")
    state.device = chosen  # it keeps the device of this process's last training
    return state


def _check_environment(settings: TrainSettings, device: torch.device) -> None:
    """Reject variables of Accelerate that contradict the recipe, since they would have no effect."""
    off = {"false", "no", "none", "0", "1"}
    allowed = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            {"1", str(settings.gradient_accumulation_steps)},
            "set train.gradient_accumulation_steps={}",
        ),
        "ACCELERATE_MIXED_PRECISION": (
            {"no", "bf16" if use_bf16(settings.precision, device) else "no"},
            "set train.precision=bf16 or fp32",
        ),
        "ACCELERATE_DYNAMO_BACKEND": (off, "nothing is compiled in training"),
        "ACCELERATE_GRADIENT_CLIPPING": (off - {"1"}, "set train.max_grad_norm={}"),
        "ACCELERATE_USE_CPU": (off | ({"true"} if device.type == "cpu" else set()), "give --device cpu"),
        "ACCELERATE_TORCH_DEVICE": ({str(device), device.type}, "give --device {}"),
    }
    for strategy in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        allowed[f"ACCELERATE_USE_{strategy}"] = off, "choose multi-GPU in `accelerate config`"
    for variable, (values, advice) in allowed.items():
        value = os.environ.get(variable, "")
        if value and value.lower() not in values:
            raise InputError(
                f"The variable {variable}={value} does not fit this training: unset it, and"
                f" {advice.format(value.lower())}."
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
    present = torch.tensor([float(p.grad is not None) for p in trained], device=local[0].device)
    flat = torch.cat([present, *(gradient.reshape(-1) for gradient in local)])
    torch.distributed.all_reduce(flat)
    present, *sums = flat.split([len(trained), *(gradient.numel() for gradient in local)])
    for parameter, gradient, summed, anywhere in zip(trained, local, sums, present.tolist(), strict=True):
        if anywhere:
            parameter.grad = gradient.copy_(summed.view_as(gradient))


def sum_over_processes(values: Sequence[float], state: accelerate.PartialState) -> list[float]:
    """Sum each number over all processes."""
    summed: Tensor = accelerate.utils.reduce(torch.tensor(values, dtype=torch.float32, device=state.device), "sum")
    return summed.tolist()
