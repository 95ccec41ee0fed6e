"""Evaluate a run: Acc@0.5 and further metrics, one prediction per sample, under any number of processes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from epmvg.core.boxes import paired_iou
from epmvg.core.calibration import Calibration
from epmvg.core.distributed import broadcast, gather, process_group, rank_and_world_size
from epmvg.core.files import write_json, write_rows
from epmvg.core.geometry import Clip
from epmvg.core.hardware import select_device, tf32
from epmvg.core.images import open_image
from epmvg.core.locate import fetch, only_predicts
from epmvg.core.prefetch import prefetched
from epmvg.core.types import Batch, GroundingOutput, InputError, Progress, Sample
from epmvg.core.version import __version__
from epmvg.data.loader import GroundingLoader, group_by_image
from epmvg.data.negatives import negative_samples
from epmvg.evaluation.metrics import PROTOCOLS, Metrics, data_sha256, row_metrics, slices
from epmvg.evaluation.samples import evaluation_samples, result_suffix, results_folder, results_stem, short_name
from epmvg.evaluation.statistics import BINS, confidence_metrics, mean_intervals
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.models.iou_head import raw_confidence
from epmvg.models.weights_file import digest_of_weights

Row = dict[str, Any]
"""A prediction row: a sample and what was predicted for it."""

EVALUATION_NEGATIVES = 0.25  # negative pairs per phrase of the split, at most

_COPIED = ("kind", "types", "dataset", "split", "category", "negative")
"""Keys of a sample that its prediction row repeats: slices need them, and `split_negatives` the last."""


def evaluate(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    clip: Clip = "image",
    flip: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a run on a split and write `predictions-<data>-<split>.jsonl` and `evaluation-...json` to its folder.

    Predictions for negative pairs (a phrase with an image of another phrase) go to `negatives-...jsonl`. Processes
    that a launcher started together share the work; the first writes, and all return the same.

    Args:
        run: a folder that training wrote, or what else `Predictor` takes; results of a name go to `runs/NAME`.
        data: a data set's name or JSONL file; the run's own by default.
        split: of that data; by default the validation split of the run's own data, and all samples of other data.
        root: folder of the data; the run's own by default.
        clip: what predictions are clipped to: "image", or "canvas", the square network input (TransVG's evaluation),
            whose files end in `-canvas`.
        flip: average over flipped images, as `Predictor` does; the files end in `-flip`.
        device: as for `hardware.select_device`.
        progress: called with (phrases done, all of them).

    Returns:
        data, split, clip, flip, protocol; what `score_rows` returns; `truncated` and `unknown` (phrases longer than the
        model reads, and phrases without a known word); `unread_images`, which count as misses; `confidence`
        (docs/evaluate.md); `weights`, their SHA-256; and `predictions`, the name of the file of predictions.

    Raises:
        InputError: the run, the data or all images cannot be read, or `clip` is "canvas" and the run only predicts or
            `flip` is set.
    """
    if clip == "canvas" and flip:
        raise InputError("Flip averaging predicts within the image. Omit clip='canvas', or flip.")
    if clip == "canvas" and only_predicts(fetch(run)):
        raise InputError(
            f"{run} only predicts, within the image. Omit --clip canvas, or evaluate the run it is made of."
        )
    with process_group() as (rank, _):  # first, so that the others notice an error in what follows
        settings, split, samples = evaluation_samples(run, data, split, root)
        results_folder(run)  # an error in it is raised before the work
        queries = [*samples, *negative_samples(samples, EVALUATION_NEGATIVES)]  # an image is still encoded once
        if flip or only_predicts(fetch(run)):
            predictor = Predictor(run, device=device, flip=flip)
            calibration = predictor.runtime.calibration
            predicted = predict_samples(predictor, queries, progress=progress)
        else:
            predicted, calibration = _predict(run, queries, settings.batch_size, clip, device, progress)
        result: dict[str, Any] = {"data": short_name(settings.name), "split": split or "all"}
        result |= {"clip": clip, "flip": flip, "protocol": PROTOCOLS[clip]}
        if rank == 0:
            stem = results_stem(run, settings, split) + result_suffix(result)
            read, negatives = split_negatives(predicted)
            rows = with_misses(read, samples)
            result["predictions"] = f"predictions-{stem}.jsonl"
            result["unread_images"] = _warn_unread(read, rows, settings.name)
            result |= {key: sum(row.get(key, False) for row in rows) for key in ("truncated", "unknown")}
            result |= score_rows(rows)
            result["confidence"] = _confidence(read, negatives, calibration, result["metadata"]["data_sha256"])
            result["weights"] = digest_of_weights(fetch(run))
            folder = results_folder(run, create=True)
            write_rows(folder / result["predictions"], rows)
            write_rows(folder / f"negatives-{stem}.jsonl", negatives)
            write_json(folder / f"evaluation-{stem}.json", result)
        return broadcast(result)


