"""Label images with a model: boxes of given phrases or of those in captions, as training data for a smaller model."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from epmvg.core.boxes import box_iou
from epmvg.core.calibration import Calibration
from epmvg.core.locate import locate
from epmvg.core.types import InputError, Progress, Sample
from epmvg.data.convert import write_samples
from epmvg.data.noun_phrases import noun_phrases
from epmvg.data.readers.texts import read_texts
from epmvg.data.split import assign_splits
from epmvg.inference.batch import batched, digest_of, predict_into
from epmvg.inference.batch_output import PartialOutput, Row, check_out, open_partial
from epmvg.inference.predictor import MinScore, Predictor
from epmvg.inference.sources import Query

AGREEMENT = 0.5
"""IoU from which two models agree on a box."""

SPLITS = {"train": 0.9, "val": 0.1}
"""Fractions of the labeled images; there is no test split, since labels of a model are no truth to evaluate on."""

LOWEST = 0.25
"""Fraction of the boxes of a model without calibration that is left out, those with the lowest confidences."""

_MIN_WEIGHT = 1e-4  # confidences are rounded to four digits


class Threshold(NamedTuple):
    """The confidence from which boxes are kept, and why this one."""

    value: float
    reason: str


def label_images(
    images: Path | str,
    out: Path | str,
    runs: Sequence[Path | str],
    *,
    phrases: Path | None = None,
    captions: Path | None = None,
    min_score: MinScore = "auto",
    batch_size: int = 16,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label images with the boxes of a model, and write those that are kept as a JSONL data set with splits.

    Each image is encoded once per model. Rows of interrupted work are kept in `<out>.part`, of which every model's are
    reused when the call is repeated, with another `min_score` too. A sample has the confidence as `score` and, where it
    is calibrated, as its `weight` in training.

    Args:
        images: the folder that the image names in the file of phrases or captions are relative to.
        out: the .jsonl file to write.
        runs: the model whose boxes are written, as for `Predictor`, and perhaps a second one that has to agree.
        phrases, captions: one of them: the file with the phrases, or with captions whose noun phrases are labeled, as
            for `read_texts`. A phrase that an image has twice is labeled once.
        min_score: the first model's lowest confidence that is kept. "auto": the threshold of its calibration; 0.5 where
            that has none; without a calibration the lowest quarter of all confidences is left out.
        batch_size: images per batch.
        device: device of torch.
        progress: called with (finished rows, all rows).

    Returns:
        labeled (boxes), kept, images (of these), dropped (why -> number), first_error, is_weighted, resumed (rows of
        earlier starts), to (the file), and root (the folder that image paths in it are relative to).

    Raises:
        InputError: a file, model or image folder cannot be used, nothing is kept, or the images that are kept are too
            few for two splits. The rows are kept.
        KeyboardInterrupt: its message names what is kept.
    """
    folder, out = Path(images), Path(out)
    file = phrases or captions
    if file is None or (phrases is not None and captions is not None):
        raise InputError("Phrases come from one file. Give --phrases FILE or --captions FILE.")
    check_out(out, [file])
    if len(runs) not in (1, 2):
        raise InputError(f"{len(runs)} models are given with --with. Give one, or two that have to agree.")
    for run in runs:
        locate(run)
    queries = _read_queries(folder, file, are_captions=phrases is None)
    with open_partial(out) as output:
        try:
            labels = []
            for number, run in enumerate(runs):
                start, total = number * len(queries), len(runs) * len(queries)
                shifted = None if progress is None else _shifted(progress, start, total)
                labels.append(_predict(run, queries, output, min_score, batch_size, device, shifted))
            calibration = labels[0][1]
            threshold = _threshold(min_score, calibration, output.read(labels[0][0]))
            is_weighted = calibration is not None and calibration.changes_scores
            rows = zip(*(output.read(offsets) for offsets, _ in labels), strict=True)
            samples, dropped, first_error = _select(rows, threshold, is_weighted)
            if not samples:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
                raise InputError(f"None of the {len(queries):,} boxes is kept ({reasons}). Lower --min-score.")
            samples = assign_splits(samples, SPLITS)
            root = write_samples(out, samples, folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(output.describe()) from None
    counts: dict[str, Any] = {
        "labeled": len(queries),
        "kept": len(samples),
        "images": len({sample.image for sample in samples}),
    }
    counts |= {"dropped": dict(dropped), "first_error": first_error, "is_weighted": is_weighted}
    return counts | {"resumed": output.reused, "to": str(out), "root": str(root)}


def _read_queries(folder: Path, file: Path, *, are_captions: bool) -> list[Query]:
    """Return the different phrases of each image, images in the order of the file."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder of the images.")
    key = "caption" if are_captions else "phrase"
    texts = read_texts(file, key, folder)
    if are_captions:
        texts = {image: [phrase for text in own for phrase in noun_phrases(text)] for image, own in texts.items()}
    queries = [Query.checked(image, phrase) for image, own in texts.items() for phrase in _different(own)]
    if not queries:
        raise InputError(f"{file} has no phrases. Give lines with an image and a {key}.")
    return queries


def _different(phrases: Iterable[str]) -> list[str]:
    """Return phrases on one line, the first of those that differ in letter case only."""
    different: dict[str, str] = {}
    for phrase in phrases:
        words = " ".join(phrase.split())
        different.setdefault(words.casefold(), words)
    return list(different.values())


def _shifted(progress: Progress, start: int, total: int) -> Progress:
    return lambda done, _: progress(start + done, total)


def _predict(
    run: Path | str,
    queries: Sequence[Query],
    output: PartialOutput,
    min_score: MinScore,
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> tuple[array[int], Calibration | None]:
    """Predict the queries with one model -> where their rows begin, and its calibration."""
    predictor = Predictor(run, device=device)
    if min_score != "auto":
        predictor.resolve_min_score(min_score)
    offsets = predict_into(output, predictor, batched(queries, batch_size), digest_of(run), progress=progress)
    return offsets, predictor.runtime.calibration


def _threshold(min_score: MinScore, calibration: Calibration | None, rows: Iterable[Row]) -> Threshold:
    if min_score != "auto":
        return Threshold(min_score or 0.0, "as given")
    if calibration is not None and calibration.threshold is not None:
        return Threshold(calibration.threshold, "the model's calibrated threshold")
    if calibration is not None and calibration.changes_scores:
        return Threshold(0.5, "more likely wrong than right")
    scores = [row["score"] for row in rows if "error" not in row]
    lowest = float(np.quantile(scores, LOWEST, method="lower")) if scores else 0.0
    return Threshold(lowest, "the lowest quarter, as the model is not calibrated")


def _select(
    rows: Iterable[tuple[Row, ...]], threshold: Threshold, is_weighted: bool
) -> tuple[list[Sample], Counter[str], str]:
    """Return the samples that are kept, how many boxes are left out for which reason, and the first error."""
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    first_error = ""
    for row, *others in rows:
        reason = _why_dropped(row, others, threshold)
        if reason:
            dropped[reason] += 1
            first_error = first_error or row.get("error", "")
            continue
        weight = max(row["score"], _MIN_WEIGHT) if is_weighted else 1.0
        size, extra = (row["width"], row["height"]), {"score": row["score"]}
        samples.append(
            Sample(Path(row["image"]), row["phrase"], tuple(row["box"]), size=size, extra=extra, weight=weight)
        )
    return samples, dropped, first_error


def _why_dropped(row: Row, others: Sequence[Row], threshold: Threshold) -> str:
    """Return why a box is left out, "" where it is kept."""
    if "error" in row:
        return "whose image or phrase cannot be used"
    if row.get("unknown"):
        return "without a known word"
    if row["score"] < threshold.value:
        return f"with a confidence below {threshold.value:.2f} ({threshold.reason})"
    x0, y0, x1, y1 = row["box"]
    if x0 >= x1 or y0 >= y1:
        return "without area"
    for other in others:
        if "error" in other or box_iou(np.array([row["box"]]), np.array([other["box"]]))[0, 0] < AGREEMENT:
            return f"on which the models disagree (IoU below {AGREEMENT})"
    return ""
