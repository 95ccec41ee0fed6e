"""Queries of bulk prediction, streamed from images, folders, glob patterns and JSONL files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral
from pathlib import Path

from epmvg.core.images import image_path, image_suffixes
from epmvg.core.types import InputError
from epmvg.data.readers.annotations import phrase_error
from epmvg.data.readers.fields import Annotation, require, short_repr
from epmvg.data.readers.files import byte_lines, path_inside
from epmvg.data.readers.jsonl import json_object

_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
"""Written by operating systems beside images: resource forks, thumbnails."""

_LINKED = "linked folder"

_MOVE = "Move the JSONL file to a folder that holds its images"


@dataclass(frozen=True, slots=True)
class Query:
    """A phrase in an image, or the error of a line that cannot be predicted, with what could be read of it."""

    image: Path | None  # None only with an error
    phrase: str
    id: str = ""
    error: str = ""

    @classmethod
    def checked(cls, image: Path, phrase: str, name: str = "") -> Query:
        """Return a query, with an error if the phrase cannot be used."""
        fault = phrase_error(phrase)
        return cls(image, phrase, name, f"The phrase {phrase[:40]!r} cannot be used: {fault}." if fault else "")


class Sources:
    """Images and phrases to predict.

    Args:
        paths: image files, folders (searched recursively), glob patterns, or JSONL files with lines {"image", "phrase"}
            and optionally "id".
        phrases: for every image; by default those of the JSONL files.
        shard: (K, N) selects every Nth image, beginning with the Kth (0 to N-1).

    Attributes:
        files: the files and folders given, patterns expanded.
        base: the folder that contains all images.
        skipped: number of files in folders that are no readable images, by suffix; complete once all is read.

    Raises:
        InputError: a path does not exist, a pattern matches nothing, there is no phrase, or no such shard.
    """

    def __init__(
        self, paths: Sequence[Path | str], phrases: Sequence[str] = (), *, shard: tuple[int, int] = (0, 1)
    ) -> None:
        if not (all(isinstance(part, Integral) for part in shard) and 0 <= shard[0] < shard[1]):
            raise InputError(f"shard is {shard!r}. Give (K, N) with K from 0 to N-1.")
        self.phrases, self.shard = list(phrases), shard
        self.skipped: Counter[str] = Counter()
        self.files = [file for path in paths for file in self._expand(path)]
        images = [file for file in self.files if not is_jsonl(file)]
        if images and not phrases:
            raise InputError(f"{images[0]} has no phrases of its own. Give the phrases to find.")
        folders = [file if file.is_dir() else file.parent for file in self.files]
        self.base = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100

    def queries(self) -> Iterator[Query]:
        """Read the queries of this shard, one at a time.

        Raises:
            InputError: a source cannot be opened, or there is nothing to predict.
        """
        shard, shards = self.shard
        count = 0
        for number, (_, queries) in enumerate(groupby(self._read_all(), key=lambda query: query.image)):
            count = number + 1
            if number % shards == shard:
                yield from queries
        if count == 0:
            names = ", ".join(map(str, self.files))
            raise InputError(f"There is nothing to predict in {names}{self._because_skipped()}. Give images.")
        if count <= shard:
            raise InputError(f"The shard {shard}/{shards} has no image. Use fewer shards.")

    def describe_skipped(self) -> str:
        """Return the number of skipped files by suffix, "2 .txt, 1 linked folder", or ""."""
        return ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.skipped.items()))

    def _because_skipped(self) -> str:
        return f" (skipped: {self.describe_skipped()})" if self.skipped else ""

    def _expand(self, path: Path | str) -> list[Path]:
        file = image_path(path)
        if not is_pattern(path):
            if not exists(file):
                raise InputError(f"{path} does not exist. Check the path.")
            return [file]
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  absolute ones too
        files = [file for file in found if file.is_dir() or is_jsonl(file) or self._is_image(file)]
        if not files:
            raise InputError(f"No readable file matches {path}{self._because_skipped()}. Check the pattern.")
        return files

    def _is_image(self, file: Path) -> bool:
        """Return whether the suffix is an image's, and count the file as skipped otherwise."""
        suffix = file.suffix.lower()
        if suffix not in image_suffixes():
            self.skipped[suffix or "without a suffix"] += 1
        return suffix in image_suffixes()

    def _read_all(self) -> Iterator[Query]:
        for file in self.files:
            if is_jsonl(file):
                yield from self._read_jsonl(file)
            else:
                for image in self._images(file) if file.is_dir() else (file,):
                    yield from self._all_phrases(image)

    def _images(self, folder: Path) -> Iterator[Path]:
        """Yield the images of a folder and its subfolders in the order of names, without hidden and system files."""
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder} cannot be listed ({error.strerror}). Check its permissions.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            if not entry.is_dir():
                if self._is_image(entry):
                    yield entry
            elif entry.is_symlink():  # it may lead back here
                self.skipped[_LINKED] += 1
            else:
                yield from self._images(entry)

    def _read_jsonl(self, file: Path) -> Iterator[Query]:
        lines = (self._parse(line, where, file.parent) for where, line in byte_lines(file))
        if not self.phrases:
            yield from lines
            return
        seen = set()
        for query in lines:
            if query.image is None:
                yield query
            elif query.image not in seen:
                seen.add(query.image)
                yield from self._all_phrases(query.image)

    def _all_phrases(self, image: Path) -> Iterator[Query]:
        return (Query.checked(image, phrase) for phrase in self.phrases)

    def _parse(self, line: bytes, where: str, base: Path) -> Query:
        row: Annotation = {}
        image = None
        try:
            row = json_object(line, where)
            image = path_inside(base, require(row, "image", str, where), where, _MOVE)
            return Query.checked(image, "" if self.phrases else require(row, "phrase", str, where), _id(row, where))
        except InputError as error:
            phrase, name = (value if isinstance(value := row.get(key), str) else "" for key in ("phrase", "id"))
            return Query(image, phrase, name, str(error))


def is_jsonl(file: Path) -> bool:
    """Return whether a source is a JSONL file."""
    return file.suffix.lower() == ".jsonl" and not file.is_dir()


def is_pattern(source: Path | str) -> bool:
    """Return whether a source is a glob pattern rather than the name of an existing file."""
    return glob.has_magic(str(source)) and not exists(Path(source))


def exists(path: Path) -> bool:
    """Return whether a path exists; a text that cannot be a path does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _id(row: Annotation, where: str) -> str:
    value = row.get("id")
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and value.bit_length() > 99):
        raise InputError(f'{where}: "id" is {short_repr(value)}. It must be a string or a number.')
    return str(value)
