"""Latency is measured on images and phrases that no cache knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from epmvg.cli import main
from epmvg.inference.predictor import Predictor
from epmvg.inference.timing import measure_latency
from epmvg.models.grounder import Grounder


def test_a_cached_image_is_faster_than_a_new_one(tiny: Grounder) -> None:
    latency = measure_latency(Predictor(tiny), rounds=9)
    assert 0 < latency.cached_image < latency.new_image


def test_bench_prints_a_table(tiny: Grounder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from epmvg.models.factory import save

    save(tiny, tmp_path / "run")
    with pytest.raises(SystemExit, match="0"):
        main(["bench", str(tmp_path / "run")])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert names == ["load_s", "new_image_ms", "further_phrase_ms", "cached_image_ms", "peak_memory_mib"]
