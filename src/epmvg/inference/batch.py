"""Bulk prediction: phrases in any number of images, streamed, batched and resumable."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from PIL import Image

from epmvg.core.calibration import CONFIDENCE_FILE, read_calibration
from epmvg.core.distributed import rank_and_world_size
from epmvg.core.images import image_digest, open_image
from epmvg.core.locate import (
    EXPORT_FILE,
    TRANSFORMERS_FILES,
    TRANSFORMERS_PICKLED,
    is_exported,
    is_transformers,
    locate,
    own_folder,
)
from epmvg.core.prefetch import prefetched
from epmvg.core.types import InputError, Prediction, Progress
from epmvg.inference.batch_output import OutputFormat, PartialOutput, Row, check_outputs, open_partial, write_output
from epmvg.inference.predictor import PHRASES_PER_PASS, MinScore, Predictor, check_count
from epmvg.inference.sources import Query, Sources

FORMAT_VERSION = 2
"""Of the lines; it is part of their keys, so that lines of another version are predicted again."""

_MODEL_FILES = ("model.yaml", "model.safetensors", "tokenizer/*", CONFIDENCE_FILE)
_EXPORT_FILES = (EXPORT_FILE, "image.*", "phrases.*", "tokenizer.json", CONFIDENCE_FILE)


@dataclass(slots=True)
class _Item:
    """An image of a batch with its queries."""

    queries: list[Query]
    keys: list[bytes] = field(default_factory=list)  # of the rows, one per query
    missing: list[int] = field(default_factory=list)  # numbers of the queries to predict
    digest: bytes = b""
    image: Image.Image | None = None  # None where nothing is left to predict, or it cannot be opened
    error: str = ""  # why it cannot be opened


def predict_many(
    run: Path | str,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    phrases: Sequence[str] = (),
    shard: tuple[int, int] = (0, 1),
    form: OutputFormat = "jsonl",
    draw: Path | None = None,
    min_score: MinScore = None,
    top_k: int = 1,
    batch_size: int = 16,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict phrases in all images of the sources and write one row per phrase (docs/scale.md).

    Args:
        run: the name or folder of a model, as for `Predictor`.
        source: one or several of: an image, a folder of images (searched recursively), a glob pattern, a JSONL file
            with lines {"image", "phrase"} and optionally "id".
        out: the file to write, .jsonl, or .json for the other formats, or for yolo the folder. Rows of interrupted work
            are kept in `<out>.part` and reused when the call is repeated.
        phrases: for every image; by default those of the JSONL files.
        shard: (K, N) selects every Nth image, beginning with the Kth (0 to N-1).
        form: jsonl, coco, label-studio or yolo; all but the first are written at the end, without errors.
        draw: a folder for copies of the images with the boxes drawn.
        min_score: as for `Predictor`; with None rows have no `found`.
        top_k: as for `Predictor`; with more than 1 rows of JSONL have `candidates`.
        batch_size: images per batch.
        device: device of torch, for example "cuda".
        progress: called with (finished rows, 0).

    Returns:
        numbers of rows, errors, truncated and unknown (phrases) and kept (rows of earlier starts), skipped (files by
        suffix), messages (the first errors), domain (of the model), to (the file), and root (the folder that image
        names in COCO and Label Studio are relative to).

    Raises:
        InputError: the run or a source cannot be read, an argument is out of range, or an output cannot be
            written or would replace something.
        KeyboardInterrupt: its message names what is kept.
    """
    if rank_and_world_size()[1] > 1:
        raise InputError("Launched processes do not share a prediction. Start one command per part with --shard K/N.")
    top_k, batch_size = check_count("top_k", top_k), check_count("batch_size", batch_size)
    if form != "jsonl" and top_k != 1:
        raise InputError(f"The format {form} has one box per phrase. Leave out top_k, or write JSONL.")
    sources, out = Sources([source] if isinstance(source, Path | str) else source, phrases, shard=shard), Path(out)
    check_outputs(out, sources, form=form, draw=draw)
    locate(run)
    batches = batched(sources.queries(), batch_size)
    first = next(batches)  # raises where there is nothing to predict, before a model is loaded
    with open_partial(out) as output:
        try:
            predictor = Predictor(run, device=device)
            threshold = None if min_score is None else predictor.resolve_min_score(min_score)
            offsets = predict_into(
                output,
                predictor,
                chain([first], batches),
                digest_of(run, threshold, top_k),
                threshold=threshold,
                top_k=top_k,
                progress=progress,
            )
            summary = write_output(out, output, offsets, form=form, draw=draw, base=sources.base)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(output.describe()) from None
    summary |= {"kept": output.reused, "skipped": sources.describe_skipped()}
    return summary | {"domain": predictor.domain, "to": str(out)}


