"""Gives a trained run a score that is a probability: a score head if it has none, a mapping chosen on val, a threshold.

Only the score head is fitted, with everything else frozen: boxes stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.config.settings import DataSettings
from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.calibration import CONFIDENCE_FILE, auroc, calibration_error, fit_calibration, threshold_for
from epmvg.core.files import write_text
from epmvg.core.hardware import select_device
from epmvg.core.types import InputError, Progress, Sample
from epmvg.data.negatives import negative_samples
from epmvg.data.registry import open_samples
from epmvg.evaluation.evaluate import evaluation_loader, predict_rows, split_absent
from epmvg.evaluation.leakage import shared_images, training_images
from epmvg.evaluation.metrics import stamp
from epmvg.evaluation.samples import data_of, of_some_images
from epmvg.models.factory import load, save
from epmvg.models.grounder import Grounder
from epmvg.models.text_cache import TextFeatureCache
from epmvg.models.weights_file import WEIGHTS, weights_digest

ABSENT = 0.5  # absent phrases a phrase, in fitting and calibrating
FEW = 300  # phrases below which a mapping can hardly be told from chance


def calibrate(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    fit_head: bool = False,
    false_alarms: float = 0.1,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Calibrate a run's scores on validation data and store the mapping in its folder, where `load` applies it.

    Args:
        run: a folder that training wrote.
        data: a data set's name or file; the run's own by default.
        split: of that data to calibrate on; the run's validation split by default. Never a test split, nor images that
            the run was trained on.
        root: as for `evaluate`.
        fit_head: first fit a fresh score head on the training split of the same data.
        false_alarms: share of absent phrases that may be answered at the stored threshold.
        device: as for `hardware.select_device`.

    Returns:
        What `confidence.json` holds: method ("none" leaves scores raw), threshold, false_alarms, and how scores did on
        this split before and after (after: on rows that the mapping was not fitted to).

    Raises:
        InputError: the run or the data cannot be read, or there is nothing to calibrate.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms={false_alarms:g} is not a share: give a number between 0 and 1.")
    run = Path(run)
    model = load(run)
    if not run.is_dir():
        raise InputError(f"{run} is no folder of yours: calibrate a copy (`epmvg publish {run} --to FOLDER`).")
    model.calibration = None
    if not fit_head and model.iou_head is None and not model.dense_head:
        raise InputError(f"{run} has neither a score head nor a where-map to score by: fit a head with --fit-head.")
    settings = data_of(run, data, root, None)
    split = split or settings.val_split
    if split.startswith("test"):
        raise InputError(f"split {split} is for reporting: calibrate on a validation split.")
    val = _open(settings, split)
    images = {record.image for record in val}
    if len(images) < 2:
        raise InputError(f"{settings.name} {split} has a single image: calibrate on more.")
    if len(shared_images(images, training_images(run) or set())) == len(images):
        raise InputError(f"{run} was trained on all images of {settings.name} {split}: calibrate on others.")
    model.to(select_device(device))
    if fit_head:
        fit_score_head(model, _open(settings, settings.train_split), batch_size=settings.batch_size, progress=progress)
    asked = [*val, *negative_samples(val, ABSENT)]
    loader = evaluation_loader(model, asked, batch_size=settings.batch_size)
    rows, absent = split_absent(predict_rows(model, loader.batches(0), progress=progress, total=len(asked)))

    score = np.array([row["score"] for row in rows])
    correct = np.array([row["iou"] >= 0.5 for row in rows], np.float64)
    calibration, held_out = fit_calibration(score, correct, [row["image"] for row in rows])
    raw = np.array([row["score"] for row in absent], np.float64)
    threshold = threshold_for(false_alarms, calibration(raw))
    sure = held_out >= (2.0 if threshold is None else threshold)
    fitted = {
        "data": Path(settings.name).stem,
        "split": split,
        "n": len(rows),
        "images": len(images),
        "absent": len(absent),
        "data_sha256": stamp(rows)["data_sha256"],
        "acc50": float(correct.mean()),
        "ece_before": calibration_error(score, correct),
        "ece_after": calibration_error(held_out, correct),
        "auroc_correct": _number(auroc(score, correct)),
        "auroc_belongs": _number(auroc(np.concatenate([score, raw]), np.repeat([1.0, 0.0], [len(rows), len(raw)]))),
        "answered": float(sure.mean()),
        "answered_and_wrong": float((1 - correct[sure]).mean()) if sure.any() else None,
    }
    calibration = replace(calibration, threshold=threshold, false_alarms=false_alarms, fitted=fitted)
    if fit_head:
        model.calibration = calibration
        save(model, run)
    calibration = replace(calibration, weights=weights_digest(run / WEIGHTS))
    write_text(run / CONFIDENCE_FILE, calibration.dump())
    return asdict(calibration)


def remark(calibration: dict[str, Any]) -> str | None:
    """Return a sentence that says why scores stay raw, None where they became probabilities."""
    if calibration["method"] != "none":
        return None
    n, images = calibration["fitted"]["n"], calibration["fitted"]["images"]
    if n < FEW:
        return f"{n} phrases of {images} images are too few to calibrate on: scores remain raw, no probabilities."
    return "No mapping predicts better than the raw scores: they remain as they are."


def fit_score_head(
    model: Grounder,
    records: Sequence[Sample],
    *,
    batch_size: int = 64,
    limit: int = 20_000,
    epochs: int = 30,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Give a trained student a fresh score head, fitted with everything else frozen, in place.

    The student is asked once; the head then learns from what it saw, and is kept as it was after the epoch that did
    best on a tenth of the images.

    Args:
        model: the student.
        records: what it was trained on.
        batch_size: image-phrase pairs in a batch.
        limit: most phrases asked, of images drawn at random.
        epochs: of the head.
        seed: of draws and order.
        progress: told about asking, which is nearly all of the time.

    Raises:
        InputError: the records are of a single image, so that none can be held out.
    """
    records = of_some_images(records, limit, seed)
    if len({record.image for record in records}) < 2:
        raise InputError("A score head is fitted on some images and checked on others: give at least two images.")
    device = next(model.parameters()).device
    model.iou_head = model.new_iou_head().to(device)
    model.settings = model.settings | {"iou_head": True}
    iou_features, iou, held_out = _ask(model, records, batch_size, progress)
    head = model.iou_head.cpu()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    learn, check = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    order = torch.Generator().manual_seed(seed)
    best, kept = float("inf"), head.state_dict()
    for _ in range(epochs):
        for part in learn[torch.randperm(len(learn), generator=order)].split(256):
            loss = F.binary_cross_entropy_with_logits(head(iou_features[part]), iou[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            iou_box = F.binary_cross_entropy_with_logits(head(iou_features[check]), iou[check]).item()
        if iou_box < best:
            best, kept = iou_box, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    model.to(device).eval()


@torch.no_grad()
def _ask(
    model: Grounder, records: Sequence[Sample], batch_size: int, progress: Progress | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather evidence [n, F], the IoU to predict [n] and which rows are held out [n], a tenth of the images."""
    model.eval()
    asked = [*records, *negative_samples(records, ABSENT)]
    numbers = {image: number for number, image in enumerate(dict.fromkeys(record.image for record in records))}
    memory = TextFeatureCache(model.text_encoder) if model.text_encoder.frozen else None
    iou_features, ious, held_out, done = [], [], [], 0
    device = next(model.parameters()).device
    for batch in (each.to(device) for each in evaluation_loader(model, asked, batch_size=batch_size).batches(0)):
        states = memory(batch.tokens, batch.token_mask) if memory else None
        output = model(*batch.inputs, text_features=states)
        assert output.iou_features is not None and output.iou_box is not None
        belongs = torch.tensor(["absent" not in record.extra for record in batch.samples])
        iou_features.append(output.iou_features.cpu())
        ious.append(paired_iou(to_xyxy(output.iou_box), to_xyxy(batch.boxes)).clamp(0, 1).cpu() * belongs)
        held_out += [numbers[record.image] % 10 == 0 for record in batch.samples]
        done += len(batch.samples)
        if progress:
            progress(done, len(asked))
    return torch.cat(iou_features), torch.cat(ious), torch.tensor(held_out)


def _open(settings: DataSettings, split: str) -> list[Sample]:
    return open_samples(settings.name, split=split, root=settings.root, split_key=settings.split_key)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
