"""The reference implementation predicts the same boxes, and the benchmark's figures are consistent."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from epmvg.core.types import InputError
from reference import PHRASES, memory, suite, work
from reference.activations import LiveTensors
from reference.page import tables, write_figures
from reference.suite import bench


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-swin", "mini"])
def test_the_reference_predicts_the_same_boxes(name: str, tmp_path: Path) -> None:
    preset_work = work.Work(name)
    ours = next(work.torch_runtimes(preset_work, tmp_path))
    with torch.inference_mode():
        theirs = preset_work.predict_plainly(preset_work.plain(), len(PHRASES))
    torch.testing.assert_close(torch.from_numpy(ours.predict(1, len(PHRASES))), theirs.double(), atol=1e-5, rtol=0)


def test_a_runtime_that_is_not_installed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said: list[str] = []
    runtimes = work.available_runtimes(work.Work("tiny-resnet"), tmp_path, said.append)
    assert {runtime.backend for runtime in runtimes} == {"torch"}
    assert [line.split()[0] for line in said] == ["onnx", "openvino"] and all("epmvg[train]" in line for line in said)
    assert not any(tmp_path.iterdir())


def dies(*settings: object) -> None:
    os._exit(9)


@pytest.mark.slow
def test_a_preset_that_memory_does_not_hold_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_measure_inference", dies)
    monkeypatch.setattr(suite, "_measure_training", dies)
    monkeypatch.setattr(suite, "RUNTIMES", ["torch"])
    found = bench(["tiny-resnet"], quick=True)
    said = [line.split(":")[0] for line in found["left_out"]]
    assert said == [f"{what} of tiny-resnet is left out" for what in ("torch", "training")]
    assert not found["rows"] and not found["training"]


@pytest.mark.slow
def test_figures_follow_from_each_other(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    found = bench(["tiny-resnet"], quick=True, memory=False)
    forms = {(row["backend"], row["precision"]) for row in found["rows"]}
    assert forms >= {(backend, "fp32") for backend in work.RUNTIMES} | {("onnx", "int8"), ("openvino", "int8")}
    assert forms == {(row["backend"], row["precision"]) for row in found["sizes"]} and found["left_out"] == []
    assert {row["phrases_per_image"] for row in found["rows"]} == {1, 7}
    for row in found["rows"]:
        assert row["phrases_per_s"] == pytest.approx(row["phrases_per_image"] * row["images_per_s"], rel=0.05)
        assert row["ratio_to_reference"] == pytest.approx(row["ms_per_image"] / row["reference_ms"], rel=0.05)
        assert row["p50_ms"] <= row["p95_ms"]
        assert row["max_box_difference"] < (1e-5 if row["precision"] == "fp32" else 0.05)
    assert all(row["activation_mb_checkpointed"] < row["activation_mb"] for row in found["training"])
    write_figures(found, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(found))
    assert (tmp_path / "bench.md").read_text() == tables(found) and "<svg" in (tmp_path / "bench.svg").read_text()


def test_an_unknown_preset_is_named_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="Did you mean 'mini'"):
        bench(["minni"])


def test_live_tensors_are_those_that_the_backward_pass_needs() -> None:
    layers = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU())
    x = torch.rand(1000, 100)
    with LiveTensors([*layers.parameters(), x]) as live:
        output = layers(x)
    assert live.megabytes() == pytest.approx(0.8)  # both ReLUs' outputs: a linear layer needs its input alone
    with torch.no_grad(), LiveTensors([*layers.parameters(), x]) as live:
        output = layers(x)
    assert live.megabytes() == pytest.approx(0.4)  # the last output
    del output
    assert live.megabytes() == 0


def test_the_gpu_benchmark_runs_in_its_tiny_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "gpu.json"), "--tiny"])
    runpy.run_path(str(script), run_name="__main__")
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["work"] for row in rows} == {"inference", "training"}
    assert all(row["phrases_per_s"] > 0 for row in rows)


def test_peak_memory_counts_what_was_held_and_can_be_forgotten() -> None:
    """In a process of its own, as the bench measures: in this one other tests' threads come and go."""
    script = """
from reference.memory import forget_peak, peak_mb
forget_peak()
peaks = [peak_mb()]
held = bytearray(200_000_000)
held[::4096] = b"x" * len(held[::4096])
peaks.append(peak_mb())
del held
peaks.append(peak_mb())
forget_peak()
print(*peaks, peak_mb())
"""
    folder = Path(__file__).parents[1] / "benchmarks"
    said = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=folder).stdout
    before, held, kept, forgotten = map(int, said.split())
    assert held - before == pytest.approx(200_000_000 / 2**20, abs=20)
    assert kept == pytest.approx(held, abs=2)  # the kernel counts pages by processor, and not always to the last
    assert forgotten - before < 50


@pytest.mark.parametrize("backend", ["plain", "torch"])
def test_more_phrases_hold_no_less_memory(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory", "tiny-resnet", backend, "fp32"])
    memory.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["1", "7"] and 100 < found["1"] <= found["7"]
