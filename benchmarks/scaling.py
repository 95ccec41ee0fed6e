"""Cost against size: phrases of an image from 1 to 64, and rows of a file from a thousand to a million.

    OMP_NUM_THREADS=2 python benchmarks/scaling.py [--preset mini] [--rows 1000000] [--json FILE] [--plot FILE.svg]

Phrases: time of one pass over one image and peak memory. Rows: time and peak memory of reading a JSONL file as a
stream of batches (`epmvg predict ... --out`) and of reading and planning an epoch of training up to its first batch.
No picture is opened.
Each size is measured in a process of its own, and printed when it is done. Processor seconds, of all threads together,
are the steadier figure on a machine shared with others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from epmvg.core.files import atomic_write
from epmvg.data.loader import GroundingLoader
from epmvg.data.registry import open_samples
from epmvg.inference.batch import batched
from epmvg.inference.sources import Sources
from reference import PHRASES
from reference.memory import forget_peak, peak_mb
from reference.timing import interleaved, wall_and_cpu
from reference.work import Work

COUNTS = (1, 2, 4, 8, 16, 32, 64)
A_PICTURE = 7  # rows of a picture, as in RefCOCO


def phrases_cost(preset: str, count: int, rounds: int = 5) -> dict[str, Any]:
    """Ask one image `count` phrases."""
    work = Work(preset)
    words = work.student.tokenize([PHRASES[i % len(PHRASES)] for i in range(count)])
    image_index = torch.zeros(count, dtype=torch.int64)
    forget_peak()
    run = partial(work.student, work.image, work.image_mask, *words, image_index)
    with torch.inference_mode():
        (spent,) = interleaved([partial(wall_and_cpu, run)], rounds)
    wall, cpu = np.median(spent, 0) * 1e3
    return {"phrases": count, "ms": round(wall, 2), "cpu_ms": round(cpu, 2), "peak_mb": peak_mb()}


def stream(file: Path) -> int:
    return sum(len(batch) for batch in batched(Sources([file]).queries(), 16))


def plan(file: Path) -> int:
    records = open_samples(str(file), split=None)
    nothing = torch.empty(0)
    GroundingLoader(records, lambda _: (nothing, nothing), image_size=256, shuffle=True).epoch_order(0)
    return len(records)


WAYS: dict[str, Callable[[Path], int]] = {"stream": stream, "plan": plan}


def rows_cost(way: str, count: int) -> dict[str, Any]:
    """Read a file of `count` rows that is written for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w") as out:
            for number in range(count):
                row: dict[str, Any] = {"image": f"{number // A_PICTURE}.jpg", "phrase": PHRASES[number % A_PICTURE]}
                row |= {"bbox": [10, 20, 30, 40], "id": number, "width": 640, "height": 480}
                out.write(json.dumps(row) + "\n")
        forget_peak()
        read: list[int] = []
        wall, cpu = wall_and_cpu(lambda: read.append(WAYS[way](file)))
        assert read == [count]
    return {"way": way, "rows": count, "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3), "peak_mb": peak_mb()}


def apart(*arguments: str) -> dict[str, Any]:
    """Measure one size in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout))


def draw(found: dict[str, Any], file: Path) -> None:
    """Draw processor time and peak memory against size; growth in proportion would follow the dashed lines."""
    rows = {way: [row for row in found["rows"] if row["way"] == way] for way in WAYS}
    panels = [
        (f"phrases of an image, {found['preset']}", "phrases", "cpu_ms", {"one pass": found["phrases"]}),
        ("rows of a file", "rows", "cpu_seconds", rows),
    ]
    with matplotlib.rc_context({"svg.hashsalt": "epmvg", "font.size": 9}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        for (upper, lower), (title, size, time_key, curves) in zip(figure.subplots(2, 2).T, panels, strict=True):
            for name, points in curves.items():
                sizes = np.array([point[size] for point in points])
                times = np.array([point[time_key] for point in points])
                upper.loglog(sizes, times, marker="o", markersize=3, label=name)
                upper.loglog(sizes, times[-1] * sizes / sizes[-1], color="#888888", linewidth=0.8, linestyle="--")
                lower.semilogx(sizes, [point["peak_mb"] for point in points], marker="o", markersize=3, label=name)
            upper.set(ylabel=f"processor {time_key.removeprefix('cpu_')}", title=title)
            lower.set(ylabel="peak MB", ylim=(0, None))
            upper.legend()
        with atomic_write(file) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the largest file")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", help="measure one size, phrases or a way of reading rows, and print it")
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    if arguments.one:
        one = phrases_cost(arguments.preset, arguments.count) if arguments.one == "phrases" else None
        print(json.dumps(one or rows_cost(arguments.one, arguments.count)))
        return
    sizes = [size for size in (10**3, 10**4, 10**5, 10**6) if size <= arguments.rows]
    found: dict[str, Any] = {"preset": arguments.preset, "threads": torch.get_num_threads()}
    found["phrases"] = [apart("--one", "phrases", "--count", str(n), "--preset", arguments.preset) for n in COUNTS]
    found["rows"] = [apart("--one", way, "--count", str(n)) for way in WAYS for n in sizes]
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plot:
        draw(found, arguments.plot)


if __name__ == "__main__":
    main()
