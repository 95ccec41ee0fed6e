"""Schemathesis on the server's own OpenAPI: what it describes is accepted, anything else is rejected."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serving import serving

from epmvg.core.calibration import Calibration
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import create_model

TOKEN = "s3cret"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    torch.manual_seed(0)
    model = create_model("tiny-resnet").eval()
    model.calibration = Calibration("beta", 1.5, 1.5, -0.5, 0.25, 0.1, {})  # so that min_score may be auto
    with serving(Predictor(model), token=TOKEN) as served:
        yield served


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing", 20), pytest.param("coverage,fuzzing", 2_000, marks=pytest.mark.slow)],
    ids=["briefly", "at length"],
)
def test_responses_match_the_openapi_document(address: str, phases: str, examples: int, tmp_path: Path) -> None:
    command = [str(SCHEMATHESIS), "run", f"{address}/openapi.json", "-H", f"Authorization: Bearer {TOKEN}"]
    command += ["--phases", phases, "-n", str(examples), "--generation-deterministic"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