def predict_into(
    output: PartialOutput,
    predictor: Predictor,
    batches: Iterable[list[Query]],
    context: bytes,
    *,
    threshold: float | None = None,
    top_k: int = 1,
    progress: Progress | None = None,
) -> array[int]:
    """Append the rows of queries that are missing in the output, and return where the rows of all queries begin.

    Args:
        context: `digest_of` the run that the predictor opened, with the same options.
        threshold: rows say whether their confidence reaches it; with None they do not.
        top_k, progress: as for `predict_many`.
    """
    offsets = array("q")
    for items in prefetched(_open(batch, output=output, context=context) for batch in batches):
        offsets.extend(_finish(predictor, items, output, threshold, top_k))
        if progress:
            progress(len(offsets), 0)
    return offsets


def batched(queries: Iterable[Query], images: int) -> Iterator[list[Query]]:
    """Yield batches of queries with at most so many images and `PHRASES_PER_PASS` phrases."""
    batch: list[Query] = []
    count = 0
    for query in queries:
        is_new = not batch or query.image != batch[-1].image
        if len(batch) == PHRASES_PER_PASS or (is_new and count == images):
            yield batch
            batch, count, is_new = [], 0, True
        batch.append(query)
        count += is_new
    if batch:
        yield batch


def _open(batch: list[Query], *, output: PartialOutput, context: bytes) -> list[_Item]:
    """Return the images of a batch, opened where rows are missing in the output."""
    items = []
    for path, group in groupby(batch, key=lambda query: query.image):
        item = _Item(list(group))
        try:
            item.digest = b"" if path is None else image_digest(path)
        except InputError as error:
            item.error = str(error)
        item.keys = [_key(context, item.digest, query) for query in item.queries]
        item.missing = [
            number
            for number, (query, key) in enumerate(zip(item.queries, item.keys, strict=True))
            if not (query.error or item.error or key in output.offsets)
        ]
        if path is not None and item.missing:
            try:
                item.image = open_image(path)
            except InputError as error:
                item.error = str(error)
        items.append(item)
    return items


def _finish(
    predictor: Predictor, items: list[_Item], output: PartialOutput, threshold: float | None, top_k: int
) -> list[int]:
    """Predict and append the rows that are missing in the output, and return where all rows of the batch begin."""
    opened = [item for item in items if item.image is not None]
    queries = [
        (item.image, [item.queries[number].phrase for number in item.missing])
        for item in items
        if item.image is not None
    ]
    digests = [item.digest for item in opened]
    predicted = predictor.predict_batch(queries, digests, top_k=top_k) if opened else []
    predictions = {
        item.keys[number]: one
        for item, own in zip(opened, predicted, strict=True)
        for number, one in zip(item.missing, own, strict=True)
    }
    rows = {
        key: _row(key, item, query, predictions.get(key), threshold)
        for item in items
        for query, key in zip(item.queries, item.keys, strict=True)
        if key not in output.offsets
    }
    output.reused += sum(key in output.offsets for item in items for key in item.keys)
    appended = dict(zip(rows, output.append(rows.values()), strict=True))
    return [appended[key] if key in appended else output.offsets[key] for item in items for key in item.keys]


def _row(key: bytes, item: _Item, query: Query, prediction: Prediction | None, threshold: float | None) -> Row:
    row: Row = {"key": key.decode(), "image": str(query.image), "phrase": query.phrase, "id": query.id}
    row = {name: value for name, value in row.items() if value and not (name == "image" and query.image is None)}
    if prediction is None or item.image is None:
        return row | {"error": query.error or item.error}
    row |= {"width": item.image.width, "height": item.image.height}
    row |= {"box": list(prediction.box), "score": round(prediction.score, 4)}
    if prediction.candidates:
        row["candidates"] = [{"box": list(one.box), "score": round(one.score, 4)} for one in prediction.candidates]
    if threshold is not None or prediction.unknown:
        row["found"] = not prediction.unknown and prediction.score >= (threshold or 0.0)
    return row | {name: True for name in ("truncated", "unknown") if getattr(prediction, name)}


def _key(context: bytes, digest: bytes, query: Query) -> bytes:
    """Return a digest of everything that a row depends on, 32 hexadecimal digits."""
    content = repr((context, digest, str(query.image), query.phrase, query.id, query.error))
    return hashlib.blake2b(content.encode(errors="backslashreplace"), digest_size=16).hexdigest().encode()


def digest_of(run: Path | str, threshold: float | None = None, top_k: int = 1) -> bytes:
    """Return a digest of all of a model's files that its predictions depend on, and of the settings."""
    folder = locate(run)
    patterns: Sequence[str] = _EXPORT_FILES if is_exported(folder) else _MODEL_FILES
    digest = hashlib.sha256(repr((FORMAT_VERSION, threshold, top_k)).encode())
    if is_transformers(folder):
        patterns = (*TRANSFORMERS_FILES, *TRANSFORMERS_PICKLED)
        digest.update(repr(read_calibration(own_folder(run))).encode())
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file()):
        with file.open("rb") as content:
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.digest()
