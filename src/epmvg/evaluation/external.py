"""Score external predictions: a file of any system's boxes, with the metrics that `epmvg evaluate` gives a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from epmvg.core.files import check_not_input, write_rows
from epmvg.core.geometry import Clip
from epmvg.core.images import ImageFile
from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.fields import four_numbers, short_repr
from epmvg.data.registry import open_samples
from epmvg.evaluation.evaluate import Row, ious, prediction_row, row_order, score_rows
from epmvg.evaluation.external_formats import FORMATS, Coordinates, ExternalPrediction, Format, Size, read_predictions
from epmvg.evaluation.metrics import PROTOCOLS, row_metrics
from epmvg.evaluation.samples import plain_phrase, short_name
from epmvg.evaluation.statistics import difference

Targets = Literal["own", "any"]
"""The target of a phrase with several boxes: the sample's own box, or that of `boxes` with the highest IoU."""

_FEW = 10  # boxes that may all be small or wrong by chance
_TOLERATED = 0.1  # fraction of implausible boxes without a warning


def score(
    predictions: Path | str,
    *,
    data: str,
    split: str | None = None,
    root: str | None = None,
    form: Format = "jsonl",
    coordinates: str | None = None,
    targets: Targets = "own",
    against: Path | str | None = None,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Score a file of predictions on a data set, exactly one per sample; one without a readable box is a miss.

    Boxes are clipped to the image, unless `evaluate` clipped those of both files to the canvas. Images are opened where
    the annotations state no size.

    Args:
        predictions: the file.
        data: a data set's name or file.
        split: of that data; None takes all samples.
        root: folder of the data.
        form: jsonl (as `epmvg evaluate` and `epmvg predict --out` write it), coco (a list of results) or text.
        coordinates: unit and order of the numbers, for example "0-1000:xyxy"; required for text.
        targets: the target of a phrase with several boxes: the sample's own box (own), or any of its `boxes` (any).
        against: predictions of another system on the same data, as our JSONL, to compare with.
        out: JSONL file to write the scored predictions to, with boxes in pixels.

    Returns:
        data, split, protocol; what `evaluate.score_rows` returns; `warnings` about implausible boxes; `unreadable`,
        the predictions without a box; and `against` with `metrics`: for each metric points (first minus other, in
        percentage points), low, high (95 %), images, phrases and p.

    Raises:
        InputError: a file cannot be read, a prediction is missing, repeated or of no sample, most boxes are
            implausible, or `out` is one of the inputs.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form} is not known. Give one of {', '.join(FORMATS)}.")
    if targets not in get_args(Targets):
        raise InputError(f"--targets {targets} is not known. Give one of {', '.join(get_args(Targets))}.")
    if out is not None:
        check_not_input(out, predictions, against, data)
    named = coordinates or FORMATS[form]
    if named is None:
        raise InputError("--format text needs --coordinates. Name unit and order of the numbers, like 0-1000:xyxy.")
    samples = open_samples(data, split=split, root=root)
    own, pixels = Coordinates.named(named), Coordinates.named("pixels:xyxy")
    matched = match(samples, read_predictions(Path(predictions), form, own), Path(predictions))
    other = [] if against is None else match(samples, read_predictions(Path(against), "jsonl", pixels), Path(against))
    clip: Clip = "canvas" if all(one.clip == "canvas" for one in [*matched, *other] if one.corners) else "image"
    rows, notes = _make_rows(Path(predictions), own, samples, matched, targets, clip)
    protocol = PROTOCOLS[clip] if targets == "own" else f"{PROTOCOLS[clip]}, the best of a phrase's boxes as its target"
    result = {"data": short_name(data), "split": split or "all", "protocol": protocol} | score_rows(rows) | notes
    if against is not None:
        others, other_notes = _make_rows(Path(against), pixels, samples, other, targets, clip)
        result["against"] = {"file": str(against), "metrics": _differences(rows, others)} | other_notes
    if out is not None:
        write_rows(Path(out), rows)
    return result


def _differences(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Any]:
    """Return by metric how much better the first are, of rows of the same samples in the same order."""
    images, first, second = [row["image"] for row in rows], row_metrics(rows), row_metrics(others)
    gains = {name: (100.0 * (first[name] - second[name])).tolist() for name in first}
    return {name: asdict(difference(images, gain)) for name, gain in gains.items()}


