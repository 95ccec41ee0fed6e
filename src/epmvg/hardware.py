"""What this machine computes well."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch


def use_bf16(precision: str) -> bool:
    """Say whether to compute in bfloat16; "auto" does where the processor or GPU has it in hardware."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
