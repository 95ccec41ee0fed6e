"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import epmvg
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path, squares: Path) -> Path:
    folder = tmp_path / "run"
    save(tiny, folder)
    recipe = epmvg.Recipe.load("scenes", f"data.name={squares}", "model=tiny-resnet")
    (folder / "config.yaml").write_text(recipe.dump())
    return folder
