"""Candidate boxes: the predicted box first, one for each group of agreeing tokens, none twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from epmvg.core.boxes import box_iou, paired_iou
from epmvg.inference import candidates
from epmvg.inference.candidates import Floats, candidate_confidences
from epmvg.models.dense_head import median_box

THINGS = np.array([[0.0, 0, 10, 20], [30, 0, 40, 20], [60, 5, 80, 30]])


def to_cxcywh(boxes: Floats) -> Floats:
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def candidate_boxes(heatmap: Floats, token_boxes: Floats, best: Floats, **options: Any) -> tuple[Floats, Floats]:
    """Call the function of that name with xyxy boxes, and return xyxy boxes."""
    boxes, masses = candidates.candidate_boxes(heatmap, to_cxcywh(token_boxes), to_cxcywh(best), **options)
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1), masses


def tokens(weights: list[float], each: int = 5, noise: float = 0.3, seed: int = 0) -> tuple[Floats, Floats]:
    """Some tokens for each thing that share a mass, and twenty that mean nothing and have none."""
    random = np.random.default_rng(seed)
    boxes = np.concatenate([np.repeat(THINGS[: len(weights)], each, 0), random.uniform(0, 90, (20, 4))])
    boxes[: each * len(weights)] += random.uniform(-noise, noise, (each * len(weights), 4))
    logits = np.concatenate([np.repeat(np.log(np.array(weights) / each), each), np.full(20, -np.inf)]) / 1.25
    return logits, boxes


@given(st.integers(0, 1000), st.floats(0.05, 0.9))
def test_median_boxes_are_those_of_the_dense_head(seed: int, middle: float) -> None:
    torch.manual_seed(seed)
    logits, boxes = torch.randn(3, 30) * 4, torch.rand(3, 30, 4)
    logits[0, 5:9] = -torch.inf
    expected = median_box(logits, boxes, sharpening=1.25, middle=middle)
    found = candidates.median_boxes((logits * 1.25).numpy(), boxes.numpy(), middle)
    assert np.allclose(found, expected.numpy(), atol=1e-5)


def test_one_candidate_for_each_thing_by_mass() -> None:
    logits, boxes = tokens([0.5, 0.2, 0.3])
    found, masses = candidate_boxes(logits, boxes, THINGS[0], top_k=5)
    assert np.allclose(found, THINGS[[0, 2, 1]], atol=0.3) and np.allclose(found[0], THINGS[0])
    assert np.allclose(masses, [0.5, 0.3, 0.2])
    assert np.allclose(candidate_confidences(0.8, masses), [0.8, 0.48, 0.32])


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_never_more_than_asked_for(top_k: int) -> None:
    logits, boxes = tokens([0.4, 0.3, 0.3])
    every, _ = candidate_boxes(logits, boxes, THINGS[0], top_k=9)
    found, masses = candidate_boxes(logits, boxes, THINGS[0], top_k=top_k)
    assert len(found) == len(masses) == top_k and np.array_equal(found, every[:top_k])


def test_a_single_mode_gives_a_single_candidate() -> None:
    logits, boxes = tokens([1.0])
    found, masses = candidate_boxes(logits, boxes, THINGS[0], top_k=5)
    assert found.shape == (1, 4) and masses == pytest.approx([1.0])


def test_a_second_candidate_surer_than_the_first_does_not_pass_it() -> None:
    logits, boxes = tokens([0.2, 0.8])
    found, masses = candidate_boxes(logits, boxes, THINGS[0], top_k=2)
    assert np.allclose(found[0], THINGS[0]) and masses[1] > masses[0]
    assert candidate_confidences(0.5, masses).tolist() == [0.5, 0.5]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.2, 0.9))
def test_candidates_are_apart_and_masses_are_shares_of_one(seed: int, top_k: int, overlap: float) -> None:
    random = np.random.default_rng(seed)
    logits, boxes = random.normal(0, 3, 40), np.sort(random.uniform(0, 1, (40, 2, 2)), 1).reshape(40, 4)
    logits[random.random(40) < 0.2] = -np.inf
    best = np.array([0.2, 0.2, 0.7, 0.9])
    found, masses = candidate_boxes(logits, boxes, best, top_k=top_k, overlap=overlap)
    assert 1 <= len(found) == len(masses) <= top_k and np.allclose(found[0], best)
    assert (box_iou(found, found)[np.triu_indices(len(found), 1)] < overlap).all()
    assert np.isfinite(found).all() and (masses >= 0).all() and masses.sum() <= 1 + 1e-9
    assert (np.diff(masses[1:]) <= 0).all() and (np.diff(candidate_confidences(0.9, masses)) <= 0).all()
    again = candidate_boxes(logits, boxes, best, top_k=top_k, overlap=overlap)
    assert all(np.array_equal(one, other) for one, other in zip((found, masses), again, strict=True))


def test_overlaps_are_those_of_pairs() -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (9, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    first, second = (torch.from_numpy(part) for part in (np.repeat(boxes, 9, 0), np.tile(boxes, (9, 1))))
    assert np.allclose(box_iou(boxes, boxes).ravel(), paired_iou(first, second).numpy())
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]
