"""Accuracy at a bound counts an overlap that reaches it exactly, as `PROTOCOL` says."""

from __future__ import annotations

import math

from epmvg.evaluation.evaluate import PROTOCOL
from epmvg.evaluation.metrics import Scores


def test_an_overlap_of_exactly_the_bound_counts() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    rows = [{"iou": iou, "box": box, "target": box} for iou in (math.nextafter(0.5, 0), 0.25, 0.5, 0.75)]
    scores, strict = Scores.of(rows), Scores.of(rows, strict=True)
    assert (scores.acc25, scores.acc50, scores.acc75) == (1.0, 0.5, 0.25)
    assert (strict.acc25, strict.acc50, strict.acc75) == (0.75, 0.25, 0.0)
    assert PROTOCOL.startswith("IoU >= 0.5")
