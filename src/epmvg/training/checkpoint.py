"""Checkpoints of a run: written atomically, verified by checksum when read, with the one before as a spare."""

from __future__ import annotations

import json
import random
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any, cast

import numpy as np
import torch

from epmvg.core.distributed import broadcast, gather
from epmvg.core.files import atomic_write, disk_errors, write_text
from epmvg.core.types import InputError
from epmvg.data.samples import SAMPLES, SampleDigest, read_digests
from epmvg.training.errors import raise_on_all_processes
from epmvg.training.folder import restart_advice
from epmvg.training.run import Run, TrainingState

FOLDER = "checkpoint"
"""In a run's folder; contains last.pt and previous.pt."""

_VERSION = 4


def save_checkpoint(run: Run) -> None:
    """Save everything that `--resume` needs; the checkpoint before stays as previous.pt.

    Raises:
        InputError: A weight is NaN or infinite, or the disk is full.
    """
    local = gather((_rng_states(), run.means.state_dict()))
    if not run.accelerator.is_main_process:
        return
    folder, weights = run.folder / FOLDER, run.model.state_dict()
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} contains NaN or Inf after step {run.state.step}, so the checkpoint before stays in {folder}. "
                f"To continue, {restart_advice(run.folder)}, with a lower train.lr or train.max_grad_norm=1."
            )
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    checkpoint = {
        "version": _VERSION,
        "model": weights,
        "teacher": None if run.trained_teacher is None else run.trained_teacher.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "rng": [states for states, _ in local],  # of each process, like the next
        "means": [means for _, means in local],
        "state": asdict(run.state) | {"seconds": run.seconds},
    }
    last = folder / "last.pt"
    with atomic_write(last) as temporary:
        with temporary.open("wb") as out:
            torch.save(checkpoint, out)
        if last.exists():
            last.replace(folder / "previous.pt")


def restore(run: Run) -> None:
    """Load the last checkpoint into a run, and remove later rows from metrics.jsonl.

    Raises:
        InputError: It is damaged, of another version, world size, teacher or data, or differs between machines.
    """
    folder = run.folder / FOLDER
    checkpoint, is_spare = _read_last(folder)
    steps = broadcast(gather("none" if checkpoint is None else f"step {checkpoint['state']['step']}"))
    if len(set(steps)) > 1:
        raise InputError(
            f"The processes found different checkpoints in {folder} ({', '.join(steps)}). Let all machines share that "
            "folder, or copy it to each."
        )
    if checkpoint is None:
        warnings.warn(f"{run.folder} was stopped before its first checkpoint, so it starts again.", stacklevel=3)
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
        return
    if checkpoint.get("version") != _VERSION:
        raise InputError(
            f"{folder} was saved by another version of epmvg. Resume it with that one, or {restart_advice(run.folder)}."
        )
    _check_samples(run)
    world_size = len(checkpoint["rng"])
    if world_size != run.accelerator.num_processes and checkpoint["state"]["step"] < run.count.total:
        raise InputError(f"{run.folder} was trained by {world_size} processes. Resume it with as many.")
    run.model.load_state_dict(checkpoint["model"])
    if run.trained_teacher is not None:
        run.trained_teacher.load_state_dict(checkpoint["teacher"])
    if run.average is not None:
        run.average.load_state_dict(checkpoint["average"])
    run.optimizer.load_state_dict(checkpoint["optimizer"])
    run.scheduler.load_state_dict(checkpoint["scheduler"])
    rank = min(run.accelerator.process_index, world_size - 1)  # differs where nothing remains to be trained
    _set_rng_states(checkpoint["rng"][rank])
    run.means.load_state_dict(checkpoint["means"][rank], run.accelerator.device)
    run.started = monotonic() - checkpoint["state"].pop("seconds")
    run.state = TrainingState(**checkpoint["state"])
    if run.accelerator.is_main_process:
        _truncate_metrics(run.folder / "metrics.jsonl", run.state)
        if is_spare:  # else the next checkpoint would replace it by the damaged one
            (folder / "last.pt").unlink()


def _truncate_metrics(file: Path, state: TrainingState) -> None:
    kept = []
    for line in file.read_bytes().split(b"\n") if file.exists() else []:
        try:
            row = json.loads(line)
            if row["step"] <= (state.validated_step if row["event"] == "evaluate" else state.step):
                kept.append(line.decode() + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # damaged, or being written when the run was killed
    write_text(file, "".join(kept))


def save_samples(run: Run) -> None:
    """Write digests of the samples and the teacher, which `--resume` and `evaluate` compare."""
    if run.accelerator.is_main_process:
        digests: dict[str, Any] = {name: samples.as_dict() for name, samples in run.samples.items()}
        digests["teacher"] = run.teacher_fingerprint
        write_text(run.folder / SAMPLES, json.dumps(digests, indent=1) + "\n")


def _check_samples(run: Run) -> None:
    file, saved, teacher = run.folder / SAMPLES, dict[str, SampleDigest](), None
    with raise_on_all_processes():
        if run.accelerator.is_main_process and file.exists():
            saved, teacher = read_digests(file)
    saved, teacher = broadcast((saved, teacher))
    if not saved:
        return
    advice = f"Restore what it began with, also images that are missing now, or {restart_advice(run.folder)}"
    for name, samples in run.samples.items():
        before = saved[name]
        if samples != before:
            split = "training" if name == "train" else "validation"
            raise InputError(
                f"The {split} samples of {run.recipe.data.name} changed since {run.folder} began "
                f"({before} then, {samples} now). {advice}."
            )
    if run.teacher_fingerprint != teacher and run.recipe.distill is not None:
        raise InputError(f"The teacher {run.recipe.distill.teacher} changed since {run.folder} began. {advice}.")


def _rng_states() -> dict[str, Any]:
    """Return the states of all random number generators of this process, as plain values and tensors."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
    }


def _set_rng_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))


def _read_last(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """Read the last checkpoint, None where none was saved; and whether it is the one before a damaged one."""
    files = [file for file in (folder / "last.pt", folder / "previous.pt") if file.exists()]
    for file in files:
        checkpoint = read_checkpoint(file)
        if checkpoint is not None:
            if file != files[0]:
                step = checkpoint["state"]["step"]
                warnings.warn(f"{files[0]} is damaged. Continuing from {file.name}, step {step}.", stacklevel=4)
            return checkpoint, file != files[0]
    if files:
        raise InputError(
            f"{files[0]} is damaged, and no other checkpoint is intact. To continue, {restart_advice(folder.parent)}."
        )
    return None, False


def read_checkpoint(file: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or return None where a checksum does not fit."""
    try:
        with zipfile.ZipFile(file) as parts:
            if parts.testzip() is not None:
                return None
        return cast(dict[str, Any], torch.load(file, map_location="cpu", weights_only=True))
    except PermissionError:
        raise
    except Exception:  # on damaged bytes its readers raise nearly anything
        return None
