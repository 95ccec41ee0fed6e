"""Verbs that turn a model into another form: published weights into ours, ours into what others run."""

from __future__ import annotations

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from epmvg.cli.screen import RUN, console, errors, refuse_options, table
from epmvg.core.locate import locate
from epmvg.core.types import InputError


class Runtime(StrEnum):
    onnx = "onnx"
    openvino = "openvino"


def convert(
    file: Annotated[Path, typer.Argument(help="Published weights: .pth or .safetensors.")],
    kind: Annotated[str, typer.Option("--as", help="transvg, qrnet, detr, swin or imagenet.")],
    out: Annotated[Path, typer.Option(help="The student's folder.")],
    model: Annotated[str | None, typer.Option(help="A model's name; told from the weights by default.")] = None,
    bert: Annotated[str | None, typer.Option(help="A BERT to start from: hub name or folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn published weights into a folder that every other command reads."""
    from epmvg.models.convert import convert as turn
    from epmvg.models.convert import write

    done = turn(file, kind, model=model, bert=bert)
    write(done, out)
    if as_json:
        account = {"model": done.preset, "converted": done.converted, "ignored": done.ignored, "new": done.new}
        print(json.dumps(account | {"out": str(out)}))
        return
    reasons = Counter(done.ignored.values())
    rows = [{"parameters": "converted", "number": str(len(done.converted)), "why": ""}]
    rows += [{"parameters": "ignored", "number": str(count), "why": why} for why, count in reasons.items()]
    if done.new:
        rooms = ", ".join(sorted({name.split(".")[0] for name in done.new}))
        rows.append({"parameters": "new", "number": str(len(done.new)), "why": f"not in the file: {rooms}"})
    table(f"{done.preset} in {out}", rows)


def export(
    run: Annotated[Path, typer.Argument(help=RUN)],
    out: Annotated[Path, typer.Option(help="The folder to write; it needs neither torch nor the run.")],
    kind: Annotated[Runtime, typer.Option("--format", help="What will run it.")] = Runtime.onnx,
    int8: Annotated[
        str | None, typer.Option(metavar="DATA", help="Quantise, calibrated and scored on this data set or file.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of that data; all rows by default.")] = None,
    root: Annotated[str | None, typer.Option(help="Where that data lies.")] = None,
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="Write int8 even if it loses accuracy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export a run for ONNX Runtime or OpenVINO, after checking that it answers as the run does."""
    locate(run)  # a wrong name is named before torch is imported
    from epmvg.export import Photos, export_run

    if int8 is None:
        refuse_options("applies to --int8", split=split, root=root, accept_loss=accept_loss)
    done = export_run(
        run,
        out,
        kind=kind.value,
        photos=None if int8 is None else Photos(int8, split, root),
        accept_loss=accept_loss,
        say=lambda line: errors.print(line, soft_wrap=True),
    )
    if as_json:
        print(json.dumps(done | {"out": str(out)}))
    else:
        console.print(f"The export is in {out}", soft_wrap=True)


def publish(
    run: Annotated[Path, typer.Argument(help=RUN)],
    to: Annotated[Path | None, typer.Option(help="Write the hub's folder here.")] = None,
    hub: Annotated[str | None, typer.Option(help="Publish it as OWNER/NAME on the Hugging Face hub.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for example apache-2.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Only its owner sees a new one.")] = False,
) -> None:
    """Write a run as a folder for the Hugging Face hub with a model card, or publish it there."""
    locate(run)
    from epmvg.hub import push_to_hub, save_pretrained

    if (to is None) == (hub is None):
        raise InputError("Say where: give either --to FOLDER or --hub OWNER/NAME.")
    if hub is None:
        refuse_options("applies to --hub", private=private)
    how: dict[str, Any] = {"licence": licence}
    if to is not None:
        console.print(f"The model is in {save_pretrained(run, to, **how)}", soft_wrap=True)
    if hub is not None:
        address = push_to_hub(run, hub, private=private, **how)
        console.print(f"The model is at {address}", soft_wrap=True)
