"""Robustness of a run: accuracy under perturbations of phrases and images, and rejection of absent phrases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epmvg.core.calibration import Calibration, auroc, interval
from epmvg.core.files import write_json, write_rows
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Progress, Sample
from epmvg.data.negatives import negative_samples
from epmvg.evaluation.evaluate import PROTOCOL, overlaps
from epmvg.evaluation.metrics import Row, is_hit
from epmvg.evaluation.perturbations import IMAGE_PERTURBATIONS, PHRASE_PERTURBATIONS, Perturbation, generator
from epmvg.evaluation.samples import (
    make_results_folder,
    of_some_images,
    results_folder,
    rows_to_ask,
    short_name,
    stem_of,
)
from epmvg.evaluation.statistics import accuracy, bootstrap, compare, pair
from epmvg.inference.predictor import Predictor

LIMIT = 1000  # phrases: minutes on a CPU, intervals of a few points
CLEAN, ABSENT = "clean", "absent"
BATCH = 64  # phrases of one forward pass
SAME_BOX = 0.5  # the IoU from which on two predicted boxes count as one
CLEAN_KEPT = 0.9  # of the clean phrases, where no threshold is stored

Found = tuple[Sequence[float], float]
"""A box in pixels of the upright image, and its score."""


def measure_robustness(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    split_key: str | None = None,
    limit: int = LIMIT,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Evaluate a run on perturbed phrases and images, beside the same ones as they are.

    Writes `robustness-<data>-<split>.json` and `.jsonl` (every prediction) into its folder.

    Args:
        run: a folder that training wrote, or what else `Predictor` takes.
        data, split, root, split_key: as for `evaluate`.
        limit: most phrases, of images drawn at random.
        seed: of the images and of all perturbations.
        device: where to compute (`hardware.select_device`).
        progress: called with (images done, all of them).

    Returns:
        The result: data, split, protocol, seed, `skipped` (why images were left out), `clean` (n, images, acc50),
        `perturbations` (docs/robustness.md), `absent`, and `rows`, the name of the file of predictions; and the rows
        by the name of the perturbation.

    Raises:
        InputError: the run or the data cannot be read, none of the images can, or `limit` is below 1.
    """
    if limit < 1:
        raise InputError(f"limit={limit} leaves no phrase to query: give 1 or more.")
    settings, split, every = rows_to_ask(run, data, split, root, split_key)
    results_folder(run)  # whether it can be had is said before an hour's work
    records = of_some_images(every, limit, seed)
    predictor = Predictor(run, device=device)
    rows, skipped = _query_all(predictor, records, negative_samples(records, 0.25, seed=seed), seed, progress)
    clean = rows[CLEAN]
    stem = f"robustness-{stem_of(run, settings, split)}"
    perturbations = [("phrase", each) for each in PHRASE_PERTURBATIONS] + [("image", e) for e in IMAGE_PERTURBATIONS]
    result: dict[str, Any] = {
        "rows": f"{stem}.jsonl",
        "data": short_name(settings.name),
        "split": split or "all",
        "protocol": PROTOCOL,
        "seed": seed,
        "skipped": skipped,
        "clean": {
            "n": len(clean),
            "images": len({row["image"] for row in clean}),
            "acc50": accuracy(clean),
            "acc50_interval": list(bootstrap(clean)),
        },
        "perturbations": [
            perturbation_metrics(each, kind, rows.get(each.name, []), clean) for kind, each in perturbations
        ],
        "absent": absent_metrics(clean, rows.get(ABSENT, []), predictor.runtime.calibration),
    }
    folder = make_results_folder(run)
    write_rows(folder / result["rows"], [row for part in rows.values() for row in part])
    write_json(folder / f"{stem}.json", result)
    return result, rows


