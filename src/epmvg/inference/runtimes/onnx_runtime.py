"""Graphs of an exported folder in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from epmvg.inference.runtimes.exported import Graph


def open_graphs(files: list[Path], threads: int, bf16: bool) -> list[Graph]:
    """Open .onnx files -> a function of named arrays for each; `bf16` is not supported and must be False."""
    assert not bf16
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others

    def open_graph(file: Path) -> Graph:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)

    return [open_graph(file) for file in files]
