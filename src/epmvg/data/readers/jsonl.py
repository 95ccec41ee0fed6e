"""JSONL, one annotation per line: `{"image", "phrase", "bbox": [x, y, w, h]}`, perhaps with `split`, `id`, `width`,
`height` and keys of its own; image paths are relative to the file, or to a root.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from epmvg.core.files import atomic_write
from epmvg.core.types import InputError, Sample
from epmvg.data.readers.annotations import Located, Skipped, collect, to_annotations, to_samples
from epmvg.data.readers.fields import Annotation, is_encodable
from epmvg.data.readers.files import byte_lines, parse_json


def read_jsonl(
    file: Path | str,
    *,
    split: str | None = None,
    split_key: str = "split",
    root: Path | str | None = None,
    skipped: Skipped | None = None,
) -> list[Sample]:
    """Read the samples of a JSONL file.

    Args:
        split: keep only annotations whose `split_key` has this value; None keeps all.
        root: the folder that image paths are relative to and stay in; by default the file's folder.
        skipped: collects annotations that are malformed, have a box that is empty or outside the image, or an unusable
            phrase; without it they raise.

    Raises:
        InputError: the file is missing, a line is not such an annotation, or none is left.
    """
    file = Path(file)
    names: set[str] = set()
    folder = Path(root) if root else file.parent
    samples = to_samples(jsonl_annotations(file), folder, split_key, split=split, names=names)
    return collect(samples, str(file), skipped, split=split, names=names)


def write_jsonl(file: Path | str, samples: Sequence[Sample], *, root: Path | str | None = None) -> None:
    """Write samples for `read_jsonl`; image paths are relative to the root, by default the file's folder."""
    file = Path(file)
    with atomic_write(file) as temporary, temporary.open("wb") as out:
        out.writelines(json_line(one) for one in to_annotations(samples, Path(root) if root else file.parent))


def jsonl_annotations(file: Path) -> Located[Annotation]:
    """Yield (where it stands, object or what is wrong with it) of each line of a JSONL file.

    Raises:
        InputError: the file cannot be opened, or is a Git LFS pointer.
    """
    for where, line in byte_lines(file):
        try:
            yield where, json_object(line, where)
        except InputError as error:
            yield where, error


def json_objects(file: Path) -> Iterator[tuple[str, Annotation]]:
    """Yield (where it stands, object) of each line of a JSONL file.

    Raises:
        InputError: the file cannot be opened, is a Git LFS pointer, or a line is not a JSON object.
    """
    for where, line in byte_lines(file):
        yield where, json_object(line, where)


def json_object(line: bytes, where: str) -> Annotation:
    """Parse one line of JSONL.

    Raises:
        InputError: it is not a JSON object.
    """
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object: fix or delete the line.")
    return value


def json_line(annotation: Annotation) -> bytes:
    """Return one line of JSONL, letters as they are where UTF-8 can hold them."""
    text = json.dumps(annotation, ensure_ascii=False)
    return (text if is_encodable(text) else json.dumps(annotation)).encode() + b"\n"
