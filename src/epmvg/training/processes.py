"""Data-parallel training: every process holds the whole student and takes its part of each batch.

Gradients are summed here instead of in DDP's backward pass: a process may have nothing to learn from a batch, where
its part of a short last batch is empty or its images cannot be read, and must not hold up the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import accelerate
import torch
from torch import Tensor, nn

from epmvg.config.settings import TrainSettings
from epmvg.core.distributed import launched
from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.types import InputError


def join(settings: TrainSettings, device: str = "auto") -> accelerate.PartialState:
    """Join the processes that were started together, each on its own device.

    Of `accelerate launch` only the processes are taken: what its configuration says beside the recipe must agree with
    the recipe.

    Args:
        settings: of the recipe.
        device: as for `epmvg.core.hardware.select_device`.

    Raises:
        InputError: there is no such device, one GPU is named for several processes, the launcher's variables are
            incomplete, or an `ACCELERATE_*` variable contradicts the recipe.
    """
    world = launched()[1]
    chosen = select_device(device)
    if world > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device} is one GPU for {world} processes: give cuda or auto.")
    _check_environment(settings, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    state = accelerate.PartialState(cpu=chosen.type == "cpu")
    if state.num_processes != world:
        raise InputError(f"WORLD_SIZE={world} is set but LOCAL_RANK is not: start with torchrun.")
    state.device = chosen  # it keeps the device of this process's last training
    return state


def _check_environment(settings: TrainSettings, device: torch.device) -> None:
    """Refuse what variables of Accelerate, left in a shell or set by its launcher, ask for beside the recipe."""
    for way in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if _said(f"ACCELERATE_USE_{way}") == "true":
            raise _refusal(f"ACCELERATE_USE_{way}", "choose multi-GPU in `accelerate config`")
    steps = _said("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if steps not in ("", "1", str(settings.gradient_accumulation_steps)):
        raise _refusal("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", f"set train.gradient_accumulation_steps={steps}")
    precision = _said("ACCELERATE_MIXED_PRECISION")
    if precision not in ("", "no") and not (precision == "bf16" and use_bf16(settings.precision, device)):
        raise _refusal("ACCELERATE_MIXED_PRECISION", "set train.precision=bf16 or fp32")
    if _said("ACCELERATE_DYNAMO_BACKEND") not in ("", "no"):
        raise _refusal("ACCELERATE_DYNAMO_BACKEND", "training compiles nothing")
    clipping = _said("ACCELERATE_GRADIENT_CLIPPING")
    if clipping not in ("", "none"):
        raise _refusal("ACCELERATE_GRADIENT_CLIPPING", f"set train.max_grad_norm={clipping}")
    if _said("ACCELERATE_USE_CPU") == "true" and device.type != "cpu":
        raise _refusal("ACCELERATE_USE_CPU", "give --device cpu")
    named = _said("ACCELERATE_TORCH_DEVICE")
    if named not in ("", str(device), device.type):
        raise _refusal("ACCELERATE_TORCH_DEVICE", f"give --device {named}")


def _said(variable: str) -> str:
    return os.environ.get(variable, "").lower()


def _refusal(variable: str, instead: str) -> InputError:
    value = os.environ[variable]
    return InputError(f"The variable {variable}={value} does not fit this training: unset it, and {instead}.")


def start_alike(part: nn.Module, processes: int) -> None:
    """Give every process the weights of the first."""
    if processes > 1:
        for tensor in part.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], processes: int) -> None:
    """Sum the gradients of all processes in place; a parameter that has one on any of them gets one on all."""
    if processes == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    there = torch.tensor([float(p.grad is not None) for p in trained], device=own[0].device)
    everything = torch.cat([there, *(gradient.reshape(-1) for gradient in own)])
    torch.distributed.all_reduce(everything)
    there, *sums = everything.split([len(trained), *(gradient.numel() for gradient in own)])
    for parameter, gradient, summed, anywhere in zip(trained, own, sums, there.tolist(), strict=True):
        if anywhere:
            parameter.grad = gradient.copy_(summed.view_as(gradient))


def totals(values: Sequence[float], accelerator: accelerate.PartialState) -> list[float]:
    """Sum each number over all processes."""
    own = torch.tensor(values, dtype=torch.float32, device=accelerator.device)
    summed: Tensor = accelerate.utils.reduce(own, "sum")
    return summed.tolist()