def _make_rows(
    file: Path,
    convention: Coordinates,
    samples: Sequence[Sample],
    predictions: Sequence[ExternalPrediction],
    targets: Targets,
    clip: Clip,
) -> tuple[list[Row], dict[str, Any]]:
    """Return a file's predictions as prediction rows in a fixed order, and its `warnings` and `unreadable` lines."""
    sizes = _image_sizes(samples, predictions)
    boxes = [
        convention.to_pixels(one.corners, size, one.input_size) if one.corners and size else None
        for one, size in zip(predictions, sizes, strict=True)
    ]
    corners = [one.corners for one in predictions if one.corners]
    in_image = [None if one.clip == "canvas" else size for one, size in zip(predictions, sizes, strict=True)]
    warnings = _check_coordinates(file, convention, corners, boxes, in_image)
    if clip == "image" and any(one.clip == "canvas" for one in predictions):
        warnings.append("Boxes were clipped to the canvas, and are clipped to the image here, as not all of both are.")
    rows = []
    for sample, prediction, box, size in zip(samples, predictions, boxes, sizes, strict=True):
        clipped = None if not box or not size else _clip(box, size) if clip == "image" else list(box)
        own = [sample.box] if targets == "own" else target_boxes(sample)
        iou = max(ious([clipped] * len(own), own)) if clipped else 0.0
        row = prediction_row(sample, clipped, iou, prediction.score, clip)
        row |= {"targets": [list(target) for target in own]} if targets == "any" else {}
        rows.append(row if clipped else row | {"error": prediction.error})
    unreadable = [f"{one.location}: {one.error}" for one in predictions if not one.corners]
    return sorted(rows, key=row_order), {"warnings": warnings, "unreadable": unreadable}


def _image_sizes(samples: Sequence[Sample], predictions: Sequence[ExternalPrediction]) -> list[Size | None]:
    """Return the size of each sample's image, opening it where no size is stated; None where there is no box."""
    opened: dict[Path, Size] = {}
    for sample, prediction in zip(samples, predictions, strict=True):
        if not sample.size and prediction.corners and sample.image not in opened:
            with ImageFile(sample.image) as image:
                opened[sample.image] = image.size
    return [sample.size or opened.get(sample.image) for sample in samples]


def _clip(box: Box, size: Size) -> list[float]:
    return [min(max(edge, 0.0), size[number % 2]) for number, edge in enumerate(box)]


def _name(sample: Sample) -> str:
    """Return the name of a sample in a message."""
    return f"{f'id {short_repr(sample.id)}, ' if sample.id else ''}{short_repr(sample.phrase)} of {sample.image.name}"


def target_boxes(sample: Sample) -> list[Box]:
    """Return all boxes of a phrase, xyxy: those that the sample states as `boxes` [x, y, w, h], else its one box.

    Raises:
        InputError: the sample states more boxes (`n_boxes`) than it holds.
    """
    stated = sample.extra.get("boxes")
    boxes = [sample.box]
    if isinstance(stated, list):
        boxes = sorted((x, y, x + w, y + h) for x, y, w, h in filter(None, map(four_numbers, stated)))
    expected = sample.extra.get("n_boxes", len(boxes))
    if len(boxes) != expected or not boxes:
        counts = f"{short_repr(expected)} boxes, of which the data holds {len(boxes)}"
        raise InputError(f"{_name(sample)} has {counts}. Use `flickr30k`, which holds all, or --targets own.")
    return boxes


def _check_coordinates(
    file: Path,
    convention: Coordinates,
    corners: Sequence[Box],
    boxes: Sequence[Box | None],
    sizes: Sequence[Size | None],
) -> list[str]:
    """Return a warning where more than a tenth of the boxes are implausible; raise InputError where most are.

    `corners` are in the unit of the file, `boxes` in pixels, with the `sizes` of their images.
    """
    span, n = convention.span, len(corners)
    outside = sum(span is not None and (max(box) > 1.1 * span or min(box) < -0.1 * span) for box in corners)
    beyond = sum(_is_beyond(box, size) for box, size in zip(boxes, sizes, strict=True) if box and size)
    counts = {
        "end before they begin": sum(x1 < x0 or y1 < y0 for x0, y0, x1, y1 in corners),
        f"are outside 0 to {span or 0:g}": outside,
        "have no number above 1": n * (n >= _FEW and span != 1 and max(map(max, corners)) <= 1),
        "reach beyond their image": beyond,
    }
    warnings = [f"{count:,} of {n:,} boxes {problem}" for problem, count in counts.items() if count > _TOLERATED * n]
    *implausible, _ = counts.values()
    if 2 * max(implausible) > n and (n >= _FEW or 2 * outside > n):
        raise InputError(f"{file}, read as {convention}: {warnings[0]}. Name unit and order with --coordinates.")
    return [f"Read as {convention}, {' and '.join(warnings)}. Check --coordinates."] if warnings else []


