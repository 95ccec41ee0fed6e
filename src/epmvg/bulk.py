"""Bulk prediction: phrases of any number of pictures, streamed, batched, resumable, by one process or several.

What was asked is read as a stream and cut into batches, which processes take in turn. Each keeps a file with a line a
finished batch beside the result; started again, it goes on after its last whole line. When all are done, the lines are
put together in order. A batch's answers depend on nothing outside it, so the file is the same however often the work
was broken off and however many processes (of equally many threads) did it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from epmvg.data.files import inside, need
from epmvg.data.jsonl import json_line, json_lines, phrase_fault
from epmvg.data.photos import open_image
from epmvg.data.transforms import pad_of, render
from epmvg.data.views import View, evaluation_view
from epmvg.evaluation import box_scores, write_json
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.models.hub import fetch
from epmvg.models.norms import bake_norms
from epmvg.processes import gathered, together, told
from epmvg.types import InputError, Progress

Row = dict[str, Any]

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MOST_PHRASES = 64
"""Of a batch; a picture that is asked more comes in several."""


@dataclass(frozen=True, slots=True)
class Question:
    """Phrases to find in one picture."""

    image: Path
    phrases: list[str]
    ids: list[str]  # of the rows that ask, "" where they have none


def predict_many(
    run: Path | str,
    source: Path | str,
    out: Path | str,
    *,
    phrases: Sequence[str] = (),
    root: Path | str | None = None,
    images: int = 16,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Find phrases in all pictures of a folder or JSONL file and write a row a phrase.

    A row holds image, phrase, box (x0, y0, x1, y1 in pixels of the upright picture), score, and the asking row's id;
    a picture that cannot be opened or a phrase that cannot be asked has `error`, a sentence, instead of box and score.

    Args:
        run: a folder that training wrote.
        source: a folder of pictures, searched with its subfolders, or a JSONL file with rows {"image", "phrase"}.
        out: the JSONL file to write. Work that was broken off stays in `<out>.part/` and is gone on with.
        phrases: asked of every picture; a JSONL file's own phrases by default.
        root: what a JSONL file's paths are relative to and stay in; by default its folder.
        images: pictures in a batch.
        device: where to compute, for example "cuda".
        progress: called with (rows done by this process, 0).

    Returns:
        rows and errors written, and to, the file; nothing of it but `to` on processes other than the first.

    Raises:
        InputError: the run or source cannot be read, there is nothing to ask, or `<out>.part/` is of other work.
    """
    source, out = Path(source), Path(out)
    with together() as (rank, world):  # first, so that the others notice a fault in what follows
        asked = questions(source, phrases, root)
        first = next(asked, None)
        if first is None:
            raise InputError(f"{source} asks nothing: give pictures and phrases.")
        model = load(run).to(device)
        bake_norms(model.visual, padding=True)
        if out.is_dir() or not out.parent.is_dir():
            raise InputError(f"{out} cannot be written: give a file's name in a folder that exists.")
        job = {
            "weights": _digest(fetch(run) / "model.safetensors"),
            "source": str(source.absolute()),
            "root": str(root),
            "phrases": list(phrases),
            "images": images,
            "processes": world,
        }
        folder = out.with_name(out.name + ".part")
        fault = told(_claim(folder, job) if rank == 0 else None)
        if fault is not None:
            raise InputError(fault)
        batches = enumerate(batches_of(chain([first], asked), images))
        if not folder.exists():
            raise InputError(f"{folder} is not on this machine: let all machines share the folder of --out.")
        own = (batch for number, batch in batches if number % world == rank)
        _answer(model, own, folder / f"{rank}.jsonl", device, progress)
        gathered(None)  # wait for all answers
        if rank != 0:
            return {"to": str(out)}
        counts = _join([folder / f"{number}.jsonl" for number in range(world)], out)
        shutil.rmtree(folder)
        return counts | {"to": str(out)}


def questions(source: Path, phrases: Sequence[str], root: Path | str | None) -> Iterator[Question]:
    """Read what is asked as a stream; rows of one picture that follow each other are one question.

    Raises:
        InputError: the source cannot be read, or a row names no picture or phrase.
    """
    if source.is_dir():
        if not phrases:
            raise InputError(f"{source} is a folder of pictures: give the phrases to find in each.")
        for image in _pictures(source):
            yield Question(image, list(phrases), [""] * len(phrases))
        return
    if source.suffix != ".jsonl":
        raise InputError(f"{source} is neither a folder nor a .jsonl file: give one of them.")
    base = Path(root) if root else source.parent
    asked: Question | None = None
    for where, row in json_lines(source):
        image = inside(base, need(row, "image", str, where), where)
        if asked is not None and asked.image != image:
            yield asked
            asked = None
        if phrases:
            asked = asked or Question(image, list(phrases), [""] * len(phrases))
            continue
        asked = asked or Question(image, [], [])
        asked.phrases.append(need(row, "phrase", str, where))
        asked.ids.append(str(row.get("id", "")))
        if len(asked.phrases) == MOST_PHRASES:
            yield asked
            asked = None
    if asked is not None:
        yield asked


