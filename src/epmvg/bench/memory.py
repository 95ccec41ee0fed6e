"""Peak memory of one engine in a process of its own: `python -m epmvg.bench.memory PRESET BACKEND PRECISION`.

Backend `plain` is the re-creation. Prints JSON: phrases an image -> MB, imports and weights included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from epmvg.bench.work import ENGINES, Work

COUNTS = (1, 7)  # rising: a process's peak never falls


def peaks(preset: str, backend: str, precision: str) -> dict[int, int]:
    """Measure peak resident memory, MB, by phrases an image, imports included."""
    command = [sys.executable, "-m", "epmvg.bench.memory", preset, backend, precision]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {int(phrases): mb for phrases, mb in json.loads(done.stdout).items()}


def forget_peak() -> None:
    """Let the peak start from what is held now, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> int:
    """Return the most memory this process has held resident, MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    preset, backend, precision = sys.argv[1:]
    work = Work(preset)
    found = {}
    with torch.inference_mode():
        if backend == "plain":
            plain = work.plain()
            work.student.to("meta")  # only its tokenizer is still asked
            ask = [partial(work.ask_plainly, plain, phrases) for phrases in COUNTS]
        else:
            (engine,) = (one for one in ENGINES[backend](work) if one.precision == precision)
            ask = [partial(engine.answer, 1, phrases) for phrases in COUNTS]
        forget_peak()  # building a model takes more than running it
        for phrases, run in zip(COUNTS, ask, strict=True):
            run()
            run()
            found[phrases] = peak_mb()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
