"""Output of bulk prediction: resumable lines of JSONL, converted at the end to COCO, Label Studio, YOLO or drawings."""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from epmvg.core.files import atomic_write, check_not_input, disk_errors, temporary_path, to_json, write_text
from epmvg.core.types import InputError, Prediction
from epmvg.data.readers.files import relative_to
from epmvg.data.readers.jsonl import json_line
from epmvg.inference.draw import FORMATS, save_image
from epmvg.inference.results import Predictions, to_coco, to_label_studio, to_yolo
from epmvg.inference.sources import Sources

OutputFormat = Literal["jsonl", "coco", "label-studio", "yolo"]
Row = dict[str, Any]

_SUFFIXES = {"jsonl": ".jsonl", "yolo": ""}  # of the others .json

MAX_MESSAGES = 5
"""Number of different errors returned as messages; the rows have all of them."""

_LINE_START = b'{"key": "'
_KEY = slice(len(_LINE_START), len(_LINE_START) + 32)


@contextmanager
def open_partial(out: Path) -> Iterator[PartialOutput]:
    """Open `<out>.part`, for this process only; it is deleted when the block ends, and kept when the block raises.

    Raises:
        InputError: the file cannot be written, contains anything else, or another process is writing it.
    """
    part = part_of(out)
    if part.exists() and not part.is_file():
        raise InputError(f"{part} is in the way of unfinished predictions. Move it, or choose another --out.")
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    with ExitStack() as stack:
        with disk_errors(out):
            try:
                stack.enter_context(lock)
            except Timeout:
                raise InputError(f"Another process is writing {out}. Wait for it, or choose another --out.") from None
            stack.callback(Path(lock.lock_file).unlink, missing_ok=True)
            stack.callback(_delete_if_empty, part)
            file = stack.enter_context(part.open("a+b"))
        yield PartialOutput(file, out)
        file.truncate(0)


def _delete_if_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        file.unlink()


class PartialOutput:
    """Lines of predicted queries, found by their keys when the command is started again.

    A key is a digest of everything a line depends on, so a line that is found is valid.

    Attributes:
        offsets: key -> where its line begins, for the lines of earlier starts.
        lines: number of lines.
        reused: number of rows that are lines of earlier starts.

    Raises:
        InputError: the file contains anything else.
    """

    def __init__(self, file: BinaryIO, out: Path) -> None:
        self._file, self._out = file, out
        self.offsets = self._index()
        self.lines = len(self.offsets)
        self.reused = 0

    def append(self, rows: Iterable[Row]) -> list[int]:
        """Append rows, each beginning with its "key", and return where their lines begin.

        Raises:
            InputError: a disk error.
        """
        offsets = []
        with disk_errors(self._out):
            offset = self._file.seek(0, os.SEEK_END)
            for row in rows:
                offsets.append(offset)
                offset += self._file.write(json_line(row))
            self._file.flush()
        self.lines += len(offsets)
        return offsets

    def read(self, offsets: array[int]) -> Iterator[Row]:
        """Read the rows at `offsets`, in their order."""
        for offset in offsets:
            self._file.seek(offset)
            yield json.loads(self._file.readline())

    def describe(self) -> str:
        """Return what is kept of interrupted work, as a sentence."""
        if self.lines == 0:
            return "Stopped before the first row was finished."
        kept = part_of(self._out)
        return f"Stopped: {self.lines:,} finished rows are kept in {kept}; run the same command again to continue."

    def _index(self) -> dict[bytes, int]:
        """Return where the line of each key begins, and cut off an incomplete last line."""
        offsets: dict[bytes, int] = {}
        offset = 0
        self._file.seek(0)
        for line in self._file:
            is_complete = line.endswith(b"\n")
            if not line.startswith(_LINE_START[: len(line)]) and (is_complete or not offsets):
                part = part_of(self._out)
                raise InputError(f"{part} is not an unfinished output of epmvg. Move it, or choose another --out.")
            if not is_complete:
                self._file.truncate(offset)
                break
            offsets[line[_KEY]] = offset
            offset += len(line)
        return offsets


def part_of(out: Path) -> Path:
    """Return the file of finished rows while `out` is not complete."""
    return out.with_name(out.name + ".part")


def check_outputs(out: Path, sources: Sources, *, form: OutputFormat, draw: Path | None) -> None:
    """Reject outputs that cannot be written, or that would replace an input or an existing file.

    Raises:
        InputError: they cannot be used.
    """
    check_out(out, sources.files, form=form)
    if draw is not None:
        _check_drawings(draw, sources, is_new=not part_of(out).exists())


