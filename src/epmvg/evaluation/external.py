"""Score external predictions: a file of any system's boxes, with the metrics that `epmvg evaluate` gives a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, get_args

from epmvg.core.files import check_not_input, write_rows
from epmvg.core.images import ImageFile
from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.fields import four_numbers, short_repr
from epmvg.data.readers.files import read_json
from epmvg.data.registry import open_samples
from epmvg.evaluation.evaluate import Row, ious, prediction_row, row_order, score_rows
from epmvg.evaluation.external_formats import FORMATS, Coordinates, ExternalPrediction, Format, Size, read_predictions
from epmvg.evaluation.metrics import BOX_FORMAT, TARGETS, Targets, row_metrics
from epmvg.evaluation.samples import short_name
from epmvg.evaluation.statistics import difference

_FEW = 10  # boxes that may all be small or wrong by chance
_TOLERATED = 0.1  # fraction of implausible boxes, or of outputs with several boxes, without a warning


def score(
    predictions: Path | str,
    *,
    data: str,
    split: str | None = None,
    root: str | None = None,
    form: Format = "jsonl",
    coordinates: str | None = None,
    targets: Targets = "rows",
    allow_partial: bool = False,
    against: Path | str | None = None,
    rows: Path | str | None = None,
) -> dict[str, Any]:
    """Score a file of predictions on a data set, exactly one per sample; one without a readable box is a miss.

    Args:
        predictions: the file.
        data: a data set's name or file.
        split: of that data; None takes all samples.
        root: folder of the data.
        form: jsonl (as `epmvg evaluate` and `epmvg predict --out` write it), coco (a list of results) or text.
        coordinates: unit and order of the numbers, for example "0-1000:xyxy"; required for text.
        targets: the target of a phrase with several boxes: the row's own box (rows), or any of its `boxes` (any).
        allow_partial: count samples without a prediction as misses instead of rejecting the file.
        against: predictions of another system on the same data, as our JSONL, to compare with.
        rows: JSONL file to write the scored rows to, with boxes in pixels.

    Returns:
        data, split, protocol; what `evaluate.score_rows` returns; `read` (format and coordinates); `warnings` about
        implausible boxes; `missing` and `unreadable`, the samples and predictions that count as misses;
        `multiple_boxes`, the number of outputs with more than one box; and `against` with `metrics`: for each metric
        points (first minus other, in percentage points), low, high (95 %), images, phrases and p.

    Raises:
        InputError: a file cannot be read, a prediction is missing, repeated or of no sample, most boxes are
            implausible, or `rows` is one of the inputs.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form} is not known: give one of {', '.join(FORMATS)}.")
    if targets not in get_args(Targets):
        raise InputError(f"--targets {targets} is not known: give one of {', '.join(TARGETS)}.")
    if rows is not None:
        check_not_input(rows, predictions, against, data)
    named = coordinates or FORMATS[form]
    if named is None:
        raise InputError("--format text needs --coordinates: name unit and order of the numbers, like 0-1000:xyxy.")
    convention = Coordinates.named(named)
    scorer = _Scorer(open_samples(data, split=split, root=root), data, targets, allow_partial)
    scored, account = scorer(Path(predictions), form, convention)
    protocol = f"IoU >= 0.5, {BOX_FORMAT}, neither box clipped, target: {TARGETS[targets]}"
    result: dict[str, Any] = {"data": short_name(data), "split": split or "all", "protocol": protocol}
    result |= score_rows(scored, targets=targets) | account
    if against is not None:
        other, other_account = scorer(Path(against), "jsonl", Coordinates.named("pixels:xyxy"))
        images = [row["image"] for row in scored]
        first, second = row_metrics(scored), row_metrics(other)
        gains = {name: (100.0 * (first[name] - second[name])).tolist() for name in first}
        metrics = {name: asdict(difference(images, gain)) for name, gain in gains.items()}
        result["against"] = {"file": str(against), "metrics": metrics} | other_account
    if rows is not None:
        write_rows(Path(rows), scored)
    return result


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Turns files of predictions on some samples into prediction rows."""

    samples: Sequence[Sample]
    data: str
    targets: Targets
    allow_partial: bool

    def __call__(self, file: Path, form: Format, convention: Coordinates) -> tuple[list[Row], dict[str, Any]]:
        """Return the rows of a file in a fixed order, and how it was read."""
        predictions = read_predictions(file, form, convention)
        matched = match(self.samples, predictions, self.data)
        missing = [_name(sample) for sample, one in zip(self.samples, matched, strict=True) if one is None]
        if missing and not self.allow_partial:
            raise InputError(
                f"{file} has no prediction for {len(missing):,} of the {len(self.samples):,} samples of {self.data},"
                f" the first {missing[0]}: add them, or count them as misses with allow_partial=True."
            )
        sizes = _image_sizes(self.samples, matched, convention)
        boxes = [
            convention.to_pixels(one.corners, size, one.input_size) if one and one.corners else None
            for one, size in zip(matched, sizes, strict=True)
        ]
        warnings = check_coordinates(file, convention, predictions, boxes, sizes)
        multiple = sum(one.boxes > 1 for one in predictions)
        if multiple > _TOLERATED * len(predictions):
            warnings.append(
                f"{multiple:,} of {len(predictions):,} outputs have several boxes, of which the first counts."
            )
        rows = [self._row(*each) for each in zip(self.samples, matched, boxes, strict=True)]
        return sorted(rows, key=row_order), {
            "read": {"format": form, "coordinates": str(convention)},
            "warnings": warnings,
            "missing": missing,
            "unreadable": [{"where": one.location, "why": one.error} for one in predictions if one.corners is None],
            "multiple_boxes": multiple,
        }

    def _row(self, sample: Sample, prediction: ExternalPrediction | None, box: Box | None) -> Row:
        targets = target_boxes(sample) if self.targets == "any" else [sample.box]
        iou = max(ious([box] * len(targets), targets)) if box else 0.0
        row = prediction_row(sample, list(box) if box else None, iou, prediction.score if prediction else None)
        if self.targets == "any":
            row["targets"] = [list(target) for target in targets]
        if box is None:
            row["error"] = prediction.error if prediction else "no prediction"
        return row


def _name(sample: Sample) -> str:
    """Return the name of a sample in a message."""
    return f"{f'id {short_repr(sample.id)}, ' if sample.id else ''}{short_repr(sample.phrase)} of {sample.image.name}"


def target_boxes(sample: Sample) -> list[Box]:
    """Return all boxes of a phrase, xyxy: those that the row states as `boxes` [x, y, w, h], else its one box.

    Raises:
        InputError: the row states more boxes (`n_boxes`) than it holds.
    """
    stated = sample.extra.get("boxes")
    boxes = [sample.box]
    if isinstance(stated, list):
        boxes = sorted((x, y, x + w, y + h) for x, y, w, h in filter(None, map(four_numbers, stated)))
    expected = sample.extra.get("n_boxes", len(boxes))
    if len(boxes) != expected or not boxes:
        raise InputError(
            f"{_name(sample)} has {short_repr(expected)} boxes, but its row holds {len(boxes)}: use `flickr30k`, whose"
            " rows hold all, or --targets rows."
        )
    return boxes


def _image_sizes(
    samples: Sequence[Sample], matched: Sequence[ExternalPrediction | None], convention: Coordinates
) -> list[Size | None]:
    """Return the size of each sample's image where it is stated or needed, opening images only for the latter."""
    opened: dict[Path, Size] = {}
    sizes: list[Size | None] = []
    for sample, prediction in zip(samples, matched, strict=True):
        size: Size | None = sample.size
        if not size and convention.unit != "pixels" and prediction and prediction.corners:
            if sample.image not in opened:
                with ImageFile(sample.image) as photo:
                    opened[sample.image] = photo.size
            size = opened[sample.image]
        sizes.append(size)
    return sizes


