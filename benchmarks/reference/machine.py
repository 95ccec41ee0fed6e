"""What this machine is, and the most matrix work it does a second."""

from __future__ import annotations

import os
import platform
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from epmvg.core.hardware import cpu_has_bf16
from reference.timing import interleaved, timer

SIDE = 2048  # of the square matrices whose product is the peak: 17 GFLOP, far outside every cache


def machine() -> dict[str, Any]:
    """Describe the machine, measure its matrix peak, and say how busy it was before."""
    busy = os.getloadavg()[0]
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if cpu_has_bf16() else {})
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(busy, 2),
        "peak_gflops": {name: matrix_peak(kind) for name, kind in precisions.items()},
    }


def matrix_peak(kind: torch.dtype, rounds: int = 7) -> float:
    """Measure GFLOP/s of a large matrix product on this process's threads, the median of some rounds."""
    a, b = torch.randn(2, SIDE, SIDE).to(kind)
    (times,) = interleaved([timer(partial(torch.mm, a, b))], rounds)
    return round(2 * SIDE**3 / statistics.median(times) / 1e9, 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
