"""Find the image that an annotation names, also where its file is spelled differently on this disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from epmvg.data.readers.files import exists, path_inside

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12}\.\w+)")
_COCO_PREFIXES = ("", "COCO_train2014_", "COCO_val2014_", "COCO_test2014_", "COCO_test2015_")


class ImageFinder:
    """Turns image names of annotations into paths under a root.

    A name whose file does not exist is tried with slashes for backslashes, with another case of the suffix, and with
    COCO's 2014 and 2017 file names.

    Args:
        root: the folder that names are relative to and stay in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path] = {}

    def __call__(self, name: object, location: str) -> Path:
        """Return the path of an image: the file that exists, else as it is named; equal names share one `Path`."""
        if isinstance(name, str) and name in self._paths:
            return self._paths[name]
        path = path_inside(self.root, name, location)
        if not exists(path):
            path = path_inside(self.root, str(name).replace("\\", "/"), location)
            path = next(filter(exists, _spellings(path)), path)
        self._paths[str(name)] = path
        return path


def _spellings(path: Path) -> Iterator[Path]:
    yield path
    yield path.with_suffix(path.suffix.lower())
    yield path.with_suffix(path.suffix.upper())
    coco = _COCO.fullmatch(path.name)
    if coco:
        yield from (path.with_name(prefix + coco[1]) for prefix in _COCO_PREFIXES)
