"""The benchmark: each preset and backend against the plain re-creation, taking turns in one process."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.profiler import profile

from epmvg.config.settings import AugmentSettings
from epmvg.core.types import Progress, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.models.presets import preset
from reference import PHRASES
from reference.activations import LiveTensors
from reference.machine import machine
from reference.memory import peaks
from reference.timing import interleaved, timer
from reference.work import RUNTIMES, TimedRuntime, Work, available_runtimes

PRESETS = ("mini", "transvg-r50", "transvg-r101", "transvg-swin-s", "qrnet-swin-s")
COUNTS = (1, len(PHRASES))
MATRIX_WORK = (
    "convolution",
    "conv2d",
    "mm",
    "linear",
    "attention",
)  # parts of the names of kernels that multiply matrices

Figures = dict[str, list[Any]]
"""Rows by part."""


def bench(
    presets: Sequence[str] = PRESETS, *, quick: bool = False, memory: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure presets and return the machine and rows of figures.

    Args:
        presets: names of `list_models()`.
        quick: few rounds, and no batches of images.
        memory: measure peak memory too, each in a process of its own.
        progress: called with presets (done, total).

    Returns:
        machine, and lists of rows: rows (latencies by backend, precision and phrases an image, against the plain
        re-creation), batches (images/s by batch size), matrix (where the time of one pass in torch goes), training,
        loader and sizes; and left_out, a sentence for each backend that is not installed and each measurement
        that was killed.

    Raises:
        InputError: unknown preset.
    """
    for name in presets:
        preset(name)
    found: dict[str, Any] = {"machine": machine()}
    found |= {part: [] for part in ("rows", "batches", "matrix", "training", "loader", "sizes", "left_out")}
    for number, name in enumerate(presets):
        if progress:
            progress(number, len(presets))
        with tempfile.TemporaryDirectory() as folder:
            plain_mb = peaks(name, "plain", "fp32") if memory else None
            queries = partial(_measure_inference, name, Path(folder), quick, plain_mb, found["machine"]["peak_gflops"])
            parts: dict[str, Callable[[], Figures]] = {backend: partial(queries, backend) for backend in RUNTIMES}
            for what, measure in (parts | {"training": partial(_measure_training, name, quick)}).items():
                for part, rows in _apart(f"{what} of {name}", measure).items():
                    found[part] += rows
    if progress:
        progress(len(presets), len(presets))
    return found


def _apart(what: str, measure: Callable[[], Figures]) -> Figures:
    """Measure in a process of its own: what networks, graphs and optimizers held is not all given back."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as apart:
        try:
            return apart.submit(measure).result()
        except BrokenProcessPool:
            return {"left_out": [f"{what} is left out: what measured it was killed, perhaps for memory."]}


def _measure_inference(
    name: str, folder: Path, quick: bool, plain_mb: dict[int, int] | None, peak: dict[str, float], backend: str
) -> Figures:
    """Measure the latency of a preset in a runtime; exported graphs are kept in `folder`."""
    rounds = 3 if quick else 9
    work = Work(name)
    found: Figures = {"left_out": [], "batches": []}
    runtimes = available_runtimes(work, folder, found["left_out"].append, [backend])
    with torch.inference_mode():
        found["rows"] = time_inference(work, runtimes, rounds, peak, plain_mb)
        found["matrix"] = [
            {"preset": name} | where_time_goes(runtime) for runtime in runtimes if runtime.backend == "torch"
        ]
        if not quick:
            found["batches"] = batches(work, runtimes)
    found["sizes"] = [
        {"preset": name, "backend": one.backend, "precision": one.precision, "mb": one.size_mb} for one in runtimes
    ]
    return found


def _measure_training(name: str, quick: bool) -> Figures:
    """Measure a preset's training step, and the loader that feeds it."""
    work = Work(name)
    return {
        "training": training(work, 1 if quick else 3),
        "loader": [{"preset": name} | loader(work, 8 if quick else 32)],
    }


def time_inference(
    work: Work, runtimes: Sequence[TimedRuntime], rounds: int, peak: dict[str, float], plain_mb: dict[int, int] | None
) -> list[dict[str, Any]]:
    """Time each runtime and the plain re-creation in turn on one image; a row per runtime and number of phrases.

    With the re-creation's peak memory by phrases, `plain_mb`, that of each runtime is measured beside it.
    """
    if not runtimes:
        return []
    plain, rows = work.plain(), []
    mb = {}
    if plain_mb is not None:
        mb = {(r.backend, r.precision): peaks(work.preset, r.backend, r.precision, r.folder) for r in runtimes}
    for phrases in COUNTS:
        runs: list[Callable[[], object]] = [partial(work.predict_plainly, plain, phrases)]
        runs += [partial(runtime.predict, 1, phrases) for runtime in runtimes]
        plainly, *others = interleaved([timer(run) for run in runs], rounds)
        truth = work.predict_plainly(plain, phrases).numpy()
        flops = work.flops(1, phrases)
        for runtime, times in zip(runtimes, others, strict=True):
            seconds = statistics.median(times)
            rate = flops / seconds / 1e9
            most = peak.get(runtime.precision, peak["fp32"])
            rows.append(
                {
                    "preset": work.preset,
                    "backend": runtime.backend,
                    "precision": runtime.precision,
                    "phrases_per_image": phrases,
                    "ms_per_image": round(seconds * 1e3, 2),
                    "p50_ms": round(quantile(times, 0.5) * 1e3, 2),
                    "p95_ms": round(quantile(times, 0.95) * 1e3, 2),
                    "images_per_s": round(1 / seconds, 2),
                    "phrases_per_s": round(phrases / seconds, 2),
                    "peak_mb": mb.get((runtime.backend, runtime.precision), {}).get(phrases),
                    "reference_ms": round(statistics.median(plainly) * 1e3, 2),
                    "reference_peak_mb": (plain_mb or {}).get(phrases),
                    "ratio_to_reference": round(seconds / statistics.median(plainly), 3),
                    "gflops": round(flops / 1e9, 2),
                    "gflops_per_s": round(rate, 1),
                    "share_of_peak": round(rate / most, 3),
                    "max_box_difference": float(np.abs(runtime.predict(1, phrases) - truth).max()),
                    "rounds": rounds,
                }
            )
    return rows


