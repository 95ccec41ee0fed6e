"""Bulk prediction: phrases in any number of images, streamed, batched and resumable.

Queries are read as a stream and predicted in batches. Each finished row is appended to `<out>.part` under a key made
of all that it depends on: the model, the image's name and content, the phrase and the row's id. Started again, the
command finds what is done by these keys, predicts what is missing, and writes the output in the order of the sources.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.distributed import launched
from epmvg.core.images import open_image
from epmvg.core.locate import locate
from epmvg.core.types import InputError, Prediction, Progress
from epmvg.inference.batch_output import OutputFormat, check_outputs, write_outputs
from epmvg.inference.predictor import Predictor
from epmvg.inference.runtimes.onnx_runtime import is_exported
from epmvg.inference.sources import MAX_PHRASES, Query, Sources
from epmvg.inference.unfinished import FORMAT_VERSION, Finished, Row, Unfinished

PRECISION: Literal["fp32"] = "fp32"

_MODEL_FILES = ("model.yaml", "model.safetensors", "tokenizer/*", CONFIDENCE_FILE)


@dataclass(slots=True)
class _Opened:
    """A query whose image was read, with the keys and places of its rows."""

    query: Query
    digest: bytes
    keys: list[int]  # one per phrase
    places: list[int | None]  # where the finished row lies, one per phrase
    picture: Image.Image | None = None  # None where nothing is left to predict, or the image cannot be opened
    error: str = ""

    @property
    def missing(self) -> list[int]:
        """Numbers of the phrases whose rows are not finished."""
        return [number for number, place in enumerate(self.places) if place is None]


def predict_many(
    run: Path | str,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    phrases: Sequence[str] = (),
    root: Path | str | None = None,
    shard: tuple[int, int] = (0, 1),
    form: OutputFormat = "jsonl",
    draw: Path | str | None = None,
    min_score: float | Literal["auto"] | None = None,
    overwrite: bool = False,
    images: int = 16,
    device: str = "auto",
    progress: Progress | None = None,
    loaded: Callable[[Predictor], None] | None = None,
) -> dict[str, Any]:
    """Predict phrases in all images of the sources and write one row per phrase.

    A row holds image, phrase, box (x0, y0, x1, y1 in pixels of the upright image), score, the id of the row that asked
    for it, and with `min_score` whether it counts as `found`; `cut` and `unknown` are true where the phrase is longer
    than the model reads, and where the model knows no word of it. An image that cannot be opened, a phrase that cannot
    be queried or a line that cannot be read has `error`, a sentence, instead of box and score.

    Args:
        run: a folder that training or `epmvg export` wrote, `default`, or OWNER/NAME on the Hugging Face hub.
        source: one or several of: an image, a folder of images (searched with its subfolders), a glob pattern, a JSONL
            file with rows {"image", "phrase"} and perhaps "id".
        out: the file to write, .jsonl, or .json for the other formats. Rows of unfinished work stay in `<out>.part`
            and are used when the work is started again.
        phrases: queried in every image; a JSONL file's own phrases by default.
        root: what a JSONL file's paths are relative to and stay in; by default its folder.
        shard: (K, N) takes every Nth image, from the Kth on.
        form: jsonl, coco or label-studio; the latter two are written at the end and hold no errors.
        draw: a folder for copies of the images with the boxes drawn.
        min_score: what scores less is not `found`; "auto" takes the threshold stored by `epmvg calibrate`.
        overwrite: replace an existing `out`.
        images: images per batch.
        device: where to compute, for example "cuda".
        progress: called with (rows done, 0).
        loaded: called with the predictor once it is loaded.

    Returns:
        rows, errors, cut and unknown (phrases), kept (rows of earlier starts), skipped (files by kind), messages (of
        the first errors) and to.

    Raises:
        InputError: the run or a source cannot be read, there is nothing to query, or an output cannot be written or
            would replace something.
        KeyboardInterrupt: says what is kept.
    """
    if launched()[1] > 1:
        raise InputError("Launched processes do not share a prediction: start one command per part, --shard K/N each.")
    given = [source] if isinstance(source, Path | str) else list(source)
    sources, out = Sources(given, phrases, root=root, shard=shard), Path(out)
    check_outputs(out, sources, form=form, draw=draw, overwrite=overwrite)
    folder = locate(run)
    queries = sources.queries()
    first = next(queries, None)
    if first is None:
        raise InputError(f"The shard {shard[0]}/{shard[1]} holds no image: give fewer shards.")
    model_key = _model_key(folder)
    places = array("q")
    with Unfinished(out) as unfinished:
        try:
            predictor = Predictor(folder, device=device, precision=PRECISION)
            if loaded:
                loaded(predictor)
            bound = None if min_score is None else predictor._bound(min_score)
            open_batch = partial(_open, unfinished=unfinished, model_key=model_key)
            for batch in _one_ahead(open_batch, batches_of(chain([first], queries), images)):
                places.extend(_finish(predictor, batch, unfinished))
                if progress:
                    progress(len(places), 0)
            summary = write_outputs(
                out, lambda: unfinished.read(places), form=form, draw=draw, base=sources.base, bound=bound
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(unfinished.describe()) from None
    return summary | {"kept": unfinished.earlier, "skipped": sources.describe_skipped(), "to": str(out)}


def batches_of(queries: Iterator[Query], images: int) -> Iterator[list[Query]]:
    """Cut queries into batches of at most so many images and `MAX_PHRASES` phrases."""
    batch: list[Query] = []
    room = MAX_PHRASES
    for query in queries:
        if batch and (len(batch) == images or len(query.phrases) > room):
            yield batch
            batch, room = [], MAX_PHRASES
        batch.append(query)
        room -= len(query.phrases)
    if batch:
        yield batch


def _one_ahead(open_batch: Callable[[list[Query]], list[_Opened]], batches: Iterator[list[Query]]) -> Iterator[Any]:
    """Open each batch in a thread while the one before is computed."""
    with ThreadPoolExecutor(1) as opener:
        ahead: Future[list[_Opened]] | None = None
        for batch in batches:
            opening = opener.submit(open_batch, batch)
            if ahead is not None:
                yield ahead.result()
            ahead = opening
        if ahead is not None:
            yield ahead.result()


def _open(batch: list[Query], unfinished: Unfinished, model_key: bytes) -> list[_Opened]:
    """Look up which rows of a batch are finished, and open the images of the others."""
    opened = []
    for query in batch:
        digest = query.error.encode(errors="replace") if query.error else _image_digest(query.image)
        keys = [_key(model_key, query.image, digest, *asked) for asked in zip(query.phrases, query.ids, strict=True)]
        one = _Opened(query, digest, keys, [unfinished.find(key) for key in keys], error=query.error)
        if None in one.places and query.image is not None and not query.error:
            try:
                one.picture = open_image(query.image)
            except InputError as error:
                one.error = str(error)
        opened.append(one)
    return opened


def _finish(predictor: Predictor, batch: list[_Opened], unfinished: Unfinished) -> list[int]:
    """Predict and append the rows of a batch that are not finished; return where all of its rows lie."""
    asked = [one for one in batch if one.picture is not None]
    phrases = [[one.query.phrases[number] for number in one.missing] for one in asked]
    images = [(one.picture, one.digest or str(one.query.image).encode(errors="replace")) for one in asked]
    predicted = iter(_predict(predictor, [(*image, own) for image, own in zip(images, phrases, strict=True)]))
    finished: list[tuple[int, Finished]] = []
    for one in batch:
        answers = [one.error] * len(one.missing) if one.picture is None else next(predicted)
        size = one.picture.size if one.picture is not None else (0, 0)
        for number, answer in zip(one.missing, answers, strict=True):
            finished.append((one.keys[number], Finished(_row(one.query, number, answer), size)))
    appended = iter(unfinished.append(finished))
    return [next(appended) if place is None else place for one in batch for place in one.places]


def _predict(predictor: Predictor, asked: list[tuple[Any, bytes, list[str]]]) -> list[list[Prediction | str]]:
    """Predict phrases in images, in one pass if possible; an error's sentence takes the place of a prediction."""
    if not asked:
        return []
    try:
        found = predictor.predict_batch(
            [(picture, phrases) for picture, _, phrases in asked], [digest for _, digest, _ in asked]
        )
        return [list(predictions) for predictions in found]
    except InputError as error:
        ((picture, digest, phrases), *others) = asked
        if others:
            return [predictions for one in asked for predictions in _predict(predictor, [one])]
        if len(phrases) == 1:
            return [[str(error)]]
        return [[_predict(predictor, [(picture, digest, [phrase])])[0][0] for phrase in phrases]]


