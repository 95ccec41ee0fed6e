"""The data sets by name: how each is read, from where. Readers are imported when they are asked."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from epmvg.core.types import InputError, Sample
from epmvg.data.readers.files import is_file, is_folder
from epmvg.data.readers.jsonl import Skipped, read_jsonl, read_rows

Reader = Callable[[Path, str | None, Skipped | None], list[Sample]]
"""(root, split or None for all, skipped) -> records."""


def cache_folder() -> Path:
    """Return the folder of drawn scenes, unpacked tars and the like: $EPMVG_CACHE, or epmvg in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EPMVG_CACHE") or Path(home) / "epmvg")


def _scenes(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
    file = root / "annotations.jsonl"
    if not file.exists():
        if root != cache_folder() / "scenes" and not root.is_dir():
            raise InputError(f"{root} does not exist: make the folder to draw the scenes in it, or give no root.")
        from epmvg.data.synthetic.scenes import write_scenes

        write_scenes(root)
    return read_jsonl(file, split=split, skipped=skipped)


def _flickr_mini(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
    file = root / "annotations.jsonl"
    if not file.exists():
        raise InputError(f"{root} holds no {file.name}: point data.root at the folder of flickr-mini.")
    return read_jsonl(file, split=split, split_key="mini_split", skipped=skipped)


def _refcoco(name: str) -> Reader:
    def read(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
        from epmvg.data.readers.refcoco import read_refcoco

        return read_refcoco(root, name, split=split, skipped=skipped)

    return read


def _referit(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
    from epmvg.data.readers.referit import read_referit

    return read_referit(root, split=split, skipped=skipped)


def _flickr30k(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
    from epmvg.data.readers.flickr30k import read_flickr30k

    return read_flickr30k(root, split=split, skipped=skipped)


def _flickr30k_all(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
    from epmvg.data.readers.flickr30k import read_flickr30k

    return read_flickr30k(root, split=split, boxes="all", skipped=skipped)


def _transvg(flag: str) -> Reader:
    def read(root: Path, split: str | None, skipped: Skipped | None) -> list[Sample]:
        from epmvg.data.readers.transvg import read_transvg

        return read_transvg(root, flag, split=split, skipped=skipped)

    return read


@dataclass(frozen=True, slots=True)
class DataSet:
    """A named data set."""

    about: str
    splits: tuple[str, ...]
    read: Reader
    default_root: Callable[[], Path | None] = lambda: None


_COCO = ("train", "val", "trainval", "testA", "testB")
_PLAIN = ("train", "val", "test")
_MORE = ("train", "val", "trainval", "test")

DATASETS: dict[str, DataSet] = {
    "scenes": DataSet(
        "drawn scenes with true phrases, drawn on first use",
        ("train", "val", "test", "open"),
        _scenes,
        lambda: cache_folder() / "scenes",
    ),
    "flickr-mini": DataSet("real photos of Flickr30k Entities and the RefCOCO family, as JSONL", _PLAIN, _flickr_mini),
    "refcoco": DataSet("RefCOCO, split by UNC, from refer's refs(unc).p", _COCO, _refcoco("refcoco")),
    "refcoco+": DataSet("RefCOCO+, split by UNC, from refer's refs(unc).p", _COCO, _refcoco("refcoco+")),
    "refcocog-umd": DataSet("RefCOCOg, split by UMD, from refer's refs(umd).p", _MORE, _refcoco("refcocog-umd")),
    "refcocog-google": DataSet(
        "RefCOCOg, split by Google, from refer's refs(google).p",
        ("train", "val", "trainval"),
        _refcoco("refcocog-google"),
    ),
    "referit": DataSet("ReferItGame, from the Berkeley metadata", _MORE, _referit),
    "flickr30k": DataSet("Flickr30k Entities, several boxes of a phrase joined to one", _PLAIN, _flickr30k),
    "flickr30k-all": DataSet("Flickr30k Entities, a row for each box of a phrase", _PLAIN, _flickr30k_all),
    "transvg-unc": DataSet("RefCOCO, from TransVG's index files", _COCO, _transvg("unc")),
    "transvg-unc+": DataSet("RefCOCO+, from TransVG's index files", _COCO, _transvg("unc+")),
    "transvg-gref": DataSet(
        "RefCOCOg (Google), from TransVG's index files", ("train", "val", "trainval"), _transvg("gref")
    ),
    "transvg-gref_umd": DataSet("RefCOCOg (UMD), from TransVG's index files", _MORE, _transvg("gref_umd")),
    "transvg-referit": DataSet("ReferItGame, from TransVG's index files", _MORE, _transvg("referit")),
    "transvg-flickr": DataSet("Flickr30k Entities, from TransVG's index files", _PLAIN, _transvg("flickr")),
}


def open_samples(
    name: str,
    *,
    split: str | None,
    root: str | Path | None = None,
    split_key: str = "split",
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read the records of a data set.

    Args:
        name: of `DATASETS`, or a file or folder in one of the formats of docs/data.md.
        split: which part; None reads all.
        root: the folder the set lies in, where it has no place of its own; for a file, what its image paths are
            relative to, by default its folder.
        split_key: the row key that names the split, for files.
        skipped: collects rows that cannot be used, instead of refusing them.

    Raises:
        InputError: unknown name, missing files, unusable rows.
    """
    if name not in DATASETS:
        return _open_file(name, split, root, split_key, skipped)
    known = DATASETS[name]
    folder = Path(root) if root else known.default_root()
    if folder is None:
        raise InputError(f"The data set {name} has to be pointed to: give its folder with data.root=FOLDER or --root.")
    if split is not None and split not in known.splits:
        raise InputError(f"{name} has no split {split!r}: there are {', '.join(known.splits)}.")
    return known.read(folder, split, skipped)


def fraction_of(records: list[Sample], share: float) -> list[Sample]:
    """Return the records of about a `share` (0..1) of the pictures, chosen by their paths below their common folder."""
    if share == 1 or not records:
        return records
    names = {image: os.fspath(image) for image in {record.image for record in records}}
    top = len(os.path.commonpath([os.path.dirname(name) for name in names.values()]))  # noqa: PTH120  a path is slow

    def place(name: str) -> float:
        below = name[top:].replace(os.sep, "/").lstrip("/").encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(below, digest_size=8).digest()) / 2**64

    kept = {image for image, name in names.items() if place(name) < share}
    if not kept:
        raise InputError(f"data.fraction={share:g} leaves none of the pictures: give more.")
    return [record for record in records if record.image in kept]


def _open_file(
    name: str, split: str | None, root: str | Path | None, split_key: str, skipped: Skipped | None
) -> list[Sample]:
    from epmvg.data.readers.formats import READABLE, read_file
    from epmvg.data.readers.webdataset import tar_files, unpack, unpacked_rows

    if name.lower().endswith(".tar"):
        folder = unpack(tar_files(name), cache_folder() / "webdataset")
        return read_rows(unpacked_rows(folder), folder, name, split=split, split_key=split_key, skipped=skipped)
    if name.lower().endswith(READABLE) or is_folder(name):
        return read_file(Path(name), split=split, root=root, split_key=split_key, skipped=skipped)
    if is_file(name):
        raise InputError(f"{name} is a file of no known format: write it as one that ends in {', '.join(READABLE)}.")
    close = difflib.get_close_matches(name, DATASETS, n=1)
    known = ", ".join(sorted(DATASETS))
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"there are {known}, or give a file or folder ({', '.join(READABLE)})."
    )
    raise InputError(f"There is no data set {name!r}: {hint}")
