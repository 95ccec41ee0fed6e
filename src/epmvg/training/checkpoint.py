"""What `--resume` goes on from: saved whole, checked when it is read, the one before it kept."""

from __future__ import annotations

import json
import random
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from epmvg.core.distributed import gathered, told
from epmvg.core.files import atomic_write, disk_errors, write_text
from epmvg.core.types import InputError
from epmvg.data.samples import SAMPLES, SampleDigest
from epmvg.training.folder import another_run
from epmvg.training.optimizer import make_optimizer
from epmvg.training.run import Position, Run

_VERSION = 2
"""Of the content of a saved state."""


def save_state(run: Run) -> None:
    """Keep everything that `--resume` needs; the state before it stays as previous.pt.

    torch writes a checksum of each tensor, which `restore` compares.
    """
    own = gathered((_generators(), run.meter.state()))
    student = run.student.state_dict()
    beside = {name: part.state_dict() for name, part in run.beside.items()}
    optimizer = run.optimizer.state_dict()
    if not run.accelerator.is_main_process:
        return
    for name, tensor in student.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} holds NaN or infinity after step {run.position.step}: {another_run(run.folder)}, with a lower "
                f"train.lr or train.max_grad_norm=1; {run.folder / 'state'} keeps the state before."
            )
    folder = run.folder / "state"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    state = {
        "version": _VERSION,
        "student": student,
        "beside": beside,
        "optimizer": optimizer,
        "new": run.new,
        "random": [random for random, _ in own],  # of each process, like the next
        "meter": [meter for _, meter in own],
        "position": asdict(run.position),
    }
    last = folder / "last.pt"
    with atomic_write(last) as temporary:
        with temporary.open("wb") as out:
            torch.save(state, out)
        if last.exists():
            last.replace(folder / "previous.pt")


def restore(run: Run) -> None:
    """Go back to the last saved step, and forget what metrics.jsonl says of later ones."""
    state = _read_state(run.folder / "state")
    steps = told(gathered("none" if state is None else f"step {state['position']['step']}"))
    if len(set(steps)) > 1:
        raise InputError(
            f"The processes found different states in {run.folder / 'state'} ({', '.join(steps)}): "
            "let all machines share that folder, or copy it to each."
        )
    if state is None:
        warnings.warn(f"{run.folder} was stopped before its first saved step: it starts again.", stacklevel=3)
        (run.folder / "metrics.jsonl").unlink(missing_ok=True)
        return
    if state.get("version") != _VERSION:
        raise InputError(
            f"{run.folder / 'state'} was saved by another version of epmvg: resume it with that one, or "
            f"{another_run(run.folder)}."
        )
    _check_samples(run)
    processes = len(state["random"])
    if processes != run.accelerator.num_processes:
        raise InputError(f"{run.folder} was trained by {processes} processes: resume it with as many.")
    saved = {"student": state["student"]} | state["beside"]
    for name, part in ({"student": run.student} | run.beside).items():
        part.load_state_dict(saved[name])
    if run.new != state["new"]:  # what it started from says otherwise now
        run.new = state["new"]
        run.optimizer = make_optimizer(run.student, run.recipe.train, run.new, run.beside)
    run.optimizer.load_state_dict(state["optimizer"])
    _set_generators(state["random"][run.accelerator.process_index])
    run.meter.load_state(state["meter"][run.accelerator.process_index], run.accelerator.device)
    run.position = Position(**state["position"])
    metrics = run.folder / "metrics.jsonl"
    if metrics.exists() and run.accelerator.is_main_process:
        kept = []
        for line in metrics.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
                known = run.position.scored if row["event"] == "evaluate" else run.position.step
                if row["step"] <= known:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the line that was being written when the run was killed
        write_text(metrics, "".join(kept))


def save_samples(run: Run) -> None:
    """Write what the run learns from and is scored on, for `--resume` and `evaluate` to compare."""
    if run.accelerator.is_main_process:
        write_text(run.folder / SAMPLES, json.dumps(_own_samples(run), indent=1) + "\n")


def _own_samples(run: Run) -> dict[str, Any]:
    own: dict[str, Any] = {name: samples.as_dict() for name, samples in run.samples.items()}
    return own | {"teacher": run.teacher}


def _check_samples(run: Run) -> None:
    """Refuse to go on with other samples, or with a teacher that gives other targets.

    Raises:
        InputError: they changed since the run began.
    """
    file = run.folder / SAMPLES
    known: dict[str, Any] | None = None
    if run.accelerator.is_main_process and file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
    known = told(known)
    if known is None:
        return
    cure = f"bring back what it began with, or {another_run(run.folder)}"
    for name, samples in run.samples.items():
        before = SampleDigest(**known[name])
        if samples != before:
            split = "training" if name == "train" else "validation"
            raise InputError(
                f"The {split} samples of {run.recipe.data.name} changed since {run.folder} began "
                f"({before} then, {samples} now): {cure}."
            )
    if run.teacher != known["teacher"] and run.recipe.distill is not None:
        raise InputError(f"The teacher {run.recipe.distill.teacher} changed since {run.folder} began: {cure}.")


def _generators() -> dict[str, Any]:
    """Return the states of all random number generators of this process, as plain values and tensors."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
    }


def _set_generators(states: dict[str, Any]) -> None:
    """Restore what `_generators` returned, for the devices that are there now."""
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Read the last saved state, or the one before it where the last is damaged; None where none was saved.

    Raises:
        InputError: neither can be read.
    """
    files = [file for file in (folder / "last.pt", folder / "previous.pt") if file.exists()]
    for file in files:
        state = whole_state(file)
        if state is not None:
            if file != files[0]:
                step = state["position"]["step"]
                warnings.warn(f"{files[0]} is damaged: going on from {file.name}, step {step}.", stacklevel=4)
            return state
    if files:
        raise InputError(f"{files[0]} is damaged and no other state is whole: {another_run(folder.parent)}.")
    return None


def whole_state(file: Path) -> dict[str, Any] | None:
    """Read a state whose checksums are right, or return None."""
    try:
        with zipfile.ZipFile(file) as parts:
            if parts.testzip() is not None:
                return None
        return cast(dict[str, Any], torch.load(file, map_location="cpu", weights_only=True))
    except PermissionError:
        raise
    except Exception:  # on broken bytes its readers raise nearly anything
        return None
