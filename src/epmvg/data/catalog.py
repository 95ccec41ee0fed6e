"""The data sets by name: how each is read, from where."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from epmvg.data.jsonl import Skipped, read_jsonl
from epmvg.types import InputError, Record


def cache_folder() -> Path:
    """Where drawn scenes and stored answers are kept: $EPMVG_CACHE, or epmvg in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EPMVG_CACHE") or Path(home) / "epmvg")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A named data set."""

    about: str
    default_root: Callable[[], Path | None]
    splits: tuple[str, ...]
    split_key: str = "split"
    file: str = "annotations.jsonl"


DATASETS: dict[str, DataSet] = {
    "scenes": DataSet(
        "drawn scenes with true phrases, drawn on first use",
        lambda: cache_folder() / "scenes",
        ("train", "val", "test", "open"),
    ),
    "flickr-mini": DataSet(
        "6,156 real photos of Flickr30k Entities and the RefCOCO family, as JSONL",
        lambda: None,
        ("train", "val", "test"),
        "mini_split",
    ),
}


def open_records(
    name: str,
    *,
    split: str | None,
    root: str | Path | None = None,
    split_key: str = "split",
    skipped: Skipped | None = None,
) -> list[Record]:
    """Read the records of a data set.

    Args:
        name: of `DATASETS`, or a JSONL file.
        split: which part; None reads all.
        root: the folder the set lies in, where it has no place of its own.
        split_key: the row key that names the split, for JSONL files.
        skipped: collects rows that cannot be used, instead of refusing them.

    Raises:
        InputError: unknown name, missing files, unusable rows.
    """
    if name.endswith(".jsonl"):
        return read_jsonl(name, split=split, split_key=split_key, skipped=skipped)
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"there are {', '.join(sorted(DATASETS))}, or give a .jsonl file."
        )
        raise InputError(f"There is no data set {name!r}: {hint}")
    known = DATASETS[name]
    folder = Path(root) if root else known.default_root()
    if folder is None:
        raise InputError(f"The data set {name} has to be pointed to: give its folder with data.root=FOLDER or --root.")
    if name == "scenes" and not (folder / known.file).exists():
        from epmvg.data.scenes import write_scenes

        write_scenes(folder)
    if not (folder / known.file).exists():
        raise InputError(f"{folder} holds no {known.file}: point data.root at the folder of {name}.")
    if split is not None and split not in known.splits:
        raise InputError(f"{name} has no split {split!r}: there are {', '.join(known.splits)}.")
    return read_jsonl(folder / known.file, split=split, split_key=known.split_key, skipped=skipped)
