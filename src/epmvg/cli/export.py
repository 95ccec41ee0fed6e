"""Commands that write a model in another form: `convert`, `export` and `publish`."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from epmvg.cli.console import Root, Run, Split, console, error_console, print_table, reject_options
from epmvg.core.locate import locate


class Runtime(StrEnum):
    onnx = "onnx"
    openvino = "openvino"


def convert(
    file: Annotated[Path, typer.Argument(help="Published weights: a .pth, .safetensors or folder of transformers.")],
    kind: Annotated[str, typer.Option("--as", help="transvg, qrnet, detr, swin or imagenet.")],
    out: Annotated[Path, typer.Option(help="Folder of the student.")],
    model: Annotated[str | None, typer.Option(help="Name of a model; inferred from the weights by default.")] = None,
    bert: Annotated[str | None, typer.Option(help="BERT to start from: hub name or folder.")] = None,
) -> None:
    """Convert published weights to a folder that every other command reads."""
    from epmvg.models.convert import convert as convert_weights
    from epmvg.models.convert import write

    done = convert_weights(file, kind, model=model, bert=bert)
    write(done, out)
    rows: list[dict[str, Any]] = [{"parameters": "converted", "number": len(done.converted), "reason": ""}]
    for reason, count in Counter(done.ignored.values()).items():
        rows.append({"parameters": "ignored", "number": count, "reason": reason})
    if done.new:
        parts = ", ".join(sorted({name.removeprefix("visual_encoder.").split(".")[0] for name in done.new}))
        rows.append({"parameters": "new", "number": len(done.new), "reason": f"not in the file: {parts}"})
    print_table(f"{done.preset} in {out}", rows)


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write; it needs neither torch nor the run.")],
    kind: Annotated[Runtime, typer.Option("--format", help="Runtime of the exported model.")] = Runtime.onnx,
    int8: Annotated[
        str | None, typer.Option(metavar="DATA", help="Quantize, calibrated and evaluated on this data set or file.")
    ] = None,
    split: Split = None,
    root: Root = None,
) -> None:
    """Export a run for ONNX Runtime or OpenVINO, and check that its predictions are those of the run."""
    locate(run)  # a wrong name is rejected before torch is imported
    from epmvg.export import CalibrationData, export_run

    if int8 is None:
        reject_options("applies to --int8", split=split, root=root)
    data = None if int8 is None else CalibrationData(int8, split, root)
    export_run(run, out, format=kind.value, calibration_data=data, report=error_console.print)
    console.print(f"The export is in {out}")


def publish(
    run: Run,
    to: Annotated[Path, typer.Option(help="Folder to write.")],
    license: Annotated[str | None, typer.Option(help="License of the weights, for example apache-2.0.")] = None,
) -> None:
    """Write a run as a folder for the Hugging Face hub, with a model card."""
    locate(run)
    from epmvg.hub import save_pretrained

    folder = save_pretrained(run, to, license=license)
    console.print(f"Upload the model with: hf upload OWNER/NAME {folder}")