def check_coordinates(
    file: Path,
    convention: Coordinates,
    predictions: Sequence[ExternalPrediction],
    boxes: Sequence[Box | None],
    sizes: Sequence[Size | None],
) -> list[str]:
    """Return a warning where more than a tenth of the boxes are implausible in the named convention.

    Args:
        file: of the predictions.
        convention: their coordinates.
        predictions: all of the file.
        boxes: xyxy in pixels, None without a box, of each sample.
        sizes: of the samples' images, where they are known.

    Raises:
        InputError: most boxes are inverted or outside the range of the unit, or all numbers are fractions.
    """
    span = convention.span
    corners = [one.corners for one in predictions if one.corners]
    n = len(corners)
    outside = sum(span is not None and (max(box) > 1.1 * span or min(box) < -0.1 * span) for box in corners)
    sized = [(box, size) for box, size in zip(boxes, sizes, strict=True) if box and size]
    counts = {
        "end before they begin": sum(x1 < x0 or y1 < y0 for x0, y0, x1, y1 in corners),
        f"are outside 0 to {span or 0:g}": outside,
        "reach beyond their image": sum(_is_beyond(box, size) for box, size in sized),
        "have no number above 1": n * (n >= _FEW and span != 1 and max(map(max, corners)) <= 1),
    }
    warnings = [f"{count:,} of {n:,} boxes {problem}" for problem, count in counts.items() if count > _TOLERATED * n]
    implausible = max(count for problem, count in counts.items() if problem != "reach beyond their image")
    if 2 * implausible > n and (n >= _FEW or 2 * outside > n):
        raise InputError(f"{file}: read as {convention}, {warnings[0]}: name unit and order with --coordinates.")
    return [f"Read as {convention}, {' and '.join(warnings)}: check --coordinates."] if warnings else []


def _is_beyond(box: Box, size: Size) -> bool:
    """Return whether a box exceeds its image by more than 1 % of the side and a pixel."""
    (x0, y0, x1, y1), (width, height) = box, size
    x, y = 1 + 0.01 * width, 1 + 0.01 * height
    return min(x0, x1) < -x or min(y0, y1) < -y or max(x0, x1) > width + x or max(y0, y1) > height + y


