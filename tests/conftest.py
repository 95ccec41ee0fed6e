"""Fixtures that several rooms share: a tiny student, pictures with known boxes, the reference material if present."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # processes forked by tests must not wait for threads that only their parent has

import pytest
import torch
from PIL import Image, ImageDraw

from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder

FORKING = {"test_processes.py"}
"""Torch refuses to learn in a fork of a process that has learned: these come before all others."""

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FORKING)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the reference material (../shared) is not on this machine")
    return SHARED


@pytest.fixture
def tiny() -> Grounder:
    """A random student that answers in milliseconds, with every part that goes beyond the paper."""
    torch.manual_seed(0)
    return create_model("tiny-resnet", dense_head=True, similarity=True).eval()


COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A JSONL data set of 12 pictures, each with four coloured squares, one a corner; half train, half val."""
    return draw_squares(tmp_path)


def draw_squares(folder: Path) -> Path:
    """Draw the squares into a folder; return their file."""
    rows = []
    for number in range(12):
        image = Image.new("RGB", (80, 60), (120, 120, 120))
        draw = ImageDraw.Draw(image)
        names = list(COLOURS)
        names = names[number % 4 :] + names[: number % 4]
        for place, name in enumerate(names):
            x, y = 4 + 40 * (place % 2) + number % 3, 4 + 30 * (place // 2)
            draw.rectangle((x, y, x + 23, y + 19), fill=COLOURS[name])
            bbox = [x, y, 24, 20]
            split = "train" if number % 2 == 0 else "val"
            row = {"image": f"{number}.png", "phrase": f"the {name} square", "bbox": bbox, "split": split}
            rows.append(row | {"id": f"{number}-{name}", "width": 80, "height": 60, "kind": "colour"})
        image.save(folder / f"{number}.png")
    file = folder / "annotations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
