"""Scores: Acc@0.5 and its companions, one row of predictions a phrase, every row exactly once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from epmvg.core.boxes import paired_iou
from epmvg.core.calibration import BINS, Calibration, mean_intervals, measure_trust
from epmvg.core.distributed import gathered, together, told
from epmvg.core.files import write_json, write_rows
from epmvg.core.hardware import select_device
from epmvg.core.locate import fetch
from epmvg.core.tokenizer import PhraseTokenizer
from epmvg.core.types import Batch, GroundingOutput, InputError, Progress, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.data.negatives import negative_samples
from epmvg.evaluation.metrics import Scores, Targets, parts_of, stamp
from epmvg.evaluation.samples import make_results_folder, results_folder, rows_to_ask, short_name, stem_of
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.models.iou_head import raw_confidence
from epmvg.models.weights_file import WEIGHTS, weights_digest

Row = dict[str, Any]
"""A row of predictions."""

PROTOCOL = "IoU >= 0.5 in pixels of the original image, target not clipped, prediction clipped to the image"


@torch.no_grad()
def predict_rows(
    model: Grounder,
    batches: Iterable[Batch],
    *,
    autocast: bool = False,
    progress: Progress | None = None,
    total: int = 0,
) -> list[Row]:
    """Answer every phrase of some batches and return a row of predictions for each.

    Where several processes work together, each brings its share of an evaluation's batches, and the first gets the
    rows of all, in order; the others get none. A batch's answers depend on nothing outside it, so the rows are the
    same, to the last digit, for any number of processes (of equally many threads).
    """
    model.eval()
    device = next(model.parameters()).device
    answered: list[list[Row]] = []
    done = 0
    for batch in (each.to(device) for each in _one_ahead(batches)):
        if not batch.samples:  # a tolerant loader could open none of its images
            answered.append([])
            continue
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = model(*batch.inputs, image_features=batch.cached.get("maps"))
        answered.append(_rows(output, batch, model.calibration))
        done += len(answered[-1])
        if progress:
            progress(done, total)
    dealt = zip_longest(*gathered(answered), fillvalue=[])  # batches were dealt out in turn
    return [row for turn in dealt for rows in turn for row in rows]


def _one_ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Open the pictures of each batch while the one before is answered."""
    rest = iter(batches)
    with ThreadPoolExecutor(1) as opener:
        ahead = opener.submit(next, rest, None)
        while (batch := ahead.result()) is not None:
            ahead = opener.submit(next, rest, None)
            yield batch


def _rows(output: GroundingOutput, batch: Batch, calibration: Calibration | None) -> list[Row]:
    boxes, scores = output.box.float().cpu(), box_scores(output, calibration).tolist()
    rows = []
    for i, record in enumerate(batch.samples):
        source = batch.letterboxes[int(batch.image_index[i])].to_image(boxes[i].double())
        box = [round(value, 3) for value in source.tolist()]
        rows.append(answered_row(record, box, overlaps([box], [record.box])[0], scores[i]))
    return rows


def answered_row(record: Sample, box: list[float] | None, iou: float, score: float | None) -> Row:
    """Return the row of predictions of a record: what was asked, what was answered, and what slices need."""
    row: Row = {"image": str(record.image), "phrase": record.phrase, "box": box, "target": list(record.box), "iou": iou}
    row |= {"score": score, "id": record.id}
    return row | {key: record.extra[key] for key in _KEPT if key in record.extra}


ABSENT = 0.25
"""Phrases asked of another image in an evaluation, at most, a phrase of the split."""

_KEPT = ("kind", "types", "dataset", "split", "category", "absent")


def with_misses(rows: Sequence[Row], records: Sequence[Sample]) -> list[Row]:
    """Return rows of predictions, with a miss for each record that has none because its image could not be read."""
    known = Counter((row["image"], row["phrase"], row["id"], tuple(row["target"])) for row in rows)
    missed = []
    for record in records:
        key = (str(record.image), record.phrase, record.id, tuple(record.box))
        known[key] -= 1
        if known[key] < 0:
            missed.append(answered_row(record, None, 0.0, None))
    return [*rows, *missed]