def match(
    samples: Sequence[Sample], predictions: Sequence[ExternalPrediction], data: str
) -> list[ExternalPrediction | None]:
    """Return the prediction for each sample, None where there is none.

    A prediction is matched by id, else by image and phrase. An image is identified by the last parts of its path, as
    many as the data's images need to differ. Letter case and spaces of phrases are ignored.

    Raises:
        InputError: a prediction matches no sample or repeats another, or several cannot be told apart.
    """
    index = _SampleIndex(samples, data)
    groups: dict[tuple[int, ...], list[ExternalPrediction]] = {}
    for prediction in predictions:
        groups.setdefault(tuple(index.find(prediction)), []).append(prediction)
    matched: list[ExternalPrediction | None] = [None] * len(samples)
    for numbers, group in groups.items():
        sample = samples[numbers[0]]
        if len(group) > len(numbers):
            raise InputError(
                f"{group[len(numbers)].location} predicts {_name(sample)} again: give one prediction per sample."
            )
        if len({samples[number].box for number in numbers}) > 1 and len({one.corners for one in group}) > 1:
            raise InputError(
                f'{_name(sample)} occurs {len(numbers)} times with other boxes: give each prediction the "id" of its'
                " row."
            )
        for number, prediction in zip(numbers, group, strict=False):
            matched[number] = prediction
    return matched


class _SampleIndex:
    """Samples by id, and by image and phrase."""

    def __init__(self, samples: Sequence[Sample], data: str) -> None:
        self.samples, self.data = samples, data
        images = {sample.image for sample in samples}
        depths = range(1, 1000)
        self.depth = next(depth for depth in depths if len({image.parts[-depth:] for image in images}) == len(images))
        self.by_id: dict[str, list[int]] = {}
        self.by_phrase: dict[tuple[tuple[str, ...], str], list[int]] = {}
        for number, sample in enumerate(samples):
            sample_id = sample.id or str(sample.extra.get("ann_id", ""))
            if sample_id:
                self.by_id.setdefault(sample_id, []).append(number)
            self.by_phrase.setdefault((self._tail(sample.image), _plain(sample.phrase)), []).append(number)
        self.by_image_id = _images_by_id(samples, data)

    def _tail(self, image: PurePath) -> tuple[str, ...]:
        return image.parts[-self.depth :]

    def find(self, prediction: ExternalPrediction) -> list[int]:
        """Return the numbers of the samples that a prediction may be of.

        Raises:
            InputError: there is none.
        """
        image, phrase = self._image(prediction), prediction.phrase
        if prediction.id and self.by_id:
            found = [number for number in self.by_id.get(prediction.id, []) if self._agrees(number, image, phrase)]
        elif image is None or phrase is None:
            raise InputError(f'{prediction.location}: {self.data} has no ids: give "image" and "phrase".')
        else:
            found = self.by_phrase.get((image, _plain(phrase)), [])
        if not found:
            named = f"id {short_repr(prediction.id)}" if prediction.id and self.by_id else "image and phrase"
            raise InputError(
                f"{prediction.location}: {self.data} has no sample with this {named}"
                f"{f' ({short_repr(phrase)})' if phrase else ''}: score predictions on the data they were made for."
            )
        found = [number for number in found if self.samples[number].phrase == phrase] or found
        return [number for number in found if self.samples[number].box == prediction.target] or found

    def _agrees(self, number: int, image: tuple[str, ...] | None, phrase: str | None) -> bool:
        sample = self.samples[number]
        same_phrase = phrase is None or _plain(phrase) == _plain(sample.phrase)
        return same_phrase and image in (None, self._tail(sample.image))

    def _image(self, prediction: ExternalPrediction) -> tuple[str, ...] | None:
        if prediction.image is not None:
            return self._tail(PurePath(prediction.image))
        if prediction.image_id is None or (prediction.id and not self.by_image_id):
            return None
        if prediction.image_id not in self.by_image_id:
            raise InputError(
                f"{prediction.location}: {self.data} has no image_id {short_repr(prediction.image_id)}: give the file"
                ' name as "image", or the "id" of the row.'
            )
        return self._tail(self.by_image_id[prediction.image_id])


def _plain(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


def _images_by_id(samples: Sequence[Sample], data: str) -> dict[int, PurePath]:
    """Return images by the number that the rows, or the images of a COCO file, state."""
    stated = {sample.extra.get("image_id"): sample.image for sample in samples}
    by_id: dict[int, PurePath] = {number: image for number, image in stated.items() if type(number) is int}
    if not by_id and data.endswith(".json"):
        content = read_json(Path(data))
        entries = content.get("images") if isinstance(content, dict) else None
        for image in entries if isinstance(entries, list) else []:
            if isinstance(image, dict) and type(image.get("id")) is int and isinstance(image.get("file_name"), str):
                by_id[image["id"]] = PurePath(image["file_name"])
    return by_id