def _pictures(folder: Path) -> Iterator[Path]:
    """Walk a folder, a level at a time, in the order of names."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():  # which may lead back here
            yield from _pictures(entry)
        elif entry.suffix.lower() in ENDINGS:
            yield entry


def batches_of(asked: Iterator[Question], images: int) -> Iterator[list[Question]]:
    """Cut questions into batches of at most so many pictures and `MOST_PHRASES` phrases."""
    batch: list[Question] = []
    room = MOST_PHRASES
    for question in asked:
        for start in range(0, len(question.phrases), MOST_PHRASES):
            part = slice(start, start + MOST_PHRASES)
            piece = Question(question.image, question.phrases[part], question.ids[part])
            if batch and (len(batch) == images or len(piece.phrases) > room):
                yield batch
                batch, room = [], MOST_PHRASES
            batch.append(piece)
            room -= len(piece.phrases)
    if batch:
        yield batch


def _claim(folder: Path, job: dict[str, Any]) -> str | None:
    """Start the folder of unfinished work, or go on with it; say why if it is of another job."""
    file = folder / "job.json"
    if not file.exists():
        folder.mkdir(exist_ok=True)
        write_json(file, job)
        return None
    before = json.loads(file.read_text(encoding="utf-8"))
    other = [key for key, value in job.items() if before.get(key) != value]
    return f"{folder} holds unfinished work of other {other[0]}: finish that, or delete the folder." if other else None


def _answer(
    model: Grounder, batches: Iterator[list[Question]], file: Path, device: str, progress: Progress | None
) -> None:
    """Append a line with the rows of each batch, after those that are there; pictures are opened one batch ahead."""
    done, rows = _whole_lines(file)
    with file.open("ab") as out, ThreadPoolExecutor(1) as opener:
        rest = islice(batches, done, None)
        ahead = opener.submit(_open, model, batch) if (batch := next(rest, None)) else None
        while batch is not None and ahead is not None:
            views = ahead.result()
            after = next(rest, None)
            ahead = opener.submit(_open, model, after) if after else None
            answered = _ask(model, batch, views, device)
            out.write(json_line({"rows": answered}))
            out.flush()
            rows += len(answered)
            if progress:
                progress(rows, 0)
            batch = after


def _whole_lines(file: Path) -> tuple[int, int]:
    """Cut a torn last line off a file; return how many lines and rows are left."""
    if not file.exists():
        return 0, 0
    lines = rows = size = 0
    with file.open("r+b") as kept:
        for line in kept:
            if not line.endswith(b"\n"):
                break
            lines, rows, size = lines + 1, rows + len(json.loads(line)["rows"]), size + len(line)
        kept.truncate(size)
    return lines, rows


def _open(model: Grounder, batch: list[Question]) -> list[tuple[View, torch.Tensor] | str]:
    """Open each picture as its evaluation view, or say why it cannot be."""
    opened: list[tuple[View, torch.Tensor] | str] = []
    for question in batch:
        try:
            picture = open_image(question.image)
        except InputError as error:
            opened.append(str(error))
            continue
        view = evaluation_view(picture.size, model.canvas)
        opened.append((view, render(picture, view)))
    return opened


@torch.inference_mode()
def _ask(
    model: Grounder, batch: list[Question], opened: list[tuple[View, torch.Tensor] | str], device: str
) -> list[Row]:
    """Answer a batch; a row a phrase, in order."""
    rows: list[Row] = []
    shown: list[tuple[View, torch.Tensor]] = []
    asked: list[tuple[int, int, str]] = []  # row, picture, phrase
    for question, view in zip(batch, opened, strict=True):
        for phrase, name in zip(question.phrases, question.ids, strict=True):
            row: Row = {"image": str(question.image), "phrase": phrase} | ({"id": name} if name else {})
            error = view if isinstance(view, str) else _fault(model, phrase)
            if error is None:
                asked.append((len(rows), len(shown), phrase))
            rows.append(row | ({"error": error} if error else {}))
        if not isinstance(view, str):
            shown.append(view)
    if not asked:
        return rows
    numbers, owner, phrases = zip(*asked, strict=True)
    tokens, token_pad = model.tokenize(list(phrases))
    image, pad = torch.stack([pixels for _, pixels in shown]), torch.stack([pad_of(view) for view, _ in shown])
    inputs = (image, pad, tokens, token_pad, torch.tensor(owner))
    output = model(*(part.to(device) for part in inputs))
    boxes, scores = output.box.cpu().double(), box_scores(output, model.calibration).tolist()
    for number, picture, box, score in zip(numbers, owner, boxes, scores, strict=True):
        inside_picture = shown[picture][0].letterbox.to_source(box).tolist()
        rows[number] |= {"box": [round(value, 2) for value in inside_picture], "score": round(score, 4)}
    return rows


def _fault(model: Grounder, phrase: str) -> str | None:
    """Say why a phrase cannot be asked, or None."""
    fault = phrase_fault(phrase)
    if fault is None and (pieces := len(model.tokenizer(phrase)["input_ids"])) > model.length:
        fault = f"the phrase has {pieces} word pieces and this model reads {model.length}"
    return fault


def _join(files: Sequence[Path], out: Path) -> dict[str, int]:
    """Put the batches of all processes together in their order; count rows and errors."""
    counts = {"rows": 0, "errors": 0}
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    with temporary.open("wb") as joined:
        for line in _turn_by_turn(files):
            for row in json.loads(line)["rows"]:
                joined.write(json_line(row))
                counts["rows"] += 1
                counts["errors"] += "error" in row
    temporary.replace(out)
    return counts


def _turn_by_turn(files: Sequence[Path]) -> Iterator[bytes]:
    """Yield a line of each file in turn until one has no more: it was the next one's turn."""
    opened = [file.open("rb") for file in files]
    try:
        while True:
            for file in opened:
                line = file.readline()
                if not line:
                    return
                yield line
    finally:
        for file in opened:
            file.close()


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
