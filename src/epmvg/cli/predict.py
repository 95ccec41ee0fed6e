"""The verb `predict`: phrases in one image, printed, or in many, written to a file."""

from __future__ import annotations

import json
import math
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from epmvg.cli.screen import DEVICE, RUN, console, errors, refuse_options
from epmvg.core.types import InputError

if TYPE_CHECKING:
    from epmvg.inference.batch_output import OutputFormat
    from epmvg.inference.predictor import Predictor
    from epmvg.inference.results import Predictions

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells have it."""

Bound = float | Literal["auto"] | None


class Form(StrEnum):
    json = "json"
    coco = "coco"
    label_studio = "label-studio"


def predict(
    run: Annotated[Path, typer.Argument(help=RUN)],
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE [PHRASE]...",
            help="An image and phrases to find in it. With --out, SOURCE may be a folder, a quoted pattern or a JSONL "
            "file of rows, whose own phrases are the default. With --phrase, all of these are sources.",
        ),
    ],
    phrase: Annotated[
        list[str] | None, typer.Option("--phrase", "-p", help="A phrase to find; again for several.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write one row per phrase to this .jsonl file; resumable.", show_default=False)
    ] = None,
    root: Annotated[Path | None, typer.Option(help="What a JSONL file's image paths are relative to.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE)] = "auto",
    draw: Annotated[
        Path | None, typer.Option(help="Save the image with the boxes drawn; with --out, a folder for all images.")
    ] = None,
    where: Annotated[Path | None, typer.Option(help="Save where the model looks, one panel per phrase.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Save what [REG] attends to, one panel per phrase.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    form: Annotated[
        Form | None, typer.Option("--format", help="Print JSON of this kind; with --out, write it to that .json file.")
    ] = None,
    min_score: Annotated[
        str | None,
        typer.Option(help="Below this score, 0 to 1, nothing counts as found; auto takes the calibrated threshold."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="With --out: take every Nth image, from the Kth (0 to N-1) on.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files that --out and --draw name.")
    ] = False,
) -> None:
    """Find phrases in an image, or in many.

    Examples:

    epmvg predict default photo.jpg "the red apple" "a dog" --draw found.png

    epmvg predict runs/mine photos/ "a dog" --out found.jsonl

    epmvg predict runs/mine -p "a dog" -p "a man" "photos/*.jpg" more/ --out found.jsonl

    epmvg predict runs/mine rows.jsonl --out found.jsonl
    """
    sources, phrases = _sources_and_phrases(given, phrase)
    bound = _score_bound(min_score)
    if as_json and form is not None:
        raise InputError(f"--json and --format {form} are two outputs: give one of them.")
    if out is not None:
        refuse_options("applies to one image without --out", where=where, attention=attention)
        options: dict[str, Any] = {"root": root, "shard": _shard(shard), "draw": draw, "overwrite": overwrite}
        options |= {"form": _output_format(form), "min_score": bound, "device": device}
        _predict_many(run, sources, out, phrases, options, as_json)
        return
    refuse_options("applies to many images, with --out", root=root, shard=shard, overwrite=overwrite)
    image = _only_image(sources, phrases)
    maps = {"where": where, "attention": attention}
    found = _predict_one(run, image, phrases, bound, device, draw, maps)
    _print(found, Form.json if as_json else form)


def _sources_and_phrases(given: list[str], options: list[str] | None) -> tuple[list[str], list[str]]:
    """Tell sources from phrases, and write each phrase in one line.

    Raises:
        InputError: a phrase is empty, or an image file stands where a phrase should.
    """
    sources, phrases = (given, options) if options else (given[:1], given[1:])
    if not options:
        from epmvg.core.images import image_suffixes
        from epmvg.inference.sources import exists

        for text in phrases:
            if Path(text).suffix.lower() in image_suffixes() and exists(Path(text)):
                raise InputError(
                    f"{text} is a file where a phrase is expected: for several images write "
                    f'epmvg predict RUN --phrase "a dog" --out found.jsonl IMAGE IMAGE ...'
                )
    phrases = [" ".join(text.split()) for text in phrases]
    if "" in phrases:
        raise InputError("One of the phrases is empty: give words to find.")
    return sources, phrases


def _only_image(sources: list[str], phrases: list[str]) -> Path:
    """Return the image to predict in.

    Raises:
        InputError: there are several, or there is no phrase.
    """
    from epmvg.inference.sources import is_pattern, is_rows

    image = Path(sources[0])
    if len(sources) > 1 or is_pattern(sources[0]) or image.is_dir() or is_rows(image):
        raise InputError(f"{' '.join(sources[:2])} holds many images: give --out predictions.jsonl.")
    if not phrases:
        raise InputError(f"There is no phrase to find in {image}: give one or several after it.")
    return image


def _predict_one(
    run: Path,
    image: Path,
    phrases: list[str],
    bound: Bound,
    device: str,
    draw: Path | None,
    maps: dict[str, Path | None],
) -> Predictions:
    """Predict phrases in one image, and save the pictures that were asked for; all that can be is checked first."""
    from epmvg.core.files import check_not_input
    from epmvg.core.images import open_image
    from epmvg.core.locate import locate
    from epmvg.inference.draw import check_picture_name, draw_boxes, draw_map, save_picture, side_by_side
    from epmvg.inference.predictor import Predictor

    picture = open_image(image)
    for file in (draw, *maps.values()):
        if file is not None:
            check_not_input(file, image)
            check_picture_name(file)
    folder = locate(run)
    with errors.status(Text(f"Loading {run}")):
        predictor = Predictor(folder, device=device)
    _say_knows(run, predictor)
    found = predictor(picture, phrases, min_score=bound)
    found.image = str(image)
    if draw is not None:
        if not found.found:
            errors.print(f"Nothing was found: {draw} is the image without boxes.", soft_wrap=True)
        save_picture(found.draw(), draw)
    for kind, file in maps.items():
        if file is not None:
            values = getattr(predictor, kind)(picture, phrases)
            panels = [
                draw_boxes(draw_map(picture, one), [prediction.box], [prediction.phrase])
                for one, prediction in zip(values, found, strict=True)
            ]
            save_picture(side_by_side(panels), file)
    return found


def _print(found: Predictions, form: Form | None) -> None:
    from epmvg.inference.results import to_coco, to_label_studio

    if form is None:
        rows = [("score", "box (x0, y0, x1, y1)", "phrase")]
        for one in found:
            box = ", ".join(f"{value:.1f}" for value in one.box) if one.found else "nothing found"
            rows.append((f"{one.score:.2f}", box, one.phrase))
        width = max(len(box) for _, box, _ in rows)
        console.print(f"{found.image} ({found.size[0]} x {found.size[1]})", soft_wrap=True)
        for score, box, phrase in rows:
            console.print(f"{score:>5}  {box:<{width}}  {phrase}", soft_wrap=True)
    elif form is Form.json:
        print(json.dumps(found.to_dict()))
    else:
        print(json.dumps(to_coco([found]) if form is Form.coco else to_label_studio([found])))


def _predict_many(
    run: Path, sources: list[str], out: Path, phrases: list[str], options: dict[str, Any], as_json: bool
) -> None:
    from epmvg.core.progress import progress_bar
    from epmvg.inference.batch import predict_many

    try:
        with progress_bar(errors, "Finding") as progress:
            done = predict_many(
                run, sources, out, phrases=phrases, **options, progress=progress, loaded=partial(_say_knows, run)
            )
    except KeyboardInterrupt as stop:
        print(f"epmvg: {str(stop) or 'Stopped before the first row was finished.'}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    for message in done["messages"]:
        print(f"epmvg: {message}", file=sys.stderr)
    if done["errors"]:
        where = "; the rows have `error`" if out.suffix.lower() == ".jsonl" else "; they are not in the file"
        print(f"epmvg: {done['errors']:,} of {done['rows']:,} rows are errors{where}.", file=sys.stderr)
    if done["truncated"]:
        print(
            f"epmvg: {done['truncated']:,} phrases are longer than the model reads and were truncated.", file=sys.stderr
        )
    if done["unknown"]:
        print(f"epmvg: {done['unknown']:,} phrases hold no word that the model knows: not found.", file=sys.stderr)
    if done["skipped"]:
        print(f"epmvg: skipped: {done['skipped']}", file=sys.stderr)
    if as_json:
        print(json.dumps(done))
    else:
        kept = f", {done['kept']:,} of them from before" if done["kept"] else ""
        console.print(f"{done['rows']:,} rows ({done['errors']:,} of them errors{kept}) in {out}", soft_wrap=True)
    if done["errors"] == done["rows"]:
        raise typer.Exit(1)


def _say_knows(run: Path, predictor: Predictor) -> None:
    if predictor.domain:
        errors.print(f"note: {run} was trained to recognise {predictor.domain}.", soft_wrap=True)


def _output_format(form: Form | None) -> OutputFormat:
    if form is Form.json:
        raise InputError("--format json prints one image's predictions; --out writes JSON lines: leave --format out.")
    return "jsonl" if form is None else "coco" if form is Form.coco else "label-studio"


def _score_bound(text: str | None) -> Bound:
    if text is None or text == "auto":
        return None if text is None else "auto"
    try:
        bound = float(text)
    except ValueError:
        bound = math.nan
    if not 0 <= bound <= 1:
        raise InputError(f"--min-score {text} is no score: give a number between 0 and 1, or auto.")
    return bound


def _shard(text: str | None) -> tuple[int, int]:
    shard, _, shards = (text or "0/1").partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise InputError(f"--shard {text} is not K/N with K from 0 to N-1: give 0/4, 1/4, 2/4 and 3/4 for four parts.")
    return int(shard), int(shards)