def _is_beyond(box: Box, size: Size) -> bool:
    """Return whether a box exceeds its image by more than 1 % of the side and a pixel."""
    sides = (size[number % 2] for number in range(4))
    return any(not -0.01 * side - 1 <= edge <= 1.01 * side + 1 for edge, side in zip(box, sides, strict=True))


def match(samples: Sequence[Sample], predictions: Sequence[ExternalPrediction], file: Path) -> list[ExternalPrediction]:
    """Return the prediction for each sample, by id, else by image and phrase.

    An image is identified by the last parts of its path, as many as the data's images need to differ. Letter case and
    spaces of phrases are ignored.

    Raises:
        InputError: a prediction matches no sample or repeats another, several cannot be told apart, or a sample has
            none.
    """
    index = _SampleIndex(samples)
    groups: dict[tuple[int, ...], list[ExternalPrediction]] = {}
    for prediction in predictions:
        groups.setdefault(tuple(index.find(prediction)), []).append(prediction)
    matched: dict[int, ExternalPrediction] = {}
    for numbers, group in groups.items():
        name = _name(samples[numbers[0]])
        if len(group) > len(numbers):
            raise InputError(f"{group[-1].location} predicts {name} again. Give one prediction per sample.")
        if len({samples[number].box for number in numbers}) > 1 and len({one.corners for one in group}) > 1:
            raise InputError(f'{name} occurs {len(numbers)} times with other boxes. Give each prediction its "id".')
        matched |= dict(zip(numbers, group, strict=False))
    missing = [_name(sample) for number, sample in enumerate(samples) if number not in matched]
    if missing:
        count = f"{len(missing):,} of the {len(samples):,} samples"
        raise InputError(f'{file} has no prediction for {count}, the first {missing[0]}. Add them with "box": null.')
    return [matched[number] for number in range(len(samples))]


class _SampleIndex:
    """Samples by id, and by image and phrase."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        images = {sample.image for sample in samples}
        depths = range(1, 1000)
        self.depth = next(depth for depth in depths if len({image.parts[-depth:] for image in images}) == len(images))
        self.by_id: dict[str, list[int]] = {}
        self.by_phrase: dict[tuple[tuple[str, ...], str], list[int]] = {}
        for number, sample in enumerate(samples):
            if sample_id := sample.id or str(sample.extra.get("ann_id", "")):
                self.by_id.setdefault(sample_id, []).append(number)
            self.by_phrase.setdefault((self._tail(sample.image), plain_phrase(sample.phrase)), []).append(number)

    def _tail(self, image: PurePath) -> tuple[str, ...]:
        return image.parts[-self.depth :]

    def find(self, prediction: ExternalPrediction) -> list[int]:
        """Return the numbers of the samples that a prediction may be of.

        Raises:
            InputError: there is none.
        """
        image = None if prediction.image is None else self._tail(PurePath(prediction.image))
        phrase = None if prediction.phrase is None else plain_phrase(prediction.phrase)
        if prediction.id and self.by_id:
            key = f"id {short_repr(prediction.id)}"
            found = [number for number in self.by_id.get(prediction.id, ()) if self._agrees(number, image, phrase)]
        elif image is None or phrase is None:
            raise InputError(f'{prediction.location} has no "image" and "phrase". Add them, as the data has no ids.')
        else:
            key = "image and phrase"
            found = self.by_phrase.get((image, phrase), [])
        if not found:
            words = f" ({short_repr(prediction.phrase)})" if prediction.phrase else ""
            raise InputError(f"{prediction.location}: the data has no sample with this {key}{words}. Check --data.")
        found = [number for number in found if self.samples[number].phrase == prediction.phrase] or found
        return [number for number in found if self.samples[number].box == prediction.target] or found

    def _agrees(self, number: int, image: tuple[str, ...] | None, phrase: str | None) -> bool:
        sample = self.samples[number]
        return phrase in (None, plain_phrase(sample.phrase)) and image in (None, self._tail(sample.image))
