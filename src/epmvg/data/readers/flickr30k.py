"""Flickr30k Entities: phrases marked in Sentences/ID.txt, boxes of their chains in Annotations/ID.xml.

A phrase belongs to a coreference chain ("a girl", "she"), and a chain may have several boxes or none. As in TransVG,
ReSC and the published counts, a phrase counts if its chain has a box, and the target is the union of several.
Boxes of the XML count pixels from 1, the last included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.annotations import Located
from epmvg.data.readers.fields import to_xywh, union_box
from epmvg.data.readers.files import first_existing, path_inside, read_bytes, read_text_lines
from epmvg.data.readers.image_finder import ImageFinder

FOLDERS = (".", "flickr30k_entities", "Flickr30k", "flickr30k", "data")
IMAGE_FOLDERS = ("flickr30k_images", "flickr30k-images", "Flickr30k/flickr30k_images", "images")
SPLITS = ("train", "val", "test")

_PART = re.compile(r"\[/EN#([^\s/\[\]]+)((?:/[^\s/\[\]]+)*) ([^\[\]]*)\]|(\S+)")


@dataclass(frozen=True, slots=True)
class Mention:
    """A marked phrase of a sentence."""

    chain: str
    types: tuple[str, ...]
    phrase: str


def read_flickr30k(root: Path, split: str | None) -> Located[Sample]:
    """Read Flickr30k Entities, one sample per phrase that has a box.

    Args:
        root: holds Annotations/, Sentences/ and train.txt, val.txt, test.txt, itself or in one of `FOLDERS`.
        split: train, val or test; None reads all three.

    Raises:
        InputError: files are missing or truncated.
    """
    sentences = first_existing([root / folder for folder in FOLDERS], ("Sentences",))
    if sentences is None:
        raise InputError(f"{root} holds no Sentences folder. Give the folder annotations.zip was unpacked in.")
    base = sentences.parent
    find = ImageFinder(first_existing((base, root), IMAGE_FOLDERS) or base / IMAGE_FOLDERS[0])
    for part in (split,) if split else SPLITS:
        listed = base / f"{part}.txt"
        for name in read_text_lines(listed):
            try:
                samples = list(_image_samples(base, find, name, part))
            except InputError as error:
                yield f"{listed}, {name}", error
                continue
            yield from samples


def _image_samples(base: Path, find: ImageFinder, name: str, split: str) -> Iterator[tuple[str, Sample]]:
    listed = f"{base / split}.txt"
    sentences = path_inside(base / "Sentences", f"{name}.txt", listed)
    size, chains = read_chains(path_inside(base / "Annotations", f"{name}.xml", listed))
    image = find(f"{name}.jpg", listed)
    for number, sentence in enumerate(read_text_lines(sentences)):
        location = f"{sentences} line {number + 1}"
        words = 0
        for part in parse_sentence(sentence):
            if isinstance(part, str):
                words += 1
                continue
            first, words = words, words + len(part.phrase.split())
            boxes = chains.get(part.chain, [])
            if boxes:
                extra: dict[str, Any] = {"types": list(part.types), "chain": part.chain, "n_boxes": len(boxes)}
                if len(boxes) > 1:
                    extra["boxes"] = [to_xywh(box) for box in boxes]
                phrase_id = f"{name}#{number}:{first}-{words}/EN#{part.chain}"
                yield location, Sample(image, part.phrase, union_box(boxes), split, phrase_id, size, extra)


def parse_sentence(line: str) -> Iterator[Mention | str]:
    """Yield the marked phrases and the other words of a line of Sentences/ID.txt, in order."""
    for chain, types, phrase, word in _PART.findall(line):
        yield word or Mention(chain, tuple(types.split("/")[1:]), phrase)


def read_chains(file: Path) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """Read the size (width, height) of an image and the boxes of each chain, xyxy in pixels, from an XML file."""
    content = read_bytes(file)
    try:
        tree = ElementTree.fromstring(content)
        size = _integer(tree, "size/width"), _integer(tree, "size/height")
        chains: dict[str, list[Box]] = {}
        for thing in tree.iter("object"):
            for corners in thing.iterfind("bndbox"):
                x0, y0, x1, y1 = (_integer(corners, side) for side in ("xmin", "ymin", "xmax", "ymax"))
                for chain in thing.iterfind("name"):
                    chains.setdefault(chain.text or "", []).append((x0 - 1.0, y0 - 1.0, float(x1), float(y1)))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{file} is not an annotation in XML ({error}). Download the file again.") from error
    return size, chains


def _integer(tree: ElementTree.Element, path: str) -> int:
    """Return the whole number of 1 to 9 digits at a path."""
    text = (tree.findtext(path) or "").strip()
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise ValueError(f"{path} is {text[:20]!r}, not a number of pixels")
    return int(text)
