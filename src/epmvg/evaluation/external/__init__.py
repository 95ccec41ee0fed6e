"""Scores any system's predictions as `epmvg evaluate` scores our own: same figures, same stamp (docs/score.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from epmvg.core.files import check_not_input, write_rows
from epmvg.core.images import ImageFile
from epmvg.core.types import Box, InputError
from epmvg.data.registry import open_samples
from epmvg.evaluation.evaluate import Row, answered_row, judge, overlaps, question_of
from epmvg.evaluation.external.answers import FORMATS, Answer, Format, read_answers
from epmvg.evaluation.external.coordinates import Coordinates, Size
from epmvg.evaluation.external.fit import SHARE, Fit, Given, doubtful_data, refuse_misfit
from epmvg.evaluation.external.questions import Question, match, questions
from epmvg.evaluation.metrics import BOXES, TARGETS, Targets, parts_of
from epmvg.evaluation.samples import short_name
from epmvg.evaluation.statistics import difference

__all__ = ["score"]


def score(
    predictions: Path | str,
    *,
    data: str,
    split: str | None = None,
    root: str | None = None,
    form: Format = "jsonl",
    coordinates: str | None = None,
    targets: Targets = "rows",
    strict: bool = False,
    allow_partial: bool = False,
    against: Path | str | None = None,
    rows: Path | str | None = None,
) -> dict[str, Any]:
    """Score a file of predictions on a data set, each of whose rows it answers exactly once.

    A prediction without a box that can be read counts as a miss.

    Args:
        predictions: the file.
        data: a data set's name or file.
        split: of that data; None takes all rows.
        root: where the data lies.
        form: jsonl (as `epmvg evaluate` and `epmvg predict --out` write it), coco (a list of results) or text.
        coordinates: what the numbers count and their order, for example "0-1000:xyxy"; text must name it.
        targets: what a phrase with several boxes asks for: each row's own, the union (merged), or any of them.
        strict: count IoU > bound instead of IoU >= bound.
        allow_partial: count rows without an answer as misses instead of refusing them.
        against: our JSONL of another system on the same data, to compare with.
        rows: the JSONL file to write what was scored to, boxes in pixels.

    Returns:
        data, split, protocol; what `evaluate.judge` says; `read` (format and coordinates); `fit` (boxes, how
        many of them are inverted; those whose image's size is known (sized), how many of them reach beyond it; better,
        a convention that would fit far better, or None); `warnings`, sentences about what may be wrong; `unreadable`
        and `missing`, the answers and rows that count as misses; `several`, the answers with more than one box, of
        which one counts; `against`: for each figure points (first minus other, in percentage points), low, high
        (95 %, images drawn anew), images, phrases and p (signs of images' gains drawn anew).

    Raises:
        InputError: something cannot be read, an answer is missing, given twice, or belongs to no row, the numbers
            cannot be of the convention, or `rows` is one of the inputs.
    """
    if form not in FORMATS:
        raise InputError(f"--format {form} is not known: give one of {', '.join(FORMATS)}.")
    if targets not in get_args(Targets):
        raise InputError(f"--targets {targets} is not known: give one of {', '.join(TARGETS)}.")
    if rows is not None:
        check_not_input(rows, predictions, against, data)
    named = coordinates or FORMATS[form]
    if named is None:
        raise InputError("--format text needs --coordinates, since numbers do not say what they count: 0-1000:xyxy?")
    convention = Coordinates.named(named)
    records = open_samples(data, split=split, root=root)
    asked = questions(records, targets)
    part = f"{short_name(data)} {split or ''}".strip()

    def scored(file: Path, form: Format, convention: Coordinates) -> tuple[list[Row], dict[str, Any]]:
        said = read_answers(file, form, convention)
        answers = match(asked, said, data)
        missing = [question.name for question, answer in zip(asked, answers, strict=True) if answer is None]
        if missing and not allow_partial:
            raise InputError(
                f"{file} leaves {len(missing):,} of the {len(asked):,} rows of {part} unanswered, the first"
                f" {missing[0]}: add predictions for them, or count them as misses with allow_partial=True."
            )
        given = _given(asked, answers, convention)
        readable = [one for one in given if one]
        fit = Fit.of(readable, convention)
        refuse_misfit(readable, convention, fit, file)
        several = sum(one.boxes > 1 for one in said)
        warnings = fit.warnings(convention)
        if several > SHARE * len(said):
            warnings.append(f"{several:,} of {len(said):,} answers hold several boxes, of which the first counts.")
        return _rows(asked, answers, given, convention, targets), {
            "read": {"format": form, "coordinates": str(convention)},
            "fit": asdict(fit),
            "warnings": warnings,
            "missing": missing,
            "unreadable": [{"where": one.where, "why": one.fault} for one in answers if one and one.numbers is None],
            "several": several,
        }

    own, account = scored(Path(predictions), form, convention)
    result: dict[str, Any] = {"data": short_name(data), "split": split or "all", "protocol": _protocol(strict, targets)}
    result |= judge(own, strict=strict, targets=targets) | account
    result["warnings"] += doubtful_data(records, data)
    if against is not None:
        other, others = scored(Path(against), "jsonl", Coordinates.named(FORMATS["jsonl"] or ""))
        images = [row["image"] for row in own]
        first, second = parts_of(own, strict), parts_of(other, strict)
        gains = {name: (100.0 * (first[name] - second[name])).tolist() for name in first}
        figures = {name: asdict(difference(images, gain)) for name, gain in gains.items()}
        result["against"] = {"file": str(against), "figures": figures} | others
    if rows is not None:
        write_rows(Path(rows), own)
    return result


def _protocol(strict: bool, targets: Targets) -> str:
    return f"IoU {'>' if strict else '>='} 0.5, {BOXES}, neither box clipped, target: {TARGETS[targets]}"


def _rows(
    asked: Sequence[Question],
    answers: Sequence[Answer | None],
    given: Sequence[Given | None],
    convention: Coordinates,
    targets: Targets,
) -> list[Row]:
    """Return a row of predictions a question, ordered by what was asked."""
    boxes = [convention.to_pixels(one.numbers, one.size, one.seen) if one else None for one in given]
    flat = [(box, target) for question, box in zip(asked, boxes, strict=True) for target in _true(question, targets)]
    found = overlaps([box or (0.0, 0.0, 0.0, 0.0) for box, _ in flat], [target for _, target in flat])
    ends = [0]
    for question in asked:
        ends.append(ends[-1] + len(_true(question, targets)))
    rows = []
    for question, answer, box, (start, end) in zip(asked, answers, boxes, pairwise(ends), strict=True):
        iou = max(found[start:end]) if box else 0.0
        row = answered_row(question.record, list(box) if box else None, iou, answer.score if answer else None)
        if targets == "any":
            row["targets"] = [list(one) for one in question.boxes]
        if box is None:
            row["error"] = answer.fault if answer else "not answered"
        rows.append(row)
    return sorted(rows, key=question_of)


def _true(question: Question, targets: Targets) -> tuple[Box, ...]:
    return question.boxes if targets == "any" else (question.record.box,)


def _given(asked: Sequence[Question], answers: Sequence[Answer | None], convention: Coordinates) -> list[Given | None]:
    """Return what each answer gives, with the size of its image where that is stated or needed; None without a box.

    Raises:
        InputError: an image's size is needed and not to be had.
    """
    sizes: dict[Path, Size] = {}
    given: list[Given | None] = []
    for question, answer in zip(asked, answers, strict=True):
        if answer is None or answer.numbers is None:
            given.append(None)
            continue
        size: Size | None = question.record.size
        if convention.unit != "pixels" and not size:
            image = question.record.image
            if image not in sizes:
                with ImageFile(image) as photo:
                    sizes[image] = photo.size
            size = sizes[image]
        given.append(Given(answer.numbers, size, answer.seen, question.record.box))
    return given
