"""Find the image that an annotation names, also where its file is spelled differently on this disk."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import quote, unquote

from epmvg.core.types import InputError
from epmvg.data.readers.files import leads_out, path_inside

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12}\.\w+)")
_COCO_PREFIXES = ("", "COCO_train2014_", "COCO_val2014_", "COCO_test2014_", "COCO_test2015_")


class ImageFinder:
    """Turns image names of annotations into paths under a root; each folder is listed once.

    A name whose file does not exist is tried with slashes for backslashes, percent signs decoded and encoded, in both
    Unicode normal forms, with another case of the suffix, and with COCO's 2014 and 2017 file names.

    Args:
        root: the folder that names are relative to and stay in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path] = {}
        self._folders: dict[Path, dict[str, str]] = {}

    def __call__(self, name: object, where: str) -> Path:
        """Return the path of an image: the file that exists, else as it is named; equal names share one `Path`.

        Raises:
            InputError: it is no path, or leads out of the root; `where` is the annotation's place in its file.
        """
        known = self._paths.get(name) if isinstance(name, str) else None
        if known is not None:
            return known
        path = self._find(path_inside(self.root, name, where), str(name), where)
        self._paths[str(name)] = path
        return path

    def _find(self, path: Path, name: str, where: str) -> Path:
        listed = self._listed(path.parent).get(_key(path.name))
        if listed == path.name or (listed is not None and path.exists()):
            return path
        if "\\" in name:  # no such file here: the separators of another system
            if PureWindowsPath(name).anchor:
                raise leads_out(name, self.root, where)
            name = name.replace("\\", "/")
            path = path_inside(self.root, name, where)
        for spelled in _spellings(name):
            try:
                other = path_inside(self.root, spelled, where)
            except InputError:
                continue
            file = self._listed(other.parent).get(_key(other.name))
            if file is not None:
                return other.with_name(file)
        return path

    def _listed(self, folder: Path) -> dict[str, str]:
        """Return the names in a folder by what they have in common with other spellings."""
        if folder not in self._folders:
            try:
                names = sorted(os.listdir(folder))  # noqa: PTH208  names are enough
            except (OSError, ValueError):
                names = []
            self._folders[folder] = {_key(name): name for name in names}
        return self._folders[folder]


def _key(name: str) -> str:
    """Return a file name in the form that its spellings share: composed letters, a small suffix."""
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return stem + dot + suffix.lower()


def _spellings(name: str) -> Iterator[str]:
    """Yield the spellings of a path to try, the nearest first."""
    for one in dict.fromkeys((name, unquote(name), quote(name))):
        yield from dict.fromkeys((one, unicodedata.normalize("NFC", one), unicodedata.normalize("NFD", one)))
    path = PurePosixPath(name)
    coco = _COCO.fullmatch(path.name)
    if coco:
        yield from (str(path.with_name(prefix + coco[1])) for prefix in _COCO_PREFIXES)