def batches(work: Work, runtimes: Sequence[TimedRuntime], sizes: Sequence[int] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    """Time batches of images with one phrase each."""
    rows = []
    for runtime in runtimes:
        for images in sizes:
            (times,) = interleaved([timer(partial(runtime.predict, images, 1))], 3)
            rate = images / statistics.median(times)
            rows.append(
                {
                    "preset": work.preset,
                    "backend": runtime.backend,
                    "precision": runtime.precision,
                    "images": images,
                    "images_per_s": round(rate, 2),
                }
            )
    return rows


def where_time_goes(runtime: TimedRuntime, images: int = 1, phrases: int = 1) -> dict[str, Any]:
    """Profile one pass of a torch runtime: the share of its time in matrix work, and what takes the rest."""
    runtime.predict(images, phrases)
    with profile(use_kineto=False) as watched:
        runtime.predict(images, phrases)
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in watched.key_averages()}
    return {"backend": runtime.backend, "precision": runtime.precision} | shares(spent, MATRIX_WORK)


def shares(spent: Mapping[str, float], matrix_work: Sequence[str]) -> dict[str, Any]:
    """Split the time of kernels by name: the share of those named by a part of `matrix_work`, and the next largest."""
    total = sum(spent.values()) or 1
    others = {key: value for key, value in spent.items() if not any(part in key for part in matrix_work)}
    largest = sorted(others, key=lambda key: -others[key])[:5]
    rest = {key: round(others[key] / total, 3) for key in largest}
    return {"share": round(1 - sum(others.values()) / total, 3), "rest": rest}


def training(work: Work, rounds: int) -> list[dict[str, Any]]:
    """Time training steps a phrase, grouped by image, against the plain re-creation's at one phrase an image."""
    student, plain = work.student.train(), PlainStep(work)
    optimizer = optimizer_of(student)
    ours = {phrases: OurStep(work, optimizer, phrases) for phrases in COUNTS}
    rows = []
    *taken, plainly = interleaved([*(timer(step.take) for step in ours.values()), timer(plain.take)], rounds)
    theirs = statistics.median(plainly) / plain.phrases
    for (phrases, step), times in zip(ours.items(), taken, strict=True):
        each = statistics.median(times) / step.phrases
        row = {"preset": work.preset, "precision": "fp32", "phrases_per_image": phrases}
        row |= {"ms_per_phrase": round(each * 1e3, 2), "ratio_to_reference": round(each / theirs, 3)}
        row |= {"activation_mb": step.activation_mb()}
        student.set_grad_checkpointing(True)
        row |= {"activation_mb_checkpointed": step.activation_mb()}
        student.set_grad_checkpointing(False)
        rows.append(row)
    return rows


class OurStep:
    """A training step of two images, or one, with some phrases each."""

    def __init__(self, work: Work, optimizer: torch.optim.Optimizer, phrases: int) -> None:
        images = 1 if work.student.visual_encoder.query_aware else 2  # a phrase costs it nearly an image's memory
        self.student, self.optimizer, self.phrases = work.student, optimizer, images * phrases
        self.inputs = work.inputs(images, phrases)
        self.target = torch.full((self.phrases, 4), 0.4)

    def loss(self) -> Tensor:
        box: Tensor = self.student(*self.inputs).box
        return (box - self.target).abs().sum()

    def take(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def activation_mb(self) -> float:
        """What the forward pass leaves for the backward pass, MB."""
        known = [*self.student.parameters(), *self.student.buffers(), *self.inputs, self.target]
        live = LiveTensors(known)
        with live:
            loss = self.loss()
        size = live.megabytes()
        del loss
        return size


class PlainStep:
    """The published training step: two phrases, an image encoding each."""

    phrases = 2

    def __init__(self, work: Work) -> None:
        self.plain = work.plain().train()
        self.inputs = (*work.image_batch(self.phrases), *work.full_length(PHRASES[: self.phrases]))
        self.optimizer = optimizer_of(self.plain)

    def take(self) -> None:
        (self.plain(*self.inputs) - 0.4).abs().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-6)


def loader(work: Work, images: int) -> dict[str, Any]:
    """Time opening JPEG files of 640 x 480 as training and as evaluation views, images/s of one process."""
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for number in range(images):
            coarse = Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            file = Path(folder) / f"{number}.jpg"
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, quality=90)
            records.append(Sample(file, PHRASES[number % len(PHRASES)], (100.0, 100.0, 300.0, 300.0)))
        rates = {}
        for name, augment in (
            ("training", AugmentSettings(horizontal_flip=0.5, crop=0.5, scale=1, color_jitter=0.8, translate=1.0)),
            ("evaluation", None),
        ):
            one = GroundingLoader(
                records, work.student.tokenize, image_size=work.student.image_size, batch_size=8, augment=augment
            )
            (times,) = interleaved([timer(partial(_epoch, one))], 2)
            rates[f"{name}_images_per_s"] = round(images / statistics.median(times), 1)
        return rates


def _epoch(loader: GroundingLoader) -> None:
    for _ in loader.batches(0):
        pass


def quantile(times: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(times), share))