def _predict(
    run: Path | str, queries: Sequence[Sample], batch_size: int, clip: Clip, device: str, progress: Progress | None
) -> tuple[list[Row], Calibration | None]:
    """Predict queries with a run's model, as its training validates it."""
    rank, world = rank_and_world_size()
    model = load(run).to(select_device(device))
    model.visual_encoder.fuse_norms()
    loader = evaluation_loader(model, queries, batch_size=batch_size, rank=rank, world_size=world, skip_unreadable=True)
    rows = predict_rows(model, loader.batches(0), clip=clip, progress=progress, total=-(-len(queries) // world))
    tokens = model.phrase_tokenizer()([row["phrase"] for row in rows])
    _mark(rows, tokens.truncated, tokens.unknown)
    return rows, model.calibration


def predict_samples(predictor: Predictor, samples: Sequence[Sample], *, progress: Progress | None = None) -> list[Row]:
    """Predict samples with any runtime and return a prediction row for each, those of one image together.

    Images that cannot be read have none. Processes take the images in turn; the first gets all rows, the others none.
    """
    rank, world = rank_and_world_size()
    parts: list[list[Row]] = []
    done = 0
    for image, numbers in islice(group_by_image(samples).items(), rank, None, world):
        own = [samples[number] for number in numbers]
        try:
            opened = open_image(image)
        except InputError:
            parts.append([])
            continue
        output = predictor.predict_boxes(opened, [sample.phrase for sample in own])
        boxes = [[round(value, 3) for value in box] for box in output.boxes.tolist()]
        overlaps = ious(boxes, [sample.box for sample in own])
        rows = list(map(prediction_row, own, boxes, overlaps, output.scores.tolist()))
        _mark(rows, output.truncated, output.unknown)
        parts.append(rows)
        done += len(own)
        if progress:
            progress(done, -(-len(samples) // world))
    return _in_turns(parts)


def _in_turns(parts: list[list[Row]]) -> list[Row]:
    """Gather the rows of parts that processes took in turn, in the order of the parts; on the first process only."""
    turns = zip_longest(*gather(parts), fillvalue=[])
    return [row for turn in turns for rows in turn for row in rows]


def _mark(rows: Sequence[Row], truncated: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> None:
    """Mark rows whose phrase is truncated (`truncated`) or has no known word (`unknown`)."""
    for key, marked in {"truncated": truncated, "unknown": unknown}.items():
        for number in marked.nonzero()[0].tolist():
            rows[number][key] = True


def _confidence(
    rows: Sequence[Row], negatives: Sequence[Row], calibration: Calibration | None, sha256: str
) -> dict[str, Any]:
    fitted = (calibration and calibration.fitted) or {}
    return {
        "calibrated": calibration is not None and calibration.changes_scores,
        "mapping": calibration and calibration.mapping,
        "calibrated_on_these_samples": fitted.get("data_sha256") == sha256,
        "bins": BINS,
        "negatives": len(negatives),
    } | confidence_metrics(rows, negatives)


@torch.no_grad()
@tf32(False)  # so that a GPU gives the metrics of a CPU
def predict_rows(
    model: Grounder,
    batches: Iterable[Batch],
    *,
    clip: Clip = "image",
    progress: Progress | None = None,
    total: int = 0,
) -> list[Row]:
    """Predict every phrase of some batches and return a prediction row for each.

    Of several processes each passes its batches of an `evaluation_loader`; the first gets the rows of all in order,
    the others none. Batches do not depend on the number of processes, so neither do the rows.
    """
    model.eval()
    device = next(model.parameters()).device
    by_batch: list[list[Row]] = []
    done = 0
    for batch in (each.to(device) for each in prefetched(batches)):
        # without samples none of its images could be read
        rows = _rows(model(*batch.inputs), batch, model.calibration, clip) if batch.samples else []
        by_batch.append(rows)
        done += len(rows)
        if progress:
            progress(done, total)
    return _in_turns(by_batch)


def _rows(output: GroundingOutput, batch: Batch, calibration: Calibration | None, clip: Clip) -> list[Row]:
    boxes, scores = output.box.cpu().double(), raw_confidence(output).cpu().double().numpy()
    scores = scores if calibration is None else calibration(scores)
    rows = []
    for i, (sample, image) in enumerate(zip(batch.samples, batch.image_index.tolist(), strict=True)):
        in_image = batch.letterboxes[image].to_image(boxes[i], clip)
        box = [round(value, 3) for value in in_image.tolist()]
        rows.append(prediction_row(sample, box, ious([box], [sample.box])[0], float(scores[i]), clip))
    return rows


def prediction_row(
    sample: Sample, box: list[float] | None, iou: float, score: float | None, clip: Clip = "image"
) -> Row:
    """Return the prediction row of a sample, with the keys that slices need; a box of None is a miss."""
    row: Row = {"image": str(sample.image), "phrase": sample.phrase, "box": box, "target": list(sample.box), "iou": iou}
    row |= {"score": score, "id": sample.id, "clip": clip}
    return row | {key: sample.extra[key] for key in _COPIED if key in sample.extra}


def ious(boxes: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> list[float]:
    """Return the IoU of box i with target i, both xyxy, in double precision."""
    pair = (torch.tensor(part, dtype=torch.float64).reshape(-1, 4) for part in (boxes, targets))
    return cast(list[float], paired_iou(*pair).tolist())


def evaluation_loader(model: Grounder, samples: Sequence[Sample], **options: Any) -> GroundingLoader:
    """Return a loader with evaluation transforms, in batches that are the same for any number of processes.

    Args:
        model: whose tokenizer and image size it uses.
        samples: loaded once each, in order.
        options: of `GroundingLoader`, such as `batch_size` and `rank`.
    """
    return GroundingLoader(samples, model.tokenize, image_size=model.image_size, phrases_per_image=16, **options)


def split_negatives(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Separate prediction rows from those of negative pairs, which have no target."""
    negatives = [{k: row[k] for k in ("image", "phrase", "box", "score")} for row in rows if row.get("negative")]
    return [row for row in rows if not row.get("negative")], negatives


def with_misses(rows: Sequence[Row], samples: Sequence[Sample]) -> list[Row]:
    """Return prediction rows with a miss for each sample that has none because its image could not be read."""
    known = Counter((row["image"], row["phrase"], row["id"], tuple(row["target"])) for row in rows)
    missed = []
    for sample in samples:
        key = (str(sample.image), sample.phrase, sample.id, tuple(sample.box))
        known[key] -= 1
        if known[key] < 0:
            missed.append(prediction_row(sample, None, 0.0, None))
    return [*rows, *missed]


def _warn_unread(read: Sequence[Row], rows: Sequence[Row], name: str) -> int:
    """Count and name the images that could not be read; raise InputError if there is no other."""
    unread = sorted({row["image"] for row in rows[len(read) :]})
    if not read:
        raise InputError(f"None of the images of {name} can be read (first: {unread[0]}). Check --root and the files.")
    if unread:
        warnings.warn(
            f"{len(unread)} images of {name} cannot be read and their phrases count as misses (first: {unread[0]}).",
            stacklevel=3,
        )
    return len(unread)


def score_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Compute all metrics of prediction rows, the same to the last digit in any order of them.

    Returns:
        n and the values of `Metrics`; `intervals` of each (95 %, bootstrap over images); `slices`, metrics by title and
        name; and `metadata`: a hash of the samples, number of images, and the version that computed it.
    """
    rows = sorted(rows, key=row_order)
    metrics = asdict(Metrics.of(rows))
    images = [row["image"] for row in rows]
    values = row_metrics(rows)
    intervals = mean_intervals(images, np.stack(list(values.values()), -1))
    return metrics | {
        "intervals": dict(zip(values, intervals, strict=True)),
        "slices": {
            title: {name: asdict(Metrics.of(part)) for name, part in parts.items()}
            for title, parts in slices(rows).items()
        },
        "metadata": {"data_sha256": data_sha256(rows), "images": len(set(images)), "epmvg": __version__},
    }


def row_order(row: Row) -> tuple[Any, ...]:
    """Return a sort key, so that results do not depend on the order of rows."""
    return row["image"], row["phrase"], str(row["id"]), list(row["target"]), row["box"] or []
