"""What this machine computes well."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def use_bf16(precision: str) -> bool:
    """Say whether to compute in bfloat16; "auto" does where the processor or GPU has it in hardware."""
    if precision != "auto":
        return precision == "bf16"
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Say whether the processor multiplies bfloat16 in hardware."""
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def cores() -> int:
    """Return how many threads to compute with: $OMP_NUM_THREADS, or the cores this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, a GPU's or the machine's."""
    import torch

    said = ("DefaultCPUAllocator", "out of memory")  # torch has a class of its own for CUDA alone
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in said)


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
