"""Verbs about data sets: what is in one, in another format, what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from epmvg.cli.screen import console, errors, say_skipped, table

if TYPE_CHECKING:
    from epmvg.data.validation import Diagnosis


def data_stats(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str, typer.Option(help="The row key that names the split.")] = "split",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count images, phrases and boxes by split, from the annotations alone."""
    from epmvg.data.stats import count_records

    counts = count_records(name, root=root, split_key=split_key)
    if as_json:
        print(json.dumps(counts))
        return
    rows = [
        {
            "split": split or "(none)",
            "images": f"{part['images']:,}",
            "phrases": f"{part['phrases']:,}",
            "boxes": f"{part['boxes']:,}",
            "words a phrase": f"{part['words']:.1f}",
            "longest": str(part["longest"]),
            "median box": "" if part["box_share"] is None else f"{part['box_share']:.1%} of its image",
        }
        for split, part in counts["splits"].items()
    ]
    table(name, rows)
    say_skipped(counts["skipped"], counts["first_skipped"])


def data_convert(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    to: Annotated[
        Path, typer.Option(help=".jsonl, .json (COCO), .odvg.jsonl, .parquet, .tar (several: x-%05d.tar) or a folder.")
    ],
    split: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    split_key: Annotated[str, typer.Option(help="The row key that names the split.")] = "split",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Turn any data set into JSONL, or into another format that can hold it."""
    from epmvg.data.convert import convert_data

    done = convert_data(name, to, split=split, root=root, split_key=split_key)
    if as_json:
        print(json.dumps(done))
        return
    console.print(f"{done['rows']:,} rows about {done['images']:,} images are in {to}", soft_wrap=True)
    _say_root(to, done["root"])
    if done["rotated"]:
        console.print(
            f"{done['rotated']:,} boxes were stated with a rotation: the upright boxes around them are written"
        )
    say_skipped(done["skipped"], done["first_skipped"])


def _say_root(target: Path, root: str) -> None:
    if Path(root) not in (target, target.parent):
        console.print(f"Image paths are relative to {root}: read it with --root {root}", soft_wrap=True)


def data_split(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    fractions: Annotated[str, typer.Argument(help="Of the images: train/val/test, for example 0.8/0.1/0.1.")],
    out: Annotated[Path, typer.Option(help="What to write; its ending means the format, as for `data convert`.")],
    by: Annotated[
        Literal["image"], typer.Option(help="What is dealt out: whole images; those that look the same stay together.")
    ] = "image",
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Deal images out to train, val and test, all rows of an image to one of them."""
    from epmvg.data.validation.splitting import split_data

    done = split_data(name, fractions, out, root=root)
    if as_json:
        print(json.dumps(done))
        return
    table(
        str(out),
        [{"split": split} | {key: f"{n:,}" for key, n in part.items()} for split, part in done["splits"].items()],
    )
    _say_root(out, done["root"])
    say_skipped(done["skipped"], done["first_skipped"])


def data_check(
    name: Annotated[str, typer.Argument(help="A data set's name, or a file or folder of rows.")],
    root: Annotated[str | None, typer.Option(help="Where the data lies.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Text file of image names, ids or paths that evaluation must not hold.")
    ] = None,
    write_clean: Annotated[
        Path | None, typer.Option(help="Write the rows without errors; its ending means the format.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with every row of a finding.")
    ] = False,
) -> None:
    """Say what is missing, broken, duplicated or leaked in a data set; exit status 3 if it cannot be used as it is."""
    from epmvg.core.progress import progress_bar
    from epmvg.data.validation import check

    with progress_bar(errors, "Examining") as progress:
        diagnosis = check(name, root=root, against=against, clean=write_clean, progress=progress)
    if as_json:
        print(json.dumps(diagnosis.as_dict()))
    else:
        _say_diagnosis(diagnosis)
        if write_clean is not None:
            console.print(f"{diagnosis.written:,} rows without errors are in {write_clean}", soft_wrap=True)
    raise typer.Exit(0 if diagnosis.usable else 3)


def _say_diagnosis(diagnosis: Diagnosis) -> None:
    seen = f"{diagnosis.rows:,} rows about {diagnosis.images:,} images, {diagnosis.seconds:.0f} s"
    if diagnosis.clean:
        console.print(f"{diagnosis.data}: nothing found in {seen}", soft_wrap=True)
    else:
        table(f"{diagnosis.data}: {seen}", diagnosis.table())
