"""Flickr30k Entities: phrases marked in Sentences/ID.txt, boxes of their chains in Annotations/ID.xml.

A phrase belongs to a coreference chain ("a girl", "she"), and a chain may have several boxes or none. As TransVG, ReSC
and the published counts have it, a phrase counts if its chain has a box, and the target is the union of several.
Boxes of the XML count pixels from 1, the last included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.files import first_there, inside, read_bytes, read_lines
from epmvg.data.readers.finder import ImageFinder
from epmvg.data.readers.jsonl import Skipped, each, refuse_empty, usable

FOLDERS = (".", "flickr30k_entities", "Flickr30k", "flickr30k", "data")
PHOTOS = ("flickr30k_images", "flickr30k-images", "Flickr30k/flickr30k_images", "images")
SPLITS = ("train", "val", "test")

_PIECE = re.compile(r"\[/EN#([^\s/\[\]]+)((?:/[^\s/\[\]]+)*) ([^\[\]]*)\]|(\S+)")


def read_flickr30k(
    root: Path | str,
    *,
    split: str | None = None,
    boxes: Literal["union", "all"] = "union",
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read Flickr30k Entities, one record a phrase that has a box.

    Args:
        root: holds Annotations/, Sentences/ and train.txt, val.txt, test.txt, itself or in one of `FOLDERS`.
        split: train, val or test; None reads all three.
        boxes: what a phrase with several boxes means: their union, or a record for each.
        skipped: counts rows that cannot be used, which otherwise raise.

    Raises:
        InputError: files are missing or torn.
    """
    root = Path(root)
    sentences = first_there([root / folder for folder in FOLDERS], ("Sentences",))
    if sentences is None:
        raise InputError(f"{root} holds no Sentences folder: give the folder annotations.zip was unpacked in.")
    base = sentences.parent
    photos = first_there((base, root), PHOTOS) or base / PHOTOS[0]
    find = ImageFinder(photos)
    records: list[Sample] = []
    for part in (split,) if split else SPLITS:
        for name in read_lines(base / f"{part}.txt"):
            made = each(f"{base / part}.txt, {name}", _records(base, find, name, part, boxes))
            records += usable((one if isinstance(one, tuple) else (where, one) for where, one in made), skipped)
    refuse_empty(records, f"{base} has no phrases of split {split or 'train, val or test'}: fetch them anew.", skipped)
    return records


def _records(base: Path, find: ImageFinder, name: str, split: str, boxes: str) -> Iterator[tuple[str, Sample]]:
    listed = f"{base / split}.txt"
    sentences = inside(base / "Sentences", f"{name}.txt", listed)
    size, chains = _read_chains(inside(base / "Annotations", f"{name}.xml", listed))
    image = find(f"{name}.jpg", listed)
    for number, sentence in enumerate(read_lines(sentences)):
        for chain, kinds, phrase, first in _phrases(sentence):
            found = chains.get(chain, [])
            if not found:
                continue
            where = f"{sentences} line {number + 1}"
            end = first + len(phrase.split())
            row_id = f"{name}#{number}:{first}-{end}/EN#{chain}"
            extra: dict[str, Any] = {"types": kinds, "chain": chain, "n_boxes": len(found)}
            if boxes == "all" or len(found) == 1:
                for place, box in enumerate(found):
                    one = row_id if len(found) == 1 else f"{row_id}/{place}"
                    yield where, Sample(image, phrase, box, split, one, size, dict(extra))
            else:
                x0, y0, x1, y1 = zip(*found, strict=True)
                extra["boxes"] = [[box[0], box[1], box[2] - box[0], box[3] - box[1]] for box in found]
                yield where, Sample(image, phrase, (min(x0), min(y0), max(x1), max(y1)), split, row_id, size, extra)


def _phrases(sentence: str) -> Iterator[tuple[str, list[str], str, int]]:
    """Yield chain, types, phrase and the number of its first word."""
    words = 0
    for chain, kinds, phrase, word in _PIECE.findall(sentence):
        if word:
            words += 1
        else:
            yield chain, kinds.split("/")[1:], phrase, words
            words += len(phrase.split())


def _read_chains(file: Path) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """Read the picture's size and the boxes of each chain."""
    try:
        tree = ElementTree.fromstring(read_bytes(file))
        size = _whole(tree, "size/width"), _whole(tree, "size/height")
        chains: dict[str, list[Box]] = {}
        for thing in tree.iter("object"):
            for corners in thing.iterfind("bndbox"):
                x0, y0, x1, y1 = (_whole(corners, side) for side in ("xmin", "ymin", "xmax", "ymax"))
                for chain in thing.iterfind("name"):
                    chains.setdefault(chain.text or "", []).append((x0 - 1.0, y0 - 1.0, float(x1), float(y1)))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is not an annotation in XML ({error}): fetch the file anew.") from error
    return size, chains


def _whole(tree: ElementTree.Element, path: str) -> int:
    """Return the whole number of 0 to 9 digits at a path."""
    text = (tree.findtext(path) or "").strip()
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise ValueError(f"{path} is {text[:20]!r}, not a number of pixels")
    return int(text)
