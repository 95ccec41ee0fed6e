"""Peak memory of one runtime in a process of its own: `python -m reference.memory PRESET BACKEND PRECISION [FOLDER]`.

Backend `plain` is the re-creation; FOLDER holds an exported form, which is run without torch. Prints JSON: phrases
an image -> MB, imports and weights included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from epmvg.inference.runtimes.exported import ExportedRuntime
from reference.inputs import computed_in, predict_boxes

COUNTS = (1, 7)  # rising: a process's peak never falls


def peaks(preset: str, backend: str, precision: str, folder: Path | None = None) -> dict[int, int]:
    """Measure peak resident memory, MB, by phrases an image, imports included."""
    command = [sys.executable, "-m", "reference.memory", preset, backend, precision]
    command += [] if folder is None else [str(folder.resolve())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
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


def in_torch(preset: str, backend: str, precision: str) -> Callable[[int], object]:
    """Build the re-creation or a torch runtime: phrases of an image -> its boxes."""
    import torch

    from reference.work import Work, torch_runtimes

    work = Work(preset)
    if backend == "plain":
        plain = work.plain()
        work.student.to("meta")  # only its tokenizer is still used
        return torch.inference_mode()(partial(work.predict_plainly, plain))
    (runtime,) = (one for one in torch_runtimes(work, Path()) if one.precision == precision)
    work.student.to("meta")
    return partial(runtime.predict, 1)


def main() -> None:
    preset, backend, precision, *folders = sys.argv[1:]
    run: Callable[[int], object]
    if folders:
        run = partial(predict_boxes, ExportedRuntime(Path(folders[0]), precision=computed_in(precision)), 1)
    else:
        run = in_torch(preset, backend, precision)
    forget_peak()  # building a model takes more than running it
    found = {}
    for phrases in COUNTS:
        run(phrases)
        run(phrases)
        found[phrases] = peak_mb()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