def _query_all(
    predictor: Predictor, records: list[Sample], absent: list[Sample], seed: int, progress: Progress | None
) -> tuple[dict[str, list[Row]], list[str]]:
    """Return rows by the name of the perturbation, and why images were skipped."""
    by_image: dict[Path, tuple[list[Sample], list[Sample]]] = {record.image: ([], []) for record in records}
    for kind, some in enumerate((records, absent)):
        for record in some:
            by_image[record.image][kind].append(record)
    rows: dict[str, list[Row]] = {}
    skipped: list[str] = []
    for done, (image, (own, foreign)) in enumerate(by_image.items(), 1):
        try:
            picture = open_image(image)
        except InputError as error:
            skipped.append(str(error))
            continue
        for row in query_image(predictor, picture, own, foreign, seed):
            rows.setdefault(row["perturbation"], []).append(row)
        if progress:
            progress(done, len(by_image))
    if not rows:
        raise InputError(f"None of the images can be opened; the first: {skipped[0]}")
    return rows, skipped


def query_image(
    predictor: Predictor, image: Image.Image, records: Sequence[Sample], absent: Sequence[Sample], seed: int
) -> list[Row]:
    """Query one image: as it is, under each perturbation, and for phrases of other images.

    Args:
        predictor: of the run.
        image: upright RGB.
        records: all samples of this image.
        absent: phrases that name nothing in it.
        seed: of all perturbations.

    Returns:
        A row for each query, with `perturbation`, its name; `queried`, the perturbed phrase; and `agreement`, the IoU
        with the box of the clean query.
    """
    phrases = [record.phrase for record in records]
    clean = _find(predictor, image, phrases)
    rows = _rows(CLEAN, records, phrases, clean, clean)
    changed = [
        (each.name, number, made)
        for each in PHRASE_PERTURBATIONS
        for number, phrase in enumerate(phrases)
        if (made := each.apply(phrase, generator(seed, each.name, phrase))) not in (None, phrase)
    ]
    wanted = sorted({made for _, _, made in changed} | {record.phrase for record in absent}, key=lambda p: (len(p), p))
    found = dict(zip(wanted, _find(predictor, image, wanted), strict=True))
    for name, number, made in changed:
        own = slice(number, number + 1)
        rows += _rows(name, records[own], [made], [found[made]], clean[own])
    for record in absent:
        rows += _rows(ABSENT, [record], [record.phrase], [found[record.phrase]], [found[record.phrase]])
    for perturbation in IMAGE_PERTURBATIONS:
        picture = perturb_image(perturbation, image, records[0].image, seed)
        if picture is not None:
            scale = [image.size[side % 2] / picture.size[side % 2] for side in range(4)]
            moved = [
                ([v * s for v, s in zip(box, scale, strict=True)], score)
                for box, score in _find(predictor, picture, phrases)
            ]
            rows += _rows(perturbation.name, records, phrases, moved, clean)
    return rows


def perturb_image(
    perturbation: Perturbation[Image.Image], image: Image.Image, path: Path, seed: int
) -> Image.Image | None:
    """Return the perturbed image, the same at every call; None where there is nothing to change."""
    return perturbation.apply(image, generator(seed, perturbation.name, path.name))


def _find(predictor: Predictor, image: Image.Image, phrases: Sequence[str]) -> list[Found]:
    """Query phrases in batches; those of like length together, since all are padded to the longest."""
    found: list[Found] = []
    for start in range(0, len(phrases), BATCH):
        found += zip(*predictor.predict_boxes(image, phrases[start : start + BATCH]), strict=True)
    return found


def _rows(
    name: str, records: Sequence[Sample], queried: Sequence[str], found: Sequence[Found], clean: Sequence[Found]
) -> list[Row]:
    boxes, before = ([list(box) for box, _ in each] for each in (found, clean))
    ious, agreements = overlaps(boxes, [record.box for record in records]), overlaps(boxes, before)
    return [
        {
            "perturbation": name,
            "image": str(record.image),
            "phrase": record.phrase,
            "queried": queried[i],
            "box": [round(edge, 3) for edge in boxes[i]],
            "target": list(record.box),
            "iou": ious[i],
            "score": found[i][1],
            "agreement": 1.0 if boxes[i] == before[i] else agreements[i],  # an empty box also agrees with itself
            "id": record.id,
        }
        for i, record in enumerate(records)
    ]