def _warn_of_unread(read: Sequence[Row], rows: Sequence[Row], name: str) -> int:
    """Count and name the images that could not be read.

    Raises:
        InputError: there is no other.
    """
    unread = sorted({row["image"] for row in rows[len(read) :]})
    if not read:
        raise InputError(f"None of the images of {name} can be read (first: {unread[0]}): check --root and the files.")
    if unread:
        warnings.warn(
            f"Images of {name} that cannot be read, whose phrases count as misses: {len(unread)} (first: {unread[0]}).",
            stacklevel=3,
        )
    return len(unread)


def overlaps(boxes: Sequence[Sequence[float]], targets: Sequence[Sequence[float]]) -> list[float]:
    """IoU of box i with target i, both xyxy, in double precision."""
    pair = (torch.tensor(part, dtype=torch.float64).reshape(-1, 4) for part in (boxes, targets))
    return cast(list[float], paired_iou(*pair).tolist())


def box_scores(output: GroundingOutput, calibration: Calibration | None = None) -> Tensor:
    """Say how sure a model is of each box, float64 [P] in 0..1, on the CPU.

    A calibration turns raw scores into the probability that the box is correct.
    """
    score = raw_confidence(output).cpu().double()
    return score if calibration is None else torch.from_numpy(calibration(score.numpy()))


