"""Commands about data sets: `data stats`, `check`, `convert`, `split` and `compose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epmvg.cli.console import Data, Json, Root, Split, console, error_console, print_skipped, print_table

if TYPE_CHECKING:
    from epmvg.data.validation import CheckReport


def stats(name: Data, root: Root = None, as_json: Json = False) -> None:
    """Count images, phrases and boxes by split, from the annotations alone."""
    from epmvg.data.stats import count_samples

    counts = count_samples(name, root=root)
    if as_json:
        print(json.dumps(counts))
        return
    print_table(name, [{"split": split or "(none)"} | part for split, part in counts["splits"].items()])
    print_skipped(counts["skipped"], counts["first_skipped"])


def convert(
    name: Data,
    to: Annotated[Path, typer.Option(help=".jsonl, .json (COCO), .odvg.jsonl, .parquet or .tar.")],
    split: Split = None,
    root: Root = None,
    split_key: Annotated[str, typer.Option(help="Key of an annotation that names its split.")] = "split",
    as_json: Json = False,
) -> None:
    """Convert a data set to JSONL, or to another format that can hold it."""
    from epmvg.data.convert import convert_data

    done = convert_data(name, to, split=split, root=root, split_key=split_key)
    if as_json:
        print(json.dumps(done))
        return
    console.print(f"{done['samples']:,} phrases of {done['images']:,} images are in {to}")
    print_root(to, done["root"])
    print_skipped(done["skipped"], done["first_skipped"])


def split(
    name: Data,
    fractions: Annotated[str, typer.Argument(help="Fractions of images in train/val/test, as 0.8/0.1/0.1.")],
    out: Annotated[Path, typer.Option(help="File to write; its suffix is the format, as for `data convert`.")],
    root: Root = None,
) -> None:
    """Split a data set by image; images that look the same stay together."""
    from epmvg.data.split import split_data

    done = split_data(name, fractions, out, root=root)
    print_table(str(out), [{"split": name} | part for name, part in done["splits"].items()])
    print_root(out, done["root"])
    print_skipped(done["skipped"], done["first_skipped"])


def compose(
    root: Annotated[Path, typer.Argument(help="Folder of Flickr30k Entities.")],
    out: Annotated[Path, typer.Argument(help="File to write; its suffix is the format, as for `data convert`.")],
) -> None:
    """Write Flickr30k Entities with referring expressions composed from its sentences for the training images."""
    from epmvg.data.compose import compose_data

    counts = compose_data(root, out)
    print_table(str(out), [{"samples": name, "number": count} for name, count in counts.items()])
    print_root(out, str(root))


def check(
    name: Data,
    root: Root = None,
    against: Annotated[
        Path | None, typer.Option(help="Text file of image names, ids or paths that evaluation must not contain.")
    ] = None,
    write_clean: Annotated[
        Path | None, typer.Option(help="Write the annotations without errors; the suffix is the format.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report what is missing, broken, duplicated or leaked in a data set; exit status 3 if it is unusable."""
    from epmvg.core.progress import progress_bar
    from epmvg.data.validation import check as check_data

    with progress_bar(error_console, "Checking") as progress:
        result = check_data(name, root=root, against=against, clean=write_clean, progress=progress)
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        print_check(result)
        if write_clean is not None:
            console.print(f"{result.written:,} annotations without errors are in {write_clean}")
    raise typer.Exit(0 if result.usable else 3)


def print_check(result: CheckReport) -> None:
    """Print the issues of a data check as a table."""
    title = f"{result.data}: {result.samples:,} phrases of {result.images:,} images, {result.seconds:.0f} s"
    if result.clean:
        console.print(f"{title}: no issues")
    else:
        print_table(title, result.table())


def print_root(target: Path, root: str) -> None:
    """Print the folder that image paths in a file are relative to, unless it is the file's own."""
    if Path(root) not in (target, target.parent):
        console.print(f"Image paths are relative to {root}: read it with --root {root}")
