"""What runs a model for `Predictor`: torch, ONNX Runtime, OpenVINO or transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from epmvg.core.extras import optional_imports
from epmvg.core.locate import fetch, is_exported, is_run, is_transformers, own_folder
from epmvg.core.types import InputError
from epmvg.inference.runtimes.exported import ExportedRuntime
from epmvg.inference.runtimes.protocol import Runtime

if TYPE_CHECKING:
    from epmvg.models.grounder import Grounder


def open_runtime(
    run: Path | str | Grounder, *, device: str, precision: str, compile: bool, threads: int | None
) -> Runtime:
    """Open the runtime of a run, an exported folder or a model; arguments and errors as for `Predictor`.

    A folder that is both, such as `default`, runs its graphs unless the arguments need torch.
    """
    folder = fetch(run) if isinstance(run, Path | str) else None
    if isinstance(run, Path | str) and folder is not None and is_transformers(folder):
        if compile:
            raise InputError(f"{run}, a grounder of transformers, is not compiled. Omit compile.")
        with optional_imports(f"{run}, a grounder of transformers,", "zoo"):
            from epmvg.inference.runtimes.transformers_runtime import TransformersRuntime
        return TransformersRuntime(folder, results=own_folder(run), device=device, precision=precision, threads=threads)
    if folder is not None and is_exported(folder):
        needs_torch = device not in ("auto", "cpu") or compile or (precision == "bf16" and is_run(folder))
        if not needs_torch:
            return ExportedRuntime(folder, precision=precision, threads=threads)
        if not is_run(folder):
            raise InputError(f"{run} is an exported folder, which runs on the CPU. Omit device and compile.")

    with optional_imports(f"{run}, a trained run," if isinstance(run, Path | str) else "A model"):
        from epmvg.inference.runtimes.torch_runtime import TorchRuntime
        from epmvg.models.factory import load
        from epmvg.models.grounder import Grounder

    if not isinstance(run, Path | str | Grounder):
        raise TypeError(f"run must be a folder, the name of a model, or a model, not {type(run).__name__}.")
    model = copy.deepcopy(run) if isinstance(run, Grounder) else load(run)
    return TorchRuntime(model, device=device, precision=precision, compile=compile, threads=threads)