def has_moved(row: Row) -> bool:
    """Return whether the box of a perturbed query is another than that of the clean one."""
    return float(row["agreement"]) < SAME_BOX


def perturbation_metrics(
    perturbation: Perturbation[Any], kind: str, rows: Sequence[Row], clean: Sequence[Row]
) -> dict[str, Any]:
    """Score one perturbation against the clean queries of the same phrases; `why` where it changed none."""
    named: dict[str, Any] = {"name": perturbation.name, "kind": kind, "about": perturbation.about}
    named |= {"expects": perturbation.expects, "n": len(rows), "unchanged": len(clean) - len(rows)}
    if not rows:
        return named | {"why": f"none of the {len(clean):,} has {perturbation.needs}"}
    difference = compare(clean, rows)
    return named | {
        "clean_acc50": accuracy([before for before, _ in pair(clean, rows)]),
        "acc50": accuracy(rows),
        "acc50_interval": list(bootstrap(rows)),
        "difference": {"points": difference.points, "low": difference.low, "high": difference.high},
        "moved": float(np.mean([has_moved(row) for row in rows])),
        "moved_interval": list(bootstrap(rows, score=has_moved)),
        "agreement": float(np.mean([row["agreement"] for row in rows])),
    }


def absent_metrics(clean: Sequence[Row], absent: Sequence[Row], calibration: Calibration | None) -> dict[str, Any]:
    """Score how well a lowest score rejects phrases that name nothing in their image.

    The threshold is the run's own; where none is stored, the one that this fraction of the clean phrases reaches.
    """
    counted: dict[str, Any] = {"n": len(absent)}
    if not absent:
        return counted | {"why": "no phrase is absent from another image, or none was wanted"}
    score = np.array([row["score"] for row in (*clean, *absent)], np.float64)
    belongs = np.arange(len(score)) < len(clean)
    if len(np.unique(score)) == 1:
        return counted | {"why": "the run gives every box the same score: it can reject nothing"}
    stored = calibration.threshold if calibration is not None else None
    threshold = stored if stored is not None else float(np.quantile(score[belongs], 1 - CLEAN_KEPT, method="lower"))
    images = [row["image"] for row in (*clean, *absent)]
    truth = belongs.astype(np.float64)
    return counted | {
        "threshold": threshold,
        "threshold_from": "confidence.json" if stored is not None else f"{CLEAN_KEPT:.0%} of the clean phrases",
        "rejected": float((score[~belongs] < threshold).mean()),
        "rejected_interval": list(bootstrap(absent, score=lambda row: row["score"] < threshold)),
        "clean_rejected": float((score[belongs] < threshold).mean()),
        "auroc": auroc(score, truth),
        "auroc_interval": list(interval(images, lambda drawn: auroc(score, truth, drawn))),
    }


def worst(
    perturbation: Perturbation[Any], rows: Sequence[Row], clean: Sequence[Row], count: int
) -> list[tuple[Row, Row]]:
    """Choose pairs (clean, perturbed) to show, one per image: right before and wrong now, most IoU lost first.

    Where the box should have moved, those that were right before and stay where they are.
    """
    pairs = [(before, now) for before, now in pair(clean, rows) if is_hit(before)]
    if perturbation.expects == "other":
        pairs = [(before, now) for before, now in pairs if not has_moved(now)]
        pairs.sort(key=lambda both: -both[1]["agreement"])
    else:
        pairs = [(before, now) for before, now in pairs if not is_hit(now)]
        pairs.sort(key=lambda both: both[1]["iou"] - both[0]["iou"])
    return _one_per_image(pairs)[:count]


def surest(absent: Iterable[Row], count: int) -> list[Row]:
    """Choose the absent phrases with the highest scores, one per image."""
    ordered = sorted(absent, key=lambda row: -row["score"])
    return [row for row, _ in _one_per_image([(row, row) for row in ordered])[:count]]


def _one_per_image(pairs: Iterable[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    first: dict[str, tuple[Row, Row]] = {}
    for both in pairs:
        first.setdefault(both[0]["image"], both)
    return list(first.values())
