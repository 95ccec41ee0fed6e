"""The commands `predict`, phrases in one image or in many, and `label`, boxes of a model as training data."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from epmvg.cli.console import Device, Json, Run, console, error_console, reject_options, warn
from epmvg.cli.data import print_check, print_root
from epmvg.core.locate import DEFAULT
from epmvg.core.types import InputError

if TYPE_CHECKING:
    from epmvg.inference.results import Predictions

INTERRUPTED = 130
"""Exit status of shells for a command ended by Ctrl-C."""

MinScore = float | Literal["auto"] | None


class Format(StrEnum):
    coco = "coco"
    label_studio = "label-studio"
    yolo = "yolo"


def predict(
    run: Run,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE [PHRASE]...",
            help="An image and phrases to find. With --out, IMAGE may be a folder, a quoted pattern or a JSONL file, "
            "whose own phrases are the default. With --phrase, all of these are images.",
        ),
    ],
    phrase: Annotated[list[str] | None, typer.Option("--phrase", "-p", help="Phrase to find; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write one row per phrase to this .jsonl file; resumable.")] = None,
    device: Device = "auto",
    draw: Annotated[Path | None, typer.Option(help="Image file with the boxes drawn; with --out a folder.")] = None,
    heatmap: Annotated[Path | None, typer.Option(help="Image file with the heatmap of each phrase.")] = None,
    as_json: Json = False,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Print this kind of JSON; with --out, write a .json file, or a folder for yolo."),
    ] = None,
    min_score: Annotated[
        str | None, typer.Option(help="Confidence from which a phrase counts as found: 0 to 1, or auto (calibrated).")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Boxes of each phrase, as `candidates` with confidences.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="With --out: every Nth image from the Kth (0 to N-1) on.")
    ] = None,
) -> None:
    """Find phrases in an image, or in many.

    Examples:

    epmvg predict default photo.jpg "the red apple" "a dog" --draw found.png

    epmvg predict runs/mine photos/ "a dog" --out found.jsonl

    epmvg predict runs/mine -p "a dog" -p "a man" "photos/*.jpg" more/ --out found.jsonl

    epmvg predict runs/mine rows.jsonl --out found.jsonl
    """
    sources, phrases = _sources_and_phrases(inputs, phrase)
    threshold = _parse_min_score(min_score)
    if as_json and form is not None:
        raise InputError(f"--json and --format {form} are two outputs. Give one of them.")
    if form is not None and top_k > 1:
        raise InputError(f"--format {form} has one box per phrase. Omit --top-k, or give --json or a .jsonl file.")
    if out is None:
        reject_options("applies to many images, with --out", shard=shard)
        if form is Format.yolo:
            raise InputError("--format yolo writes a folder. Give its name with --out.")
        image = _single_image(sources, phrases)
        printing = partial(_print, form=form, as_json=as_json)
        _predict_image(run, image, phrases, device, draw, heatmap, printing, min_score=threshold, top_k=top_k)
        return
    reject_options("applies to one image, without --out", heatmap=heatmap)
    options = {
        "form": "jsonl" if form is None else form.value,
        "min_score": threshold,
        "top_k": top_k,
        "device": device,
    }
    _predict_many(run, sources, out, as_json, phrases=phrases, shard=_parse_shard(shard), draw=draw, **options)


def label(
    images: Annotated[Path, typer.Argument(help="Folder that the image names in FILE are relative to.")],
    models: Annotated[
        list[Path], typer.Option("--with", help="Model, as for `predict`; a second one has to agree (IoU 0.5).")
    ],
    out: Annotated[Path, typer.Option(help="Write the samples to this .jsonl file; resumable.")],
    phrases: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL or CSV of image and phrase, the phrases to label.")
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSONL or CSV of image and caption, whose noun phrases to label."),
    ] = None,
    min_score: Annotated[
        str,
        typer.Option(
            help="Lowest confidence that is kept: 0 to 1, or auto (the calibrated threshold; without one, the lowest "
            "quarter is dropped)."
        ),
    ] = "auto",
) -> None:
    """Label images with a model, and check the result: training data for a smaller model.

    Examples:

    epmvg label photos/ --captions captions.csv --with hf:IDEA-Research/grounding-dino-base --out my.jsonl

    epmvg label photos/ --phrases phrases.jsonl --with runs/large --with hf:google/owlv2-base-patch16 --out my.jsonl
    """
    from epmvg.core.progress import progress_bar
    from epmvg.data.validation import check
    from epmvg.inference.labels import label_images

    options: dict[str, Any] = {"phrases": phrases, "captions": captions, "min_score": _parse_min_score(min_score)}
    with _interruptible(), progress_bar(error_console, "Labeling") as progress:
        done = label_images(images, out, models, progress=progress, **options)
    with progress_bar(error_console, "Checking") as progress:
        result = check(str(out), root=done["root"], progress=progress)
    print_check(result)
    dropped = [f"{count:,} {reason}" for reason, count in done["dropped"].items()]
    weights = "their calibrated confidence" if done["is_weighted"] else "1 each, as the model is not calibrated"
    console.print(
        f"{out}: {done['kept']:,} of {done['labeled']:,} boxes in {done['images']:,} images. "
        f"Dropped: {', '.join(dropped) or 'none'}. Weights in training: {weights}."
    )
    if done["first_error"]:
        warn(done["first_error"])
    print_root(out, done["root"])
    raise typer.Exit(0 if result.usable else 3)


def _sources_and_phrases(inputs: list[str], options: list[str] | None) -> tuple[list[str], list[str]]:
    """Return sources and phrases, each phrase on one line.

    Raises:
        InputError: a phrase is empty, or an image file is given as a phrase.
    """
    from epmvg.core.images import image_suffixes
    from epmvg.inference.sources import exists

    sources, phrases = (inputs, options) if options else (inputs[:1], inputs[1:])
    for text in () if options else phrases:
        if Path(text).suffix.lower() in image_suffixes() and exists(Path(text)):
            usage = 'epmvg predict RUN --phrase "a dog" --out found.jsonl IMAGE IMAGE ...'
            raise InputError(f"{text} is an image where a phrase is expected. For several images write {usage}")
    phrases = [" ".join(text.split()) for text in phrases]
    if "" in phrases:
        raise InputError("One of the phrases is empty. Give words to find.")
    return sources, phrases


def _single_image(sources: list[str], phrases: list[str]) -> Path:
    """Return the image to predict in.

    Raises:
        InputError: there are several, it is no path, or there is no phrase.
    """
    from epmvg.core.images import image_path
    from epmvg.inference.sources import is_jsonl, is_pattern

    image = image_path(sources[0])
    if len(sources) > 1 or is_pattern(sources[0]) or image.is_dir() or is_jsonl(image):
        raise InputError(f"{' '.join(sources[:2])} are many images. Give --out predictions.jsonl.")
    if not phrases:
        raise InputError("No phrase given. Usage: epmvg predict RUN IMAGE PHRASE...")
    return image


def _predict_image(
    run: Path,
    image: Path,
    phrases: list[str],
    device: str,
    draw: Path | None,
    heatmap: Path | None,
    printing: Callable[[Predictions], None],
    **options: Any,
) -> None:
    """Predict phrases in one image, print them and write the requested image files; what can fail comes first."""
    from epmvg.core.files import check_not_input
    from epmvg.core.images import open_image
    from epmvg.core.locate import locate
    from epmvg.inference.draw import check_image_name, concatenate_images, draw_boxes, draw_heatmap, save_image
    from epmvg.inference.predictor import Predictor

    pixels = open_image(image)
    if draw is not None and heatmap is not None and draw.resolve() == heatmap.resolve():
        raise InputError(f"--draw and --heatmap are both {draw}. Give two files.")
    for file in [file for file in (draw, heatmap) if file is not None]:
        check_not_input(file, image)
        check_image_name(file)
    locate(run)
    with error_console.status("Loading"):
        predictor = Predictor(run, device=device)
    _print_domain(run, predictor.domain)
    predictions = predictor(pixels, phrases, **options)
    predictions.name = str(image)
    drawings = {}
    if heatmap is not None:
        values = zip(predictor.maps("heatmap", pixels, phrases), predictions, strict=True)
        panels = [draw_boxes(draw_heatmap(pixels, map_), [each.box], [each.phrase]) for map_, each in values]
        drawings[heatmap] = concatenate_images(panels)
    if draw is not None:
        drawings[draw] = predictions.draw()
        if not predictions.found:
            error_console.print(f"Nothing was found: {draw} is the image without boxes.")
    printing(predictions)
    for file, drawn in drawings.items():
        save_image(drawn, file)


def _print(predictions: Predictions, form: Format | None, as_json: bool) -> None:
    from epmvg.inference.results import to_coco, to_label_studio

    if as_json:
        print(json.dumps(predictions.to_dict()))
        return
    if form is not None:
        print(json.dumps(to_coco([predictions]) if form is Format.coco else to_label_studio([predictions])))
        return
    console.print(f"{predictions.name} ({predictions.size[0]} x {predictions.size[1]})")
    console.print(f"score  {'box (x0, y0, x1, y1)':<28}  phrase")
    for each in predictions:
        for one in each.candidates or (each,):
            box = ", ".join(f"{value:.1f}" for value in one.box) if each.found else "not found"
            console.print(f"{one.score:>5.2f}  {box:<28}  {each.phrase}")
            if not each.found:
                break


def _predict_many(run: Path, sources: list[str], out: Path, as_json: bool, **options: Any) -> None:
    from epmvg.core.progress import progress_bar
    from epmvg.inference.batch import predict_many

    with _interruptible(), progress_bar(error_console, "Predicting") as progress:
        done = predict_many(run, sources, out, progress=progress, **options)
    _print_domain(run, done["domain"])
    counts = {
        "errors": "predictions failed",
        "truncated": "phrases were truncated",
        "unknown": "phrases have no known word",
    }
    counted = [f"{done[key]:,} of {done['rows']:,} {text}." for key, text in counts.items() if done[key]]
    skipped = [f"skipped: {done['skipped']}"] if done["skipped"] else []
    for message in [*done["messages"], *counted, *skipped]:
        warn(message)
    if as_json:
        print(json.dumps(done))
    else:
        kept = f", {done['kept']:,} of them from before" if done["kept"] else ""
        console.print(f"{done['rows']:,} rows ({done['errors']:,} of them errors{kept}) in {out}")
        if done["root"] is not None:
            print_root(out, done["root"])
    if done["errors"] == done["rows"]:
        raise typer.Exit(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """After Ctrl-C print what is kept, and exit."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(str(stop) or "Stopped before the first row was finished.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _print_domain(run: Path, domain: str | None) -> None:
    if domain and str(run) != DEFAULT:
        error_console.print(f"note: {run} was trained on {domain}.")


def _parse_min_score(text: str | None) -> MinScore:
    if text is None or text == "auto":
        return None if text is None else "auto"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"--min-score is {text}. Give a number from 0 to 1, or auto.")
    return value


def _parse_shard(text: str | None) -> tuple[int, int]:
    shard, _, shards = (text or "0/1").partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise InputError(f"--shard {text} is not K/N with K from 0 to N-1. Give 0/4, 1/4, 2/4 and 3/4 for four parts.")
    return int(shard), int(shards)
