"""Engine and exported forms against the plain re-creation of TransVG, on the same weights in one run; prints JSON.

    OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 python benchmarks/export.py [--model transvg-r50] [--folders A B ...]

Forms take turns; each ratio is of medians. A folder is what `epmvg export` makes of the random
model that `--write RUN` saves. The yardstick has the published computation of ResNet models only.

    python benchmarks/export.py --lean FOLDER

times an exported folder in a process without torch: an image, a further phrase, and the memory resident.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.backends.exported import ExportedBackend
from epmvg.bench import PHRASES
from epmvg.data.views import canvas_of, evaluation_view, lay
from epmvg.predict import Backend, Predictor, tokenize


def picture(seed: int = 0) -> Image.Image:
    """Return smooth noise of 640 x 480."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)


def ask(backend: Backend, canvas: NDArray[np.float32], pad: NDArray[np.bool_], count: int) -> NDArray[np.float64]:
    """Encode an image and answer its first phrases, none of them remembered: boxes [P, 4]."""
    texts = getattr(backend, "_texts", None)  # of torch's backend
    if texts is not None:
        texts.kept.clear()
    tokens, token_pad = tokenize(backend, PHRASES[:count])
    box, _ = backend.answer(backend.encode(canvas, pad), pad, tokens, token_pad, np.zeros(count, np.int64))
    return box


def in_turn(rounds: int, forms: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Run every form in each round; medians of wall and processor seconds, the first round left out.

    On a machine shared with others processor seconds, of all threads together, are the steadier figure.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, run in forms.items():
            start = time.perf_counter(), time.process_time()
            run()
            if number:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {
        name: (statistics.median(wall for wall, _ in values), statistics.median(cpu for _, cpu in values))
        for name, values in times.items()
    }


def compare(model: str, folders: list[Path], rounds: int, phrases: list[int]) -> dict[str, Any]:
    """Time torch and exported forms of a model, and the yardstick where there is one."""
    import torch

    from epmvg.backends.eager import EagerBackend
    from epmvg.bench.work import Work

    work = Work(model)
    student = work.student
    view = evaluation_view(picture().size, student.canvas)
    laid, outside = canvas_of(lay(picture(), view), view)
    canvas, pad = laid[None], outside[None]
    backends: dict[str, Backend] = {}
    forms: dict[str, Callable[[int], NDArray[np.float64]]] = {}
    if model in ("transvg-r50", "transvg-r101"):
        plain = work.plain()
        work.image, work.pad = torch.from_numpy(canvas), torch.from_numpy(pad)

        @torch.inference_mode()
        def theirs(count: int) -> NDArray[np.float64]:
            return work.ask_plainly(plain, count).double().numpy()

        forms["plain"] = theirs
    for precision in ("fp32", "bf16"):
        backends[f"torch {precision}"] = EagerBackend(copy.deepcopy(student), precision=precision)
    for folder in folders:
        backends[folder.name] = ExportedBackend(folder)
        if "openvino" in folder.name and "int8" not in folder.name:
            backends[f"{folder.name} bf16"] = ExportedBackend(folder, precision="bf16")
    for name, backend in backends.items():
        forms[name] = partial(ask, backend, canvas, pad)
    yardstick = next(iter(forms))
    result: dict[str, Any] = {"model": model, "threads": torch.get_num_threads(), "yardstick": yardstick}
    result["rounds"], result["load"] = rounds, os.getloadavg()
    for count in phrases:
        answers: dict[str, NDArray[np.float64]] = {}

        def run(name: str, count: int = count, answers: dict[str, NDArray[np.float64]] = answers) -> None:
            answers[name] = forms[name](count)

        seconds = in_turn(rounds, {name: partial(run, name) for name in forms})
        result[f"phrases {count}"] = {
            name: {
                "ms": round(1000 * wall, 1),
                "cpu_ms": round(1000 * cpu, 1),
                "ratio": round(wall / seconds[yardstick][0], 3),
                "cpu_ratio": round(cpu / seconds[yardstick][1], 3),
                "phrases_per_s": round(count / wall, 2),
                "px": round(float(np.abs(answers[name] - answers[yardstick]).max()) * student.canvas, 4),
            }
            for name, (wall, cpu) in seconds.items()
        }
    return result


def lean(folder: Path, rounds: int) -> dict[str, Any]:
    """Time an exported folder as a user meets it: resizing, tokenising and boxes in pixels are in."""
    ground = Predictor(folder)
    new = iter([picture(seed) for seed in range(2 * rounds + 2)])  # pictures that it does not remember
    known = picture()
    seconds = in_turn(
        rounds,
        {
            "one": lambda: ground(next(new), PHRASES[0]),
            "seven": lambda: ground(next(new), PHRASES),
            "again": lambda: ground(known, PHRASES[0]),
        },
    )
    return {
        "folder": folder.name,
        "an_image_and_a_phrase": _ms(seconds["one"]),
        "a_further_phrase": {
            key: round((value - _ms(seconds["one"])[key]) / 6, 2) for key, value in _ms(seconds["seven"]).items()
        },
        "a_phrase_about_a_remembered_image": _ms(seconds["again"]),
        "resident_mb": resident(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "torch": "torch" in sys.modules,
        "load": os.getloadavg(),
    }


def _ms(seconds: tuple[float, float]) -> dict[str, float]:
    return {"ms": round(1000 * seconds[0], 1), "cpu_ms": round(1000 * seconds[1], 1)}


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
    parser.add_argument("--folders", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--phrases", type=int, nargs="*", default=[1, 7], help="about the image, up to 7")
    parser.add_argument("--lean", type=Path, help="only time this exported folder, without torch")
    parser.add_argument("--write", type=Path, help="only save the random model to export")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.model, arguments.write)
    elif arguments.lean:
        print(json.dumps(lean(arguments.lean, arguments.rounds)))
    else:
        print(json.dumps(compare(arguments.model, arguments.folders, arguments.rounds, arguments.phrases), indent=1))


if __name__ == "__main__":
    main()
