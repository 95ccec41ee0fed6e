"""A wrong convention is detected from the boxes alone, a right one never; the likeliest reading is named first."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from epmvg.core.types import Box
from epmvg.data.conventions import detect_convention

Turn = Callable[[float, float, float, float, float, float], tuple[float, float, float, float]]

WRITTEN: dict[str, Turn] = {
    "as corners": lambda x, y, w, h, u, v: (x, y, x + w, y + h),
    "as center x": lambda x, y, w, h, u, v: (x + w / 2, y + h / 2, w, h),
    "as fractions": lambda x, y, w, h, u, v: (x / u, y / v, w / u, h / v),
    "as percent": lambda x, y, w, h, u, v: (100 * x / u, 100 * y / v, 100 * w / u, 100 * h / v),
    "as percent, corners": lambda x, y, w, h, u, v: (100 * x / u, 100 * y / v, 100 * (x + w) / u, 100 * (y + h) / v),
    "as thousandths": lambda x, y, w, h, u, v: (1000 * x / u, 1000 * y / v, 1000 * w / u, 1000 * h / v),
    "as thousandths, corners": lambda x, y, w, h, u, v: (
        1000 * x / u,
        1000 * y / v,
        1000 * (x + w) / u,
        1000 * (y + h) / v,
    ),
    "times as large": lambda x, y, w, h, u, v: (2 * x, 2 * y, 2 * w, 2 * h),
}


def detected(turn: Turn | None, size: tuple[int, int], seed: int) -> str | None:
    draw = random.Random(seed)
    boxes: list[tuple[Box, tuple[int, int]]] = []
    width, height = size
    for _ in range(40):
        w, h = draw.uniform(0.1, 0.5) * width, draw.uniform(0.1, 0.5) * height
        x, y = draw.uniform(0, width - w), draw.uniform(0, height - h)
        a, b, c, d = turn(x, y, w, h, width, height) if turn else (x, y, w, h)
        boxes.append(((a, b, a + c, b + d), size))
    return detect_convention(boxes)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (2000, 1500)])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_wrong_convention_is_named(name: str, size: tuple[int, int]) -> None:
    for seed in range(10):
        found = detected(WRITTEN[name], size, seed)
        assert found is not None and name.partition(",")[0] in found, (seed, found)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (2000, 1500), (90, 90)])
def test_right_boxes_are_not_reported(size: tuple[int, int]) -> None:
    assert [detected(None, size, seed) for seed in range(50)] == [None] * 50


def test_half_the_size_is_not_called_thousandths() -> None:
    for seed in range(20):
        found = detected(lambda x, y, w, h, u, v: (x / 2, y / 2, w / 2, h / 2), (2000, 1500), seed)
        assert found is None or "thousandths" not in found


def test_all_readings_that_fit_are_named() -> None:
    found = [detected(WRITTEN["as center x"], (720, 720), seed) for seed in range(10)]
    assert any(one and "as center x, center y, width, height, 40 do; as thousandths" in one for one in found)
