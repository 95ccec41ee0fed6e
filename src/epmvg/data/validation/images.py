"""The images that rows name: each opened once, remembered by name, with the splits that ask about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from epmvg.core.hardware import cpu_threads
from epmvg.core.types import Box, InputError
from epmvg.data.conventions import Size, fits
from epmvg.data.readers.files import is_file, path_inside
from epmvg.data.readers.image_finder import ImageFinder
from epmvg.data.validation.findings import Example, Findings, legible
from epmvg.data.validation.image_digest import Photo, look
from epmvg.data.validation.rows import Entry


@dataclass(slots=True)
class Seen:
    """An image, as its rows and its file show it."""

    name: str
    file: Path | None  # None where the name is no path within the root
    where: str  # the first row that names it
    photo: Photo
    splits: int = 0  # bit i: split number i asks about it
    stated: Size | None = None  # the first stated size that is not the photo's
    turned: Turned | None = None  # kept where EXIF turns the photo on its side


@dataclass(slots=True)
class Turned:
    """Boxes of a photo that its EXIF tag turns: do they fit upright, or only as the pixels are stored?"""

    upright: int = 0
    stored: int = 0
    boxes: int = 0
    outside: list[Example] = field(default_factory=list)

    def add(self, box: Box, size: Size) -> None:
        self.boxes += 1
        self.upright += fits(box, size)
        self.stored += fits(box, (size[1], size[0]))


class Images:
    """Images by name. A context: leaving it stops the threads that open files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._find = ImageFinder(root)
        self.by_name: dict[str, Seen] = {}
        self._by_file: dict[str, Seen] = {}
        self._pool = ThreadPoolExecutor(cpu_threads())  # Pillow decodes without holding the interpreter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Seen]:
        """Yield each image once, however many names lead to it."""
        yield from self._by_file.values()

    def meet(self, entries: Sequence[Entry], found: Findings) -> None:
        """Open the images that are new among some rows."""
        fresh = []
        for entry in entries:
            if entry.image is None or entry.image in self.by_name:
                continue
            seen = self._place(entry, found)
            if seen is not None:
                fresh.append(seen)
        photos = self._pool.map(look, (seen.file for seen in fresh if seen.file is not None))
        for seen, photo in zip(fresh, photos, strict=True):
            seen.photo = photo
            seen.turned = Turned() if photo.turned else None

    def _place(self, entry: Entry, found: Findings) -> Seen | None:
        """Remember a name; return the image if its file has not been opened yet."""
        name = entry.image or ""
        try:
            file = entry.file or self._find(name, entry.where)
        except InputError:
            found.add("image-path", Example(entry.where, legible(name), legible(name)), unit="images")
            self.by_name[name] = Seen(name, None, entry.where, Photo())
            return None
        if entry.file is None and file != path_inside(self.root, name, entry.where) and is_file(file):
            example = Example(entry.where, legible(f"{file} is there", 300), legible(name))
            found.add("image-spelling", example, unit="images")
        known = self._by_file.get(str(file))
        if known is not None:
            self.by_name[name] = known
            return None
        seen = Seen(name, file, entry.where, Photo())
        self.by_name[name] = self._by_file[str(file)] = seen
        return seen


def judge_images(images: Iterable[Seen], splits: Sequence[str], found: Findings) -> None:
    """Note what is wrong with images, once all their rows are known."""
    images = list(images)
    missing = [seen for seen in images if seen.photo.fault == "image-missing"]
    bare = _bare_splits(images, missing, splits, found)
    for seen in images:
        name, photo = legible(seen.name), seen.photo
        if photo.fault and not (photo.fault == "image-missing" and seen.splits & ~bare == 0):
            found.add(photo.fault, Example(seen.where, legible(photo.why), name), unit="images")
        if photo.animated:
            found.add("image-animated", Example(seen.where, "", name), unit="images")
        if seen.file and (photo.fault or (seen.stated and photo.size) or (seen.turned and _drawn_unturned(seen))):
            found.bad_images.add(seen.file)
        if seen.turned and _drawn_unturned(seen):
            note = f"{seen.turned.stored} of {seen.turned.boxes} boxes fit unturned, {seen.turned.upright} upright"
            found.add("image-turned", Example(seen.where, note, name), unit="images")
            continue
        for example in seen.turned.outside if seen.turned else ():
            found.add("box-outside", example)
        if seen.stated and photo.size:
            note = f"stated {seen.stated[0]} x {seen.stated[1]}, is {photo.size[0]} x {photo.size[1]}"
            found.add("size-stated", Example(seen.where, note, name), unit="images")


def _bare_splits(images: Sequence[Seen], missing: Sequence[Seen], splits: Sequence[str], found: Findings) -> int:
    """Note splits of which no photo is there, and return their bits."""
    bare = 0
    for number, split in enumerate(splits):
        bit = 1 << number
        of, lost = (sum(bool(seen.splits & bit) for seen in some) for some in (images, missing))
        if of > 1 and of == lost:
            bare |= bit
            first = next(seen for seen in missing if seen.splits & bit)
            note = (
                f"{legible(split) or 'the file'}: none of {of:,} photos is there, the first {legible(str(first.file))}"
            )
            found.add("split-no-photos", Example(first.where, note), unit="splits")
    return bare


def _drawn_unturned(seen: Seen) -> bool:
    """Say whether the rows of a turned photo speak of its stored pixels."""
    turned, size = seen.turned, seen.photo.size
    if turned is None or size is None:
        return False
    states_stored = seen.stated == (size[1], size[0]) != size
    return states_stored or (turned.upright < turned.boxes and turned.stored == turned.boxes)