def check_out(out: Path, inputs: Iterable[Path], *, form: OutputFormat = "jsonl") -> None:
    """Reject a file that cannot be written in a format, that is an input, or that exists.

    Raises:
        InputError: it cannot be used.
    """
    suffix = _SUFFIXES.get(form, ".json")
    if out.suffix.lower() != suffix:
        fix = f"End its name in {suffix}" if suffix else "Give the name of a folder, without a suffix"
        raise InputError(f"{out} cannot be written in the format {form}. {fix}.")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out} cannot be written. Give the name of a file in a folder that exists.")
    check_not_input(out, *inputs)
    if out.exists():
        raise InputError(f"{out} exists. Choose another --out, or delete it.")


def _check_drawings(folder: Path, sources: Sources, *, is_new: bool) -> None:
    if (folder.exists() and not folder.is_dir()) or not folder.absolute().parent.is_dir():
        raise InputError(f"{folder} cannot hold drawings. With --out, --draw names a folder in one that exists.")
    searched = [file for file in sources.files if file.is_dir()]
    if any(folder.resolve().is_relative_to(source.resolve()) for source in searched):
        raise InputError(f"{folder} is in a folder that is searched for images. Choose another --draw.")
    if is_new and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty. Choose another --draw, or empty it.")


def write_output(
    out: Path, partial: PartialOutput, offsets: array[int], *, form: OutputFormat, draw: Path | None, base: Path
) -> dict[str, Any]:
    """Write the rows at `offsets` to `out`, and drawings to the folder `draw`, named as the images are below `base`.

    Returns:
        numbers of rows, errors, truncated and unknown phrases, messages (the first different errors), and root, the
        folder that image names in COCO and Label Studio are relative to: that of `out` if it holds `base`, else `base`.

    Raises:
        InputError: a disk error.
    """
    counts = dict.fromkeys(("rows", "errors", "truncated", "unknown"), 0)
    messages: dict[str, None] = {}

    def counted() -> Iterator[Row]:
        for row in partial.read(offsets):
            counts["rows"] += 1
            counts["errors"] += "error" in row
            counts["truncated"] += "truncated" in row
            counts["unknown"] += "unknown" in row
            if "error" in row and len(messages) < MAX_MESSAGES:
                messages[row["error"]] = None
            del row["key"]
            yield row

    images = _by_image(partial.read(offsets)) if draw is not None or form != "jsonl" else []
    if draw is not None:
        names = {relative_to(Path(one.name), base) for one in images}
        for predictions in images:
            _draw(predictions, draw, base, names)
    if form == "jsonl":
        with atomic_write(out) as temporary, temporary.open("wb") as file:
            file.writelines(json_line(row) for row in counted())
    else:
        for _ in counted():
            pass
    root = None
    if form == "yolo":
        _write_folder(out, to_yolo(images, base))
    elif form != "jsonl":
        root = out.parent if relative_to(base, out.parent) else base
        content = to_coco(images, root) if form == "coco" else to_label_studio(images, root=root)
        write_text(out, to_json(content))
    return counts | {"messages": list(messages), "root": root and str(root)}


def _write_folder(out: Path, files: Mapping[str, str]) -> None:
    """Write a folder of text files, whole or not at all."""
    temporary = temporary_path(out)
    with disk_errors(out):
        try:
            for name, content in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_text(content, encoding="utf-8")
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _by_image(rows: Iterable[Row]) -> list[Predictions]:
    """Collect the predictions of each image, in the order in which images come first."""
    images: dict[str, Predictions] = {}
    for row in rows:
        if "error" not in row:
            name = row["image"]
            if name not in images:
                images[name] = Predictions([], Path(name), name=name, size=(row["width"], row["height"]))
            images[name].append(Prediction(row["phrase"], tuple(row["box"]), row["score"], row.get("found", True)))
    return list(images.values())


def _draw(predictions: Predictions, folder: Path, base: Path, names: Container[str | None]) -> None:
    """Write a copy of an image with its boxes; skip an image that can no longer be opened.

    Args:
        names: of all images below `base`; the drawing of another format than `FORMATS` is named like none of them.
    """
    name = os.path.relpath(predictions.name, base)
    if Path(name).suffix.lower() not in FORMATS:
        name += ".png"
        while name in names:
            name += ".png"
    file = folder / name
    check_not_input(file, predictions.name)
    try:
        drawn = predictions.draw()
    except InputError:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    save_image(drawn, file)
