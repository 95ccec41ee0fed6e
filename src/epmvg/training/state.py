"""What `--resume` goes on from: saved whole, checked when it is read, the one before it kept."""

from __future__ import annotations

import json
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from epmvg.processes import gathered, told
from epmvg.training.optimizer import make_optimizer
from epmvg.training.run import Position, Run
from epmvg.types import InputError
from epmvg.writing import naming, replacing, write_text


def save_state(run: Run) -> None:
    """Keep everything that `--resume` needs; the state before it stays as previous.pt.

    torch writes a checksum of each tensor, which `restore` compares.
    """
    own = gathered((torch.get_rng_state(), run.meter.state()))
    student = run.student.state_dict()
    beside = {name: part.state_dict() for name, part in run.beside.items()}
    optimizer = run.optimizer.state_dict()
    if not run.accelerator.is_main_process:
        return
    for name, tensor in student.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                f"{name} holds no numbers any more after step {run.position.step}: lower train.lr or set train.clip=1; "
                f"{run.folder / 'state'} keeps the state before."
            )
    folder = run.folder / "state"
    with naming(folder):
        folder.mkdir(exist_ok=True)
    state = {
        "student": student,
        "beside": beside,
        "optimizer": optimizer,
        "new": run.new,
        "random": [random for random, _ in own],  # of each process, like the next
        "meter": [meter for _, meter in own],
        "position": asdict(run.position),
    }
    last = folder / "last.pt"
    with replacing(last) as temporary:
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
    torch.set_rng_state(state["random"][run.accelerator.process_index])
    run.meter.load_state(state["meter"][run.accelerator.process_index], run.accelerator.device)
    run.position = Position(**state["position"])
    metrics = run.folder / "metrics.jsonl"
    if metrics.exists() and run.accelerator.is_main_process:
        kept = []
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= run.position.step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # the line that was being written when the run was killed
        write_text(metrics, "".join(kept))


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
        raise InputError(
            f"{files[0]} is damaged and no other state is whole: start again with another --out, "
            f"from this run's best weights by model.start={folder.parent}."
        )
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
