"""A run's folder: one training writes it at a time, and none writes over another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from epmvg.config import Recipe
from epmvg.types import InputError
from epmvg.writing import naming, write_text

LOCK = ".lock"
"""Held in a run's folder while it is written; the system lets it go when its holder dies."""


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Hold the folder for as long as it is written, once it is ours to write."""
    _check_folder(folder, recipe, resume)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / LOCK).acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder} is being written by another training: wait for its end, or choose another --out."
            ) from error
    with held:
        _check_folder(folder, recipe, resume)  # again, for now nobody else can write it
        if not resume:
            write_text(folder / "config.yaml", recipe.dump())
        yield


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that holds another run, or none to go on with."""
    config = folder / "config.yaml"
    if resume:
        if not config.exists():
            raise InputError(f"{folder} holds no run to resume: leave out --resume to start one.")
        if config.read_text(encoding="utf-8") != recipe.dump():
            raise InputError(f"{folder} was started with other settings: resume with the same recipe and overrides.")
        return
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another --out, or go on with that run by --resume.")
