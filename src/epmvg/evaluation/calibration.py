"""Fit the calibration of a run: an IoU head if it has none, a mapping of scores to probabilities, a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.boxes import paired_iou, to_xyxy
from epmvg.core.calibration import CONFIDENCE_FILE, Array, Calibration, log_features
from epmvg.core.files import write_text
from epmvg.core.hardware import select_device
from epmvg.core.locate import is_transformers, locate, only_predicts
from epmvg.core.types import InputError, Progress, Sample
from epmvg.data.negatives import negative_samples
from epmvg.evaluation.evaluate import (
    Row,
    evaluation_loader,
    predict_rows,
    predict_samples,
    split_negatives,
)
from epmvg.evaluation.metrics import data_sha256
from epmvg.evaluation.samples import (
    data_settings,
    limit_to_images,
    open_split,
    results_folder,
    shared_images,
    training_images,
)
from epmvg.evaluation.statistics import calibration_error, confidence_metrics
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import load, save
from epmvg.models.grounder import Grounder
from epmvg.models.weights_file import digest_of_weights

CALIBRATION_NEGATIVES = 0.5  # negative pairs per phrase, in fitting and calibrating
FOLDS = 5
MAX_PHRASES = 20_000  # that an IoU head is fitted on
EPOCHS = 30


def calibrate(
    run: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    root: str | None = None,
    fit_head: bool = False,
    false_positive_rate: float = 0.1,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Calibrate a run's confidence on validation data and write `confidence.json`, which `load` applies.

    Args:
        run: a folder that training or `epmvg export` wrote, or a grounder of transformers.
        data, root, device: as for `evaluate`.
        split: of that data; the run's validation split by default. Test splits and images that the run was trained on
            are rejected.
        fit_head: first fit a new IoU head on the training split of the same data.
        false_positive_rate: fraction of negative phrases that may reach the stored threshold.
        progress: called with (phrases done, all of them).

    Returns:
        The content of `confidence.json`: method ("none" leaves scores raw), mapping, threshold, and metrics on this
        split before and after (after: on samples that the mapping was not fitted to).

    Raises:
        InputError: the run or the data cannot be read, or the run cannot be calibrated on it.
    """
    if not 0 < false_positive_rate < 1:
        raise InputError(f"false_positive_rate={false_positive_rate:g} is not between 0 and 1. Give for example 0.1.")
    run = Path(run)
    folder = locate(run)
    if not run.is_dir() and not is_transformers(folder):
        raise InputError(f"{run} cannot be changed. Calibrate a copy (`epmvg publish {run} --to FOLDER`).")
    settings, _ = data_settings(run, data, root)
    split = split or settings.val_split
    samples = _validation_samples(run, settings, split)
    queries = [*samples, *negative_samples(samples, CALIBRATION_NEGATIVES)]
    results_folder(run)  # an error in it is raised before the work
    if only_predicts(folder) and not fit_head:
        predictor = Predictor(run, device=device)
        predictor.runtime.calibration = None
        rows = predict_samples(predictor, queries, progress=progress)
    else:
        model = load(run).to(select_device(device))
        model.calibration = None
        if fit_head:
            fit_iou_head(model, open_split(settings, settings.train_split), settings.batch_size, progress)
        elif model.iou_head is None and not model.dense_head:
            raise InputError(f"{run} has neither an IoU head nor a heatmap to score by. Fit a head with --fit-head.")
        loader = evaluation_loader(model, queries, batch_size=settings.batch_size)
        rows = predict_rows(model, loader.batches(0), progress=progress, total=len(queries))
    calibration = calibration_of(*split_negatives(rows), false_positive_rate)
    about = {"data": Path(settings.name).stem, "split": split}
    calibration = replace(calibration, fitted=about | (calibration.fitted or {}))
    if fit_head:
        save(model, run)
    calibration = replace(calibration, weights=digest_of_weights(folder))
    write_text(results_folder(run, create=True) / CONFIDENCE_FILE, calibration.dump())
    return asdict(calibration)


def _validation_samples(run: Path, settings: Any, split: str) -> list[Sample]:
    """Read the samples to calibrate on; raise InputError for a test split, one image, or images of the training."""
    if split.startswith("test"):
        raise InputError(f"split {split} is for reporting. Calibrate on a validation split.")
    samples = open_split(settings, split)
    images = {sample.image for sample in samples}
    if len(images) < 2:
        raise InputError(f"{settings.name} {split} has a single image. Calibrate on more.")
    if len(shared_images(images, training_images(run) or set())) == len(images):
        raise InputError(f"{run} was trained on all images of {settings.name} {split}. Calibrate on others.")
    return samples


def calibration_of(rows: Sequence[Row], negatives: Sequence[Row], false_positive_rate: float) -> Calibration:
    """Fit a calibration and its threshold to prediction rows with raw scores, and to rows of negative pairs."""
    score = np.array([row["score"] for row in rows], np.float64)
    correct = np.array([row["iou"] >= 0.5 for row in rows], np.float64)
    images = [row["image"] for row in rows]
    calibration, held_out = fit_calibration(score, correct, images)
    raw = np.array([row["score"] for row in negatives], np.float64)
    threshold = threshold_for(false_positive_rate, calibration(raw))
    found = held_out >= (math.inf if threshold is None else threshold)
    before = confidence_metrics(rows, negatives)
    fitted = {
        "n": len(rows),
        "images": len(set(images)),
        "negatives": len(raw),
        "data_sha256": data_sha256(rows),
        "acc50": float(correct.mean()),
        "ece_before": before["ece"],
        "ece_after": calibration_error(held_out, correct),
        "auroc_correct": before["auroc_correct"],
        "auroc_negative": before["auroc_negative"],
        "coverage": float(found.mean()),
        "risk": float((1 - correct[found]).mean()) if found.any() else None,
    }
    return replace(calibration, threshold=threshold, false_positive_rate=false_positive_rate, fitted=fitted)


