"""Robustness of a run: accuracy under perturbations of phrases and images, paired with the clean predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epmvg.core.files import write_json, write_rows
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Progress, Sample
from epmvg.data.loader import group_by_image
from epmvg.evaluation.evaluate import Row, ious, prediction_row
from epmvg.evaluation.metrics import PROTOCOLS
from epmvg.evaluation.perturbations import IMAGE_PERTURBATIONS, OTHER_BOX, PHRASE_PERTURBATIONS, generator
from epmvg.evaluation.samples import evaluation_samples, limit_to_images, results_folder, results_stem, short_name
from epmvg.evaluation.statistics import accuracy, bootstrap, compare, pair
from epmvg.inference.predictor import Predictor

LIMIT = 1000  # phrases: minutes on a CPU, intervals of a few points
CLEAN = "clean"
BATCH = 64  # phrases in one forward pass

Found = tuple[list[float], float]
"""A box in pixels of the upright image, and its confidence."""


def measure_robustness(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    limit: int = LIMIT,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a run on perturbed phrases and images; write `robustness-DATA-SPLIT.json`, predictions to `.jsonl`.

    Args:
        run, data, split, root, device: as for `evaluate`.
        limit: most phrases, of images drawn at random.
        seed: of the images and of all perturbations.
        progress: called with (images done, all of them).

    Returns:
        data, split, protocol, seed; `skipped`, why images were skipped; `clean` (n, images, acc50, acc50_interval);
        `perturbations`, the result of `perturbation_metrics` for each; and `predictions`, the name of the file of them.

    Raises:
        InputError: the run or the data cannot be read, none of the images can, or `limit` is below 1.
    """
    if limit < 1:
        raise InputError(f"limit={limit} leaves no phrase. Give 1 or more.")
    settings, split, samples = evaluation_samples(run, data, split, root)
    results_folder(run)  # an error in it is raised before the work
    predictor = Predictor(run, device=device)
    samples = limit_to_images(samples, limit, seed)
    by_image = group_by_image(samples)
    rows: dict[str, list[Row]] = {CLEAN: []}
    skipped: list[str] = []
    for done, (path, numbers) in enumerate(by_image.items(), 1):
        try:
            for row in query_image(predictor, open_image(path), [samples[number] for number in numbers], seed):
                rows.setdefault(row["perturbation"], []).append(row)
        except InputError as error:
            skipped.append(str(error))
        if progress:
            progress(done, len(by_image))
    clean = rows[CLEAN]
    if not clean:
        raise InputError(f"None of the images can be opened; the first: {skipped[0]}")
    stem = f"robustness-{results_stem(run, settings, split)}"
    result: dict[str, Any] = {"data": short_name(settings.name), "split": split or "all"}
    result |= {"protocol": PROTOCOLS["image"], "seed": seed, "skipped": skipped, "predictions": f"{stem}.jsonl"}
    images = len({row["image"] for row in clean})
    result["clean"] = {"n": len(clean), "images": images, "acc50": accuracy(clean), "acc50_interval": bootstrap(clean)}
    names = [*PHRASE_PERTURBATIONS, *IMAGE_PERTURBATIONS]
    result["perturbations"] = [perturbation_metrics(name, rows.get(name, []), clean) for name in names]
    folder = results_folder(run, create=True)
    write_rows(folder / result["predictions"], [row for part in rows.values() for row in part])
    write_json(folder / f"{stem}.json", result)
    return result


def query_image(predictor: Predictor, image: Image.Image, samples: Sequence[Sample], seed: int) -> list[Row]:
    """Predict the phrases of one image, upright RGB: as they are, and under each perturbation.

    Returns:
        A prediction row for each query, with `perturbation`, its name; `queried`, the perturbed phrase; and
        `agreement`, the IoU with the box of the clean query.
    """
    phrases = [sample.phrase for sample in samples]
    clean = _find(predictor, image, phrases)
    rows = _rows(CLEAN, samples, phrases, clean, clean)
    for name, reword in PHRASE_PERTURBATIONS.items():
        reworded = [reword(phrase, generator(seed, name, phrase)) for phrase in phrases]
        changed = [(i, made) for i, made in enumerate(reworded) if made is not None and made != phrases[i]]
        numbers, queried = [i for i, _ in changed], [made for _, made in changed]
        found = _find(predictor, image, queried)  # the image is encoded once
        rows += _rows(name, [samples[i] for i in numbers], queried, found, [clean[i] for i in numbers])
    for name, change in IMAGE_PERTURBATIONS.items():
        changed_image = change(image, generator(seed, name, samples[0].image.name))
        if changed_image is not None:
            scale = [image.size[i % 2] / changed_image.size[i % 2] for i in range(4)]
            scaled = [
                ([edge * by for edge, by in zip(box, scale, strict=True)], score)
                for box, score in _find(predictor, changed_image, phrases)
            ]
            rows += _rows(name, samples, phrases, scaled, clean)
    return rows


def _find(predictor: Predictor, image: Image.Image, phrases: Sequence[str]) -> list[Found]:
    found: list[Found] = []
    for start in range(0, len(phrases), BATCH):
        output = predictor.predict_boxes(image, phrases[start : start + BATCH])
        found += zip(output.boxes.tolist(), output.scores.tolist(), strict=True)
    return found


def _rows(
    name: str, samples: Sequence[Sample], queried: Sequence[str], found: Sequence[Found], clean: Sequence[Found]
) -> list[Row]:
    boxes, clean_boxes = ([box for box, _ in each] for each in (found, clean))
    targets, agreements = ious(boxes, [sample.box for sample in samples]), ious(boxes, clean_boxes)
    return [
        prediction_row(sample, [round(edge, 3) for edge in boxes[i]], targets[i], found[i][1])
        | {"perturbation": name, "queried": queried[i]}
        | {"agreement": 1.0 if boxes[i] == clean_boxes[i] else agreements[i]}  # an empty box agrees with itself
        for i, sample in enumerate(samples)
    ]


def has_moved(row: Mapping[str, Any]) -> bool:
    """Return whether the box of a perturbed query has an IoU below 0.5 with that of the clean one."""
    return float(row["agreement"]) < 0.5


def perturbation_metrics(name: str, rows: Sequence[Row], clean: Sequence[Row]) -> dict[str, Any]:
    """Compare the rows of a perturbation with the clean rows of the same phrases.

    Returns:
        name, expects (same or other box), n (phrases that it changes), and unless n is 0: clean_acc50, acc50,
        acc50_interval, difference (points, low, high: perturbed minus clean), moved (fraction of boxes that moved)
        and moved_interval.
    """
    expects = "other" if name in OTHER_BOX else "same"
    result: dict[str, Any] = {"name": name, "expects": expects, "n": len(rows)}
    if not rows:
        return result
    difference = compare(clean, rows)
    return result | {
        "clean_acc50": accuracy([before for before, _ in pair(clean, rows)]),
        "acc50": accuracy(rows),
        "acc50_interval": bootstrap(rows),
        "difference": {"points": difference.points, "low": difference.low, "high": difference.high},
        "moved": float(np.mean([has_moved(row) for row in rows])),
        "moved_interval": bootstrap(rows, value=has_moved),
    }
