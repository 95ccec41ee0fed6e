"""Selection of device, precision and number of threads, and memory errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from epmvg.core.types import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def select_device(name: str = "auto") -> torch.device:
    """Return a device of torch.

    Args:
        name: "auto" (CUDA, then MPS, then CPU) or a device of torch, for example "cuda:1". Under a launcher, "auto"
            and "cuda" are the GPU of this process's LOCAL_RANK.

    Raises:
        InputError: the device is unknown or not available.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"There is no device {name!r}. Use auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda":
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(os.environ.get("LOCAL_RANK") or 0) if device.index is None else device.index
        if index >= number:
            raise InputError(f"The device cuda:{index} is not available ({number} CUDA devices). Use another, or auto.")
        return torch.device("cuda", index)
    if device.type == "mps" and torch.backends.mps.is_available():
        return device
    if device.type != "cpu":
        raise InputError(f"The device {name} is not available. Use auto or cpu.")
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host to a device; a GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def tf32(allow: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 in float32 products and convolutions of NVIDIA GPUs, within a block."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if allow else "highest")
        torch.backends.cudnn.allow_tf32 = allow
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def use_bf16(precision: str, device: torch.device | str) -> bool:
    """Return whether to compute in bfloat16; with "auto" where the hardware of the device multiplies bfloat16."""
    if precision != "auto":
        return precision == "bf16"
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and cpu_has_bf16()


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_threads() -> int:
    """Return the number of threads to compute with: $OMP_NUM_THREADS, or the cores this process may use."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is out of memory, of a GPU or of the machine."""
    import torch

    words = ("DefaultCPUAllocator", "out of memory")  # torch has a class for CUDA only
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)
