"""Verbs that answer: phrases in a photo or many, behind HTTP, and how fast."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from epmvg.cli.screen import DEVICE, RUN, console, errors, is_first, table
from epmvg.types import InputError


class Form(StrEnum):
    json = "json"
    coco = "coco"
    label_studio = "label-studio"


def predict(
    run: Annotated[Path, typer.Argument(help=RUN)],
    image: Annotated[Path, typer.Argument(help="A photo; with --out a folder of photos or a JSONL file of rows.")],
    phrases: Annotated[
        list[str] | None, typer.Argument(help="What to find, one or several; a file's own phrases by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a row a phrase to this JSONL file; resumable.")] = None,
    root: Annotated[Path | None, typer.Option(help="What a JSONL file's image paths are relative to.")] = None,
    device: Annotated[str, typer.Option(help="Where the model computes, with --out: for example cuda.")] = "cpu",
    draw: Annotated[Path | None, typer.Option(help="Save the photo with the boxes drawn.")] = None,
    where: Annotated[Path | None, typer.Option(help="Save where the model looks, a photo a phrase.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Save what [REG] attends to, a photo a phrase.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    form: Annotated[Form | None, typer.Option("--format", help="Print JSON of this kind.")] = None,
    min_score: Annotated[
        str | None, typer.Option(help="Below it nothing counts as found; auto takes the calibrated threshold.")
    ] = None,
) -> None:
    """Find phrases in a photo, or in many."""
    if out is not None:
        _predict_many(run, image, phrases or [], out, root, device, as_json)
        return
    if image.is_dir() or image.suffix == ".jsonl":
        raise InputError(f"{image} holds many photos: give --out predictions.jsonl.")
    if not phrases:
        raise InputError(f"There is nothing to find in {image}: give one phrase or several.")
    from epmvg.data.photos import open_image
    from epmvg.draw import draw_boxes, draw_map, side_by_side
    from epmvg.predict import Predictor
    from epmvg.results import to_coco, to_label_studio

    picture = open_image(image)  # a wrong name is said before a model is loaded
    predictor = Predictor(run)
    found = predictor(picture, phrases, min_score=_score_bound(min_score))
    found.image = str(image)
    if draw is not None:
        _save_picture(found.draw(), draw)
    for file, look in ((where, predictor.where), (attention, predictor.attention)):
        if file is not None:
            maps = [draw_map(picture, values) for values in look(picture, phrases)]
            panels = [draw_boxes(each, [one.box], [one.phrase]) for each, one in zip(maps, found, strict=True)]
            _save_picture(side_by_side(panels), file)
    if form is not None or as_json:
        if form is Form.coco:
            print(json.dumps(to_coco([found])))
        elif form is Form.label_studio:
            print(json.dumps(to_label_studio([found])))
        else:
            print(json.dumps(found.to_dict()))
        return
    table(
        f"{image} ({picture.width} x {picture.height})",
        [
            {
                "phrase": one.phrase,
                "box (x0, y0, x1, y1)": ", ".join(f"{v:.1f}" for v in one.box) if one.found else "nothing found",
                "score": f"{one.score:.2f}",
            }
            for one in found
        ],
    )


def _score_bound(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]  # mypy does not narrow str to a literal
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--min-score {text} is no number: give one between 0 and 1, or auto.") from None


def _predict_many(
    run: Path, source: Path, phrases: list[str], out: Path, root: Path | None, device: str, as_json: bool
) -> None:
    from epmvg.bulk import predict_many
    from epmvg.terminal import counting

    with counting(errors, "Finding") as progress:
        counts = predict_many(run, source, out, phrases=phrases, root=root, device=device, progress=progress)
    if not is_first():
        return
    if as_json:
        print(json.dumps(counts))
        return
    console.print(f"{counts['rows']:,} rows ({counts['errors']:,} of them errors) in {out}", soft_wrap=True)


def _save_picture(picture: Any, file: Path) -> None:
    temporary = file.with_name(f".{file.name}")
    try:
        picture.save(temporary, format=picture.format or _format(file))
    except (OSError, KeyError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{file} cannot be written ({error}): check the folder, and end the name in .png or .jpg."
        ) from error
    temporary.replace(file)


def _format(file: Path) -> str:
    from PIL import Image

    known = Image.registered_extensions()
    if file.suffix.lower() not in known:
        raise ValueError(f"{file.suffix or 'no ending'} is not a picture format")
    return known[file.suffix.lower()]


def serve(
    run: Annotated[Path, typer.Argument(help=RUN)],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="EPMVG_TOKEN", help="Bearer token to ask for; better set as a variable.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Pictures inside at once; more are told to come back.")] = 64,
    upload_mb: Annotated[int, typer.Option(help="Largest request, MB.")] = 20,
    megapixels: Annotated[int, typer.Option(help="Largest picture, million pixels.")] = 50,
    seconds: Annotated[int, typer.Option(help="Longest wait for an answer.")] = 30,
    keep_alive: Annotated[
        int, typer.Option(help="Seconds a connection may stay idle; give more than the proxy in front.")
    ] = 90,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A further name in Host headers to answer to, on 127.0.0.1 without a token."),
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
) -> None:
    """Serve a run: an HTTP API, and a page to try it on."""
    try:
        from epmvg.serve.limits import Limits
        from epmvg.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        raise InputError(f"`epmvg serve` needs {error.name}: pip install 'epmvg[serve]'.") from error

    upload = upload_mb * 10**6
    limits = Limits(
        queue=queue,
        upload=upload,
        bodies=8 * upload,
        pixels=megapixels * 10**6,
        seconds=seconds,
        keep_alive=keep_alive,
    )
    run_server(run, host=host, port=port, limits=limits, token=token, device=device, allowed_hosts=allow_host or ())


def bench(
    preset: Annotated[
        list[str] | None, typer.Option(help="A model's name; again for several. All of paper size by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json, tables and a plot.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure speed and memory of presets against a plain re-creation of the published computation."""
    from epmvg.bench.page import tables, write_figures
    from epmvg.bench.suite import PRESETS
    from epmvg.bench.suite import bench as measure
    from epmvg.terminal import counting

    with counting(errors, "Measuring") as progress:
        found = measure(preset or PRESETS, quick=quick, progress=progress)
    if out is not None:
        write_figures(found, out)
    print(json.dumps(found) if as_json else tables(found))
