"""Graphs of an exported folder in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

from epmvg.inference.runtimes.exported import Graph


def open_graphs(files: list[Path], threads: int, bf16: bool) -> list[Graph]:
    """Open .xml files -> a function of named arrays for each."""
    core = openvino.Core()
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def open_graph(file: Path) -> Graph:
        model = core.compile_model(core.read_model(str(file)), "CPU", hints)

        def run(inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
            outputs = model(inputs)
            return [outputs[port] for port in model.outputs]

        return run

    return [open_graph(file) for file in files]