RAW = Calibration("none", 1.0, 1.0, 0.0)


def fit_calibration(score: Array, correct: Array, images: Sequence[str]) -> tuple[Calibration, Array]:
    """Fit beta calibration, or leave scores raw where it has no lower log loss on held-out rows.

    Args:
        score: raw scores [n].
        correct: whether each box is correct, 0 or 1 [n].
        images: [n], the image of each row; rows of one image stay in one fold.

    Returns:
        The calibration, fitted to all rows, and the probabilities [n] of held-out rows.
    """
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    raw, held_out = RAW(score), np.empty(len(score))
    splitter = GroupKFold(min(FOLDS, len(set(images))), shuffle=True, random_state=0)
    for train, test in splitter.split(score, groups=images):
        held_out[test] = _fit(score[train], correct[train])(score[test])
    if log_loss(correct, held_out, labels=[0, 1]) < log_loss(correct, raw, labels=[0, 1]):
        return _fit(score, correct), held_out
    return RAW, raw


def _fit(score: Array, correct: Array) -> Calibration:
    """Fit by logistic regression; a negative slope, which would reverse the order, becomes 0 (Kull et al.)."""
    from sklearn.linear_model import LogisticRegression

    if correct.min() == correct.max():
        return RAW
    kept = np.ones(2)
    while True:
        model = LogisticRegression(C=np.inf, max_iter=1000)  # C=inf: no penalty
        model.fit(log_features(score) * kept, correct)
        if (model.coef_[0] >= 0).all():
            a, b = model.coef_[0] * kept
            return Calibration("beta", float(a), float(b), float(model.intercept_[0]))
        kept *= model.coef_[0] >= 0


def threshold_for(false_positive_rate: float, negative: Array) -> float | None:
    """Return the lowest score that a new negative phrase reaches with at most the given probability.

    The bound holds for phrases drawn like those of `negative` [n], whatever their distribution (split conformal
    prediction: Vovk et al., Algorithmic Learning in a Random World, 2005); None where n is too small for it.
    """
    allowed = math.floor(false_positive_rate * (len(negative) + 1))  # of n + 1 exchangeable scores
    if allowed < 1:
        return None
    return float(np.nextafter(np.sort(negative)[-allowed], 2.0)) if allowed <= len(negative) else 0.0


def fit_iou_head(model: Grounder, samples: Sequence[Sample], batch_size: int, progress: Progress | None = None) -> None:
    """Fit a new IoU head with everything else frozen, in place: boxes stay as they are.

    The features are computed once; the head of the epoch with the lowest loss on a tenth of the images is kept.

    Args:
        model: the trained model.
        samples: what it was trained on; images are drawn at random up to `MAX_PHRASES`.
        batch_size: image-phrase pairs in a batch.
        progress: called with (phrases done, all of them) while features are computed, which takes nearly all the time.

    Raises:
        InputError: the samples are of a single image, so that none can be held out.
    """
    samples = limit_to_images(samples, MAX_PHRASES, seed=0)
    if len({sample.image for sample in samples}) < 2:
        raise InputError("An IoU head is fitted on some images and validated on others. Give at least two images.")
    device = next(model.parameters()).device
    model.iou_head = model.new_iou_head().to(device)
    model.settings = model.settings | {"iou_head": True}
    features, iou, held_out = _iou_features(model, samples, batch_size, progress)
    head = model.iou_head.cpu()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    train, val = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    order = torch.Generator().manual_seed(0)
    lowest, best = math.inf, head.state_dict()
    for _ in range(EPOCHS):
        for part in train[torch.randperm(len(train), generator=order)].split(256):
            loss = F.binary_cross_entropy_with_logits(head(features[part]), iou[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            val_loss = F.binary_cross_entropy_with_logits(head(features[val]), iou[val]).item()
        if val_loss < lowest:
            lowest, best = val_loss, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    model.to(device).eval()


@torch.no_grad()
def _iou_features(
    model: Grounder, samples: Sequence[Sample], batch_size: int, progress: Progress | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of the IoU head [n, F], the IoU to predict [n], and a mask of held-out rows [n]."""
    model.eval()
    queries = [*samples, *negative_samples(samples, CALIBRATION_NEGATIVES)]
    numbers = {image: number for number, image in enumerate(dict.fromkeys(sample.image for sample in samples))}
    features, targets, held_out = [], [], []
    device = next(model.parameters()).device
    for batch in evaluation_loader(model, queries, batch_size=batch_size).batches(0):
        output = model(*batch.to(device).inputs)
        assert output.iou_features is not None and output.iou_box is not None
        positive = torch.tensor(["negative" not in sample.extra for sample in batch.samples])
        features.append(output.iou_features.cpu())
        iou = paired_iou(to_xyxy(output.iou_box.cpu()), to_xyxy(batch.boxes))
        targets.append(iou.clamp(0, 1) * positive)
        held_out += [numbers[sample.image] % 10 == 0 for sample in batch.samples]
        if progress:
            progress(len(held_out), len(queries))
    return torch.cat(features), torch.cat(targets), torch.tensor(held_out)
