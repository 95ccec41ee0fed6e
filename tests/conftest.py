"""Fixtures of several packages: a tiny model, images with known boxes, the reference material if present."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # processes forked by tests must not wait for threads that only their parent has

import pytest
import torch
from squares import draw_squares

from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder

FORKING = {"test_processes.py"}
"""Torch cannot train in a fork of a process that has trained: these tests run first."""

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
    """A small random model with every part that goes beyond the paper."""
    torch.manual_seed(0)
    return create_model("tiny-resnet", dense_head=True, similarity=True).eval()


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A JSONL data set of 12 images, each with four colored squares, one per corner; half train, half val."""
    return draw_squares(tmp_path)
