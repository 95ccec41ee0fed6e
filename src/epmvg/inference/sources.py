"""Which phrases to query in which images: a stream read from image files, folders, glob patterns and JSONL files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from epmvg.core.images import image_suffixes
from epmvg.core.types import InputError
from epmvg.data.readers.fields import Annotation, require, short_repr
from epmvg.data.readers.files import byte_lines, path_inside
from epmvg.data.readers.jsonl import json_object

MAX_PHRASES = 64
"""Of one query; an image that is asked more comes in several."""

_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
"""Hold what systems make of a folder's images: resource forks, thumbnails."""

_LINK = "linked folder"
_INSTALL = {".heic": "pip install 'epmvg[heic]'", ".heif": "pip install 'epmvg[heic]'"}


@dataclass(frozen=True, slots=True)
class Query:
    """Phrases to query in one image, or the error of a row that cannot be queried, with what could be read of it."""

    image: Path | None  # None only with an error
    phrases: list[str]
    ids: list[str]  # of the rows that ask, "" where they have none
    error: str = ""


class Sources:
    """Images and phrases to query.

    Args:
        given: image files, folders (searched with their subfolders), glob patterns, or JSONL files with rows {"image",
            "phrase"} and perhaps "id".
        phrases: queried in every image; by default a JSONL file's own.
        root: what a JSONL file's image paths are relative to and stay in; by default its folder.
        shard: (K, N) takes every Nth image, from the Kth on.

    Attributes:
        files: the files and folders given, patterns expanded.
        base: the folder that all images lie in.
        skipped: how many files of each kind the folders hold that are no readable image; complete once all is read.

    Raises:
        InputError: a source does not exist, a pattern matches nothing, there is no phrase, or `root` has no use.
    """

    def __init__(
        self,
        given: Sequence[Path | str],
        phrases: Sequence[str] = (),
        *,
        root: Path | str | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.phrases, self.root, self.shard = list(phrases), Path(root) if root is not None else None, shard
        self.skipped: Counter[str] = Counter()
        self.files = [file for source in given for file in self._expanded(source)]
        rows = [file for file in self.files if is_rows(file)]
        images = [file for file in self.files if not is_rows(file)]
        if images and not phrases:
            raise InputError(f"{images[0]} has no phrases of its own: give the phrases to find.")
        if root is not None and not rows:
            raise InputError("--root applies to the image paths of a JSONL file, and no source is one: leave it out.")
        if self.root is not None and not self.root.is_dir():
            raise InputError(f"{self.root} is not a folder: give as --root the folder that the image paths start from.")
        folders = [self.root or file.parent for file in rows]
        folders += [file if file.is_dir() else file.parent for file in images]
        self.base = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100

    def queries(self) -> Iterator[Query]:
        """Read the queries of this shard as a stream; rows of one image that follow each other are one query.

        Raises:
            InputError: a source cannot be opened, or there is nothing to query.
        """
        shard, shards = self.shard
        number, image = -1, None
        for query in self._all():
            if query.image is None or query.image != image:
                number += 1
            image = query.image
            if number % shards == shard:
                yield query
        if number < 0:
            names = ", ".join(map(str, self.files))
            raise InputError(f"There is nothing to predict in {names}{self._because_skipped()}: give images.")

    def describe_skipped(self) -> str:
        """Name what was skipped, by kind: "2 .heic (pip install 'epmvg[heic]'), 1 without an ending", or ""."""
        named = []
        for kind, count in sorted(self.skipped.items()):
            named.append(f"{count} {kind}{'s' * (kind == _LINK and count > 1)}")
            if kind in _INSTALL:
                named[-1] += f" ({_INSTALL[kind]})"
        return ", ".join(named)

    def _expanded(self, source: Path | str) -> list[Path]:
        if not is_pattern(source):
            if not exists(Path(source)):
                raise InputError(f"{source} does not exist: check the path.")
            return [Path(source)]
        found = sorted(Path(name) for name in glob.glob(str(source), recursive=True))  # noqa: PTH207  absolute ones too
        kept = [file for file in found if file.is_dir() or is_rows(file) or self._is_image(file)]
        if not kept:
            raise InputError(f"No readable file matches {source}{self._because_skipped()}: check the pattern.")
        return kept

    def _is_image(self, file: Path) -> bool:
        """Return whether a file's ending is an image's; count it as skipped where it is not."""
        suffix = file.suffix.lower()
        if suffix not in image_suffixes():
            self.skipped[suffix or "without an ending"] += 1
        return suffix in image_suffixes()

    def _because_skipped(self) -> str:
        return f" (skipped: {self.describe_skipped()})" if self.skipped else ""

    def _all(self) -> Iterator[Query]:
        for file in self.files:
            if is_rows(file):
                yield from self._rows(file)
                continue
            for image in self._images(file) if file.is_dir() else (file,):
                yield from _cut(self._with_phrases(image))

    def _images(self, folder: Path) -> Iterator[Path]:
        """Walk a folder, a level at a time, in the order of names; hidden files and folders are left out."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder} cannot be listed ({error.strerror}): check its permissions.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            if entry.is_dir():
                if entry.is_symlink():  # which may lead back here
                    self.skipped[_LINK] += 1
                else:
                    yield from self._images(entry)
            elif self._is_image(entry):
                yield entry

    def _rows(self, file: Path) -> Iterator[Query]:
        base = self.root or file.parent
        rows = (self._query(line, where, base) for where, line in byte_lines(file))
        for _, same in groupby(rows, key=lambda query: (query.image, query.error)):
            if self.phrases:
                yield from _cut(next(same))
                continue
            while part := list(islice(same, MAX_PHRASES)):
                phrases, ids = [query.phrases[0] for query in part], [query.ids[0] for query in part]
                yield Query(part[0].image, phrases, ids, part[0].error)

    def _with_phrases(self, image: Path) -> Query:
        return Query(image, self.phrases, [""] * len(self.phrases))

    def _query(self, line: bytes, where: str, base: Path) -> Query:
        """Return what one row asks, or why it cannot be queried."""
        row: Annotation = {}
        image = None
        try:
            row = json_object(line, where)
            image = path_inside(base, require(row, "image", str, where), where)
            if self.phrases:
                return self._with_phrases(image)
            return Query(image, [require(row, "phrase", str, where)], [_id(row, where)])
        except InputError as error:
            phrase, name = (value if isinstance(value := row.get(key), str) else "" for key in ("phrase", "id"))
            return Query(image, [phrase], [name], str(error))


def is_rows(file: Path) -> bool:
    """Return whether a source is a JSONL file of rows."""
    return file.suffix.lower() == ".jsonl" and not file.is_dir()


def is_pattern(source: Path | str) -> bool:
    """Return whether a source is a glob pattern rather than the name of a file that exists."""
    return glob.has_magic(str(source)) and not exists(Path(source))


def exists(path: Path) -> bool:
    """Return whether a path exists; a text that can be no path does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _cut(query: Query) -> Iterator[Query]:
    for start in range(0, len(query.phrases), MAX_PHRASES):
        part = slice(start, start + MAX_PHRASES)
        yield Query(query.image, query.phrases[part], query.ids[part], query.error)


def _id(row: Annotation, where: str) -> str:
    value = row.get("id", "")
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and value.bit_length() > 99):
        raise InputError(f'{where}: "id" is {short_repr(value)}, it must be a text or a number; mend the row.')
    return str(value)
