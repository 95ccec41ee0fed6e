"""How near matrix work comes to the processor's matrix peak, by batch size, and where the other time goes (float32).

    OMP_NUM_THREADS=2 python benchmarks/peak.py [--preset mini] [--rounds 3] [--cpu] [--json FILE]

For every backend: GFLOP/s of a whole pass, by images and phrases of each, in turn with the peak, a product of large
matrices in torch; then the pass of the best size is profiled by kernel, which gives the share of time in convolutions,
matrix products and attention, and their GFLOP/s while they run. What a backend fuses into such a kernel (bias, ReLU,
addition) counts as its time. `--cpu` counts processor seconds, the steadier clock on a machine shared with others: give
it one thread, whose waiting for another it would not see.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray

from epmvg.inference.runtimes.exported import IMAGE, PHRASES, SUFFIX
from reference.inputs import noise
from reference.machine import SIDE, machine
from reference.suite import shares, where_time_goes
from reference.timing import interleaved, timer
from reference.work import TimedRuntime, Work, available_runtimes

SIZES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 7), (4, 7))
"""Images of a batch, and phrases of each."""

NODES = {
    "onnx": ("Conv", "MatMul", "Gemm", "Attention"),
    "openvino": ("Convolution", "FullyConnected", "MatMul", "ScaledDotProductAttention"),
}
"""Parts of the names of the runtimes' matrix nodes; torch's are `MATRIX_WORK`."""

Given = dict[str, NDArray[Any]]


def measure(preset: str, rounds: int, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Sweep the sizes for each backend in float32, then profile its best."""
    work = Work(preset)
    square = torch.randn(SIDE, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        runtimes = [one for one in available_runtimes(work, Path(folder), print) if one.precision == "fp32"]
        flops = {size: counted(work, *size) for size in SIZES}
        for runtime in runtimes:
            runs: list[Callable[[], object]] = [
                partial(torch.mm, square, square),
                *(partial(runtime.predict, *size) for size in SIZES),
            ]
            of_peak, *times = interleaved([timer(run, clock) for run in runs], rounds)
            peak = 2 * SIDE**3 / statistics.median(of_peak) / 1e9
            own = [flops[size][runtime.folder is not None] / 1e9 for size in SIZES]
            rates = [each / statistics.median(taken) for each, taken in zip(own, times, strict=True)]
            best = max(range(len(SIZES)), key=lambda number: rates[number])
            gone = (
                where_time_goes(runtime, *SIZES[best])
                if runtime.folder is None
                else profiled(runtime, work, *SIZES[best])
            )
            matrix = rates[best] / gone["share"]
            yield {
                "preset": preset,
                "backend": runtime.backend,
                "peak_gflops": round(peak, 1),
                "gflops_per_s": {f"{i} x {p}": round(rate, 1) for (i, p), rate in zip(SIZES, rates, strict=True)},
                "best": {"images_x_phrases": "{} x {}".format(*SIZES[best]), "gflop": round(own[best], 2)},
                "share_of_peak": round(rates[best] / peak, 3),
                "matrix_share_of_time": gone["share"],
                "matrix_gflops_per_s": round(matrix, 1),
                "matrix_share_of_peak": round(matrix / peak, 3),
                "rest_of_time": gone["rest"],
            }


def counted(work: Work, images: int, phrases: int) -> tuple[int, int]:
    """Count the operations of torch and of exported graphs, which carry the padded tokens that torch leaves out."""
    of_torch = work.flops(images, phrases)
    with patch("torch.compiler.is_exporting", lambda: True):
        return of_torch, work.flops(images, phrases)


def profiled(runtime: TimedRuntime, work: Work, images: int, phrases: int) -> dict[str, Any]:
    """Run an exported folder's graphs under the runtime's own profiler."""
    assert runtime.folder is not None
    files = [runtime.folder / f"{name}{SUFFIX[runtime.backend]}" for name in (IMAGE, PHRASES)]
    image, image_mask = (part.repeat(images, 0) for part in noise(work.student.image_size))
    tokens, token_mask = work.student.tokenize(["the woman in the tan jacket"] * (images * phrases))
    asked = {"image_mask": image_mask, "tokens": tokens.numpy(), "token_mask": token_mask.numpy()}
    asked["image_index"] = np.arange(images).repeat(phrases)
    spent: Counter[str] = Counter()
    run = in_onnxruntime if runtime.backend == "onnx" else in_openvino
    features, *_ = run(files[0], {"image": image, "image_mask": image_mask}, spent)
    run(files[1], {"features": features} | asked, spent)
    return shares(spent, NODES[runtime.backend])


def in_onnxruntime(file: Path, given: Given, spent: Counter[str]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = True, str(file.with_suffix(""))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = [session.run(None, given) for _ in range(3)][-1]
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["cat"] == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return outputs


def in_openvino(file: Path, given: Given, spent: Counter[str]) -> list[NDArray[Any]]:
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERF_COUNT": True}
    core = openvino.Core()
    model = core.compile_model(core.read_model(str(file)), "CPU", hints)
    request = model.create_infer_request()
    request.infer(given)
    request.infer(given)
    for node in request.profiling_info:
        spent[node.node_type] += node.real_time.total_seconds()
    return [request.get_tensor(port).data.copy() for port in model.outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", help="again for several; mini and transvg-r50 by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu else time.perf_counter
    found: dict[str, Any] = {"machine": machine(), "clock": clock.__name__, "rows": []}
    for preset in arguments.preset or ("mini", "transvg-r50"):
        for row in measure(preset, arguments.rounds, clock):
            found["rows"].append(row)
            print(json.dumps(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
