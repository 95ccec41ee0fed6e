"""An exported folder as a user runs it, in a process without torch; prints JSON.

    python benchmarks/export.py --model mini --write RUN        # a random model, for `epmvg export RUN --out FOLDER`
    OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 python benchmarks/export.py --lean FOLDER

Times an image and a phrase, a further phrase, and a phrase about a cached image, and reports the resident memory.
`benchmarks/against_plain.py` compares exported forms with torch and with a plain re-creation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.inference.predictor import Predictor
from reference import PHRASES
from reference.memory import peak_mb
from reference.timing import interleaved, wall_and_cpu


def random_image(seed: int = 0) -> Image.Image:
    """Return smooth noise of 640 x 480."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)


def lean(folder: Path, rounds: int) -> dict[str, Any]:
    """Time an exported folder as a user runs it: resizing, tokenising and boxes in pixels are in."""
    ground = Predictor(folder)
    new = iter([random_image(seed) for seed in range(2 * rounds + 2)])  # images that are not cached
    known = random_image()
    runs: list[Callable[[], object]] = [
        lambda: ground(next(new), PHRASES[0]),
        lambda: ground(next(new), PHRASES),
        lambda: ground(known, PHRASES[0]),
    ]
    one, seven, again = map(median_ms, interleaved([partial(wall_and_cpu, run) for run in runs], rounds))
    return {
        "folder": folder.name,
        "an_image_and_a_phrase": one,
        "a_further_phrase": {key: round((seven[key] - one[key]) / 6, 2) for key in one},
        "a_phrase_about_a_remembered_image": again,
        "resident_mb": resident(),
        "peak_mb": peak_mb(),
        "torch": "torch" in sys.modules,
        "load": os.getloadavg(),
    }


def median_ms(taken: list[NDArray[np.float64]]) -> dict[str, float]:
    wall, cpu = np.median(taken, 0) * 1000
    return {"ms": round(wall, 1), "cpu_ms": round(cpu, 1)}


def resident() -> int:
    """Return this process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


def write(model: str, run: Path) -> None:
    """Save the random model that every form is made of."""
    import torch

    from epmvg.models.factory import create_model, save

    torch.manual_seed(0)
    save(create_model(model), run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transvg-r50")
    parser.add_argument("--rounds", type=int, default=7)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lean", type=Path, help="time this exported folder")
    what.add_argument("--write", type=Path, help="save a random model to export")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.model, arguments.write)
    else:
        print(json.dumps(lean(arguments.lean, arguments.rounds)))


if __name__ == "__main__":
    main()