def _row(query: Query, number: int, answer: Prediction | str) -> Row:
    row: Row = {"image": str(query.image)} if query.image is not None else {}
    row |= {key: text for key, text in (("phrase", query.phrases[number]), ("id", query.ids[number])) if text}
    if isinstance(answer, str):
        return row | {"error": answer}
    marks = {key: True for key in ("truncated", "unknown") if getattr(answer, key)}
    return row | {"box": list(answer.box), "score": round(answer.score, 4)} | marks


def _key(model_key: bytes, image: Path | None, digest: bytes, phrase: str, name: str) -> int:
    content = repr((model_key, str(image), digest, phrase, name)).encode(errors="backslashreplace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _image_digest(image: Path | None) -> bytes:
    """Return the digest of an image's bytes, b"" where they cannot be read: opening it says why."""
    try:
        return b"" if image is None else hashlib.sha256(image.read_bytes()).digest()
    except (OSError, ValueError):
        return b""


def _model_key(folder: Path) -> bytes:
    """Return a digest of all of a model's files that its predictions depend on."""
    patterns = ("**/*",) if is_exported(folder) else _MODEL_FILES
    digest = hashlib.sha256(repr((FORMAT_VERSION, PRECISION)).encode())
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file()):
        with file.open("rb") as content:
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.digest()