def evaluate(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    split_key: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run on a split and leave `predictions-<data>-<split>.jsonl` and `evaluation-...json` in its folder.

    Some phrases are asked of other images as well, to which they do not belong: `absent-...jsonl`. Processes that
    torchrun started together share the work; the first writes, and all return the same.

    Args:
        run: a folder that training wrote, which gets predictions and scores; or what else `load` takes, which has
            them in `runs/NAME` of the current folder.
        data: a data set's name or JSONL file; the run's own by default.
        split: of that data; by default the validation split of the run's own data, and all rows of other data.
        root: where the data lies; the run's own by default.
        split_key: the row key that names the split; the run's own by default.
        device: where to compute (`hardware.select_device`).
        progress: called with (phrases answered, all of them).

    Returns:
        data, split, protocol, `cut` and `unknown` (phrases longer than the model reads, and those of which it knows no
        word), what `judge` says, `confidence` (docs/confidence.md), `weights`, the SHA-256 of the weights that were
        scored, `unread_images`, how many could not be read and count as misses, and `rows`, the name of the file of
        predictions.

    Raises:
        InputError: the run, the data or all images cannot be read.
    """
    with together() as (rank, world):  # first, so that the others notice a fault in what follows
        settings, split, records = rows_to_ask(run, data, split, root, split_key)
        model = load(run).to(select_device(device))
        model.visual_encoder.fuse_norms()
        name = settings.name
        results_folder(run)  # whether it can be had is said before an hour's work
        asked = [*records, *negative_samples(records, ABSENT)]  # an image is still encoded once
        stem = stem_of(run, settings, split)
        loader = evaluation_loader(
            model, asked, batch_size=settings.batch_size, rank=rank, world_size=world, skip_unreadable=True
        )
        answers = predict_rows(model, loader.batches(0), progress=progress, total=-(-len(asked) // world))
        result: dict[str, Any] = {"data": short_name(name), "split": split or "all", "protocol": PROTOCOL}
        result["rows"] = f"predictions-{stem}.jsonl"
        if rank == 0:
            read, nothing = split_absent(answers)
            rows = with_misses(read, records)
            if len(rows) != len(records):
                raise InputError(f"{name} has {len(records)} rows but {len(rows)} were answered.")
            result["unread_images"] = _warn_of_unread(read, rows, name)
            trust = asdict(measure_trust(read, nothing))
            result |= mark_unread(rows, model.phrase_tokenizer()) | judge(rows)
            mapping = model.calibration
            fitted = (mapping and mapping.fitted) or {}
            result["confidence"] = {
                "calibrated": mapping is not None and mapping.changes_scores,
                "mapping": mapping and mapping.mapping,
                "calibrated_on_these_rows": fitted.get("data_sha256") == result["stamp"]["data_sha256"],
                "bins": BINS,
            } | trust
            result["weights"] = weights_digest(fetch(run) / WEIGHTS)
            folder = make_results_folder(run)
            write_rows(folder / result["rows"], rows)
            write_rows(folder / f"absent-{stem}.jsonl", nothing)
            write_json(folder / f"evaluation-{stem}.json", result)
        return told(result)


def mark_unread(rows: Sequence[Row], tokenizer: PhraseTokenizer) -> dict[str, int]:
    """Mark rows whose phrase is longer than the model reads (`cut`) or of which it knows no word, and count both."""
    tokens = tokenizer([row["phrase"] for row in rows])
    marks = {"truncated": tokens.truncated, "unknown": tokens.unknown}
    for key, marked in marks.items():
        for number in marked.nonzero()[0].tolist():
            rows[number][key] = True
    return {key: int(marked.sum()) for key, marked in marks.items()}


def judge(rows: Sequence[Row], *, strict: bool = False, targets: Targets = "rows") -> dict[str, Any]:
    """Score rows of predictions; the same to the last digit in any order of them.

    Args:
        strict: count IoU > bound instead of IoU >= bound.
        targets: what the rows' targets are, for the stamp.

    Returns:
        n and the figures of `Scores`; `intervals` of each (95 %, images drawn anew); `parts` by data set where rows
        name several; `slices` by title and name; and the `stamp` of what was asked and how it was judged.
    """
    from epmvg.evaluation.slices import groupings  # brings matplotlib, which answering does not need

    rows = sorted(rows, key=question_of)
    result: dict[str, Any] = asdict(Scores.of(rows, strict=strict))
    counted = parts_of(rows, strict)
    intervals = mean_intervals([row["image"] for row in rows], np.stack(list(counted.values()), -1))
    result["intervals"] = dict(zip(counted, intervals, strict=True))
    parts = _parts(rows, strict)
    if parts:
        result["parts"] = parts
    result["slices"] = {
        grouping.title: {name: asdict(Scores.of(grouping.select(rows, name), strict=strict)) for name in names}
        for grouping, names in groupings(rows)
    }
    return result | {"stamp": stamp(rows, strict=strict, targets=targets)}


def question_of(row: Row) -> tuple[Any, ...]:
    """What rows are sorted by, so that nothing depends on the order they came in."""
    return row["image"], row["phrase"], str(row["id"]), list(row["target"]), row["box"] or []


def split_absent(answers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Part rows of predictions from those of phrases that do not belong to their image, whose target means nothing."""
    rows = [row for row in answers if not row.get("absent")]
    kept = ("image", "phrase", "box", "score")
    return rows, [{key: row[key] for key in kept} for row in answers if row.get("absent")]


def evaluation_loader(
    model: Grounder,
    records: Sequence[Sample],
    *,
    batch_size: int = 64,
    rank: int = 0,
    world_size: int = 1,
    skip_unreadable: bool = False,
) -> GroundingLoader:
    """Make the loader of an evaluation: evaluation views, rows in order, nothing left out.

    The batches are the same for any number of processes `world`, which take them in turn.
    """
    return GroundingLoader(
        records,
        model.tokenize,
        image_size=model.image_size,
        batch_size=batch_size,
        phrases_per_image=16,
        rank=rank,
        world_size=world_size,
        skip_unreadable=skip_unreadable,
    )


def _parts(rows: Sequence[dict[str, Any]], strict: bool) -> dict[str, dict[str, Any]]:
    """Scores by the rows' own data set and split, or by their kind, where they name several."""
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['dataset']} {row.get('split', '')}".strip() if "dataset" in row else row.get("kind", "other")
        named.setdefault(name, []).append(row)
    return (
        {name: asdict(Scores.of(part, strict=strict)) for name, part in sorted(named.items())} if len(named) > 1 else {}
    )
