"""The server against its own OpenAPI, asked by schemathesis: it takes what it promises to take and refuses the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from serving import serving

from epmvg.inference.predictor import Predictor
from epmvg.models.factory import create_model
from epmvg.serve.limits import Limits

LIMITS = Limits(letters=8, phrases=3, pictures=3)  # small, so that what lies just beyond is tried often
TOKEN = "s3cret"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    torch.manual_seed(0)
    with serving(Predictor(create_model("tiny-resnet").eval()), LIMITS, token=TOKEN) as found:
        yield found


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing", 20), pytest.param("coverage,fuzzing", 2_000, marks=pytest.mark.slow)],
    ids=["briefly", "at length"],
)
def test_answers_are_as_promised(address: str, phases: str, examples: int, tmp_path: Path) -> None:
    command = [str(SCHEMATHESIS), "run", f"{address}/openapi.json", "-H", f"Authorization: Bearer {TOKEN}"]
    command += ["--phases", phases, "-n", str(examples), "--generation-deterministic"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)}
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
