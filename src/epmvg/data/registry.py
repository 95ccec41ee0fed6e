"""Data sets by name, each with its reader and splits, and files and folders by their path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from epmvg.core.types import WHOLE_IMAGE, InputError, Sample, did_you_mean
from epmvg.data.readers.annotations import Located, Skipped, collect
from epmvg.data.readers.files import cache_folder, is_file, is_folder
from epmvg.data.readers.flickr30k import read_flickr30k
from epmvg.data.readers.formats import READABLE, file_samples
from epmvg.data.readers.refcoco import LAYOUT, read_refcoco
from epmvg.data.readers.referit import read_referit
from epmvg.data.readers.texts import read_texts
from epmvg.data.readers.transvg import FLAGS, read_transvg


def _read_scenes(root: Path, split: str | None) -> Located[Sample]:
    if not (root / "annotations.jsonl").exists():
        from epmvg.data.synthetic.scenes import write_scenes

        write_scenes(root)
    return file_samples(root, split=split)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A named data set."""

    about: str
    splits: tuple[str, ...]
    read: Callable[[Path, str | None], Located[Sample]]  # (root, split or None for all)
    default_root: Callable[[], Path | None] = lambda: None


DATASETS: dict[str, DataSet] = {
    "scenes": DataSet(
        "drawn scenes with true phrases, drawn on first use",
        ("train", "val", "test", "open"),
        _read_scenes,
        lambda: cache_folder() / "scenes",
    ),
    "flickr-mini": DataSet(
        "real photos of Flickr30k Entities and the RefCOCO family, as JSONL",
        ("train", "val", "test"),
        lambda root, split: file_samples(root, split=split, split_key="mini_split"),
    ),
    **{
        name: DataSet(f"{folder}, from refer's refs({by}).p", splits, partial(read_refcoco, name=name))
        for name, (folder, by, splits) in LAYOUT.items()
    },
    "referit": DataSet("ReferItGame, from the Berkeley metadata", ("train", "val", "trainval", "test"), read_referit),
    "flickr30k": DataSet("Flickr30k Entities, the union of a phrase's boxes", ("train", "val", "test"), read_flickr30k),
    **{
        f"transvg-{flag}": DataSet(f"{title}, from TransVG's index files", splits, partial(read_transvg, flag=flag))
        for flag, (title, splits) in FLAGS.items()
    },
}


def open_samples(
    name: str,
    *,
    split: str | None,
    root: str | Path | None = None,
    split_key: str = "split",
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read the samples of a data set.

    Args:
        name: of `DATASETS`, or a file or folder in one of the formats of docs/data.md.
        split: which part; None reads all.
        root: the folder the set lies in, where it has no default; for a file, what its image paths are relative to,
            by default its folder.
        split_key: the key of an annotation that names the split, for files.
        skipped: collects annotations that cannot be used, which otherwise raise.

    Raises:
        InputError: unknown name, missing files, unusable annotations, or none of the split.
    """
    samples = collect(located_samples(name, split=split, root=root, split_key=split_key), skipped)
    if not samples:
        reasons = [str(skipped)] if skipped and skipped.counts else []
        if split is not None:
            reasons.append(_known_splits(located_samples(name, root=root, split_key=split_key)))
        of_split = f" of split {split!r}" if split else ""
        raise InputError(f"{name} has no usable annotations{of_split}: {'; '.join(reasons) or 'check its files'}.")
    return samples


def _known_splits(samples: Located[Sample]) -> str:
    known = sorted({sample.split for _, sample in samples if isinstance(sample, Sample)} - {""})
    return f"there are {', '.join(known)}" if known else "none names a split (`epmvg data split` adds them)"


def located_samples(
    name: str, *, split: str | None = None, root: str | Path | None = None, split_key: str = "split"
) -> Located[Sample]:
    """Read the samples of a data set with their locations, errors and unusable boxes and phrases included.

    Args:
        name, split, root, split_key: as for `open_samples`.

    Raises:
        InputError: unknown name or missing files.
    """
    if name not in DATASETS:
        if not (is_file(name) or is_folder(name) or name.lower().endswith(READABLE)):
            known = f"{did_you_mean(name, DATASETS)} Or give a file or folder ({', '.join(READABLE)})."
            raise InputError(f"There is no data set {name!r}. {known}")
        return file_samples(name, split=split, root=root, split_key=split_key)
    dataset = DATASETS[name]
    folder = Path(root) if root else dataset.default_root()
    if root and not is_folder(root):
        raise InputError(f"{root} is not a folder. Give the folder of {name} with data.root=FOLDER or --root.")
    if folder is None:
        raise InputError(f"The data set {name} has no default folder. Give its folder with data.root=FOLDER or --root.")
    if split is not None and split not in dataset.splits:
        raise InputError(f"{name} has no split {split!r}. Give one of {', '.join(dataset.splits)}.")
    return dataset.read(folder, split)


def open_unlabeled(file: str | Path, split: str) -> list[Sample]:
    """Read images with phrases and no boxes, as samples of weight 0; lines that state another split are left out.

    Raises:
        InputError: the file cannot be read, a line lacks image or phrase, or none is of the split.
    """
    file = Path(file)
    texts = read_texts(file, "phrase", file.parent, split=split)
    samples = [
        Sample(image, phrase, WHOLE_IMAGE, split=split, weight=0.0)
        for image, phrases in texts.items()
        for phrase in phrases
    ]
    if not samples:
        raise InputError(f"{file} has no phrases of the split {split}. Check distill.unlabeled.")
    return samples


def fraction_of(samples: list[Sample], fraction: float) -> list[Sample]:
    """Return the samples of about a `fraction` (0..1) of the images, chosen by their paths below their common folder.

    Raises:
        InputError: none is left.
    """
    if fraction == 1 or not samples:
        return samples
    names = {image: os.fspath(image) for image in {sample.image for sample in samples}}
    top = len(os.path.commonpath([os.path.dirname(name) for name in names.values()]))  # noqa: PTH120  a path is slow

    def position(name: str) -> float:
        below = name[top:].replace(os.sep, "/").lstrip("/").encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(below, digest_size=8).digest()) / 2**64

    kept = {image for image, name in names.items() if position(name) < fraction}
    if not kept:
        raise InputError(f"data.fraction={fraction:g} leaves none of the images. Give a larger one.")
    return [sample for sample in samples if sample.image in kept]
