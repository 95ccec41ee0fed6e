"""A run's folder: one training writes it at a time, and none writes over another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from epmvg.config.settings import Recipe
from epmvg.core.files import disk_errors, write_text
from epmvg.core.types import InputError
from epmvg.data.registry import DATASETS

LOCK = ".lock"
"""Held in a run's folder while it is written; the system lets it go when its holder dies."""

FREE = {
    *("name", "about", "data.root", "data.num_workers", "data.cache_gb"),
    *(
        "train.gradient_checkpointing",
        "train.log_interval",
        "train.save_interval",
        "train.eval_interval",
        "train.feature_cache_gb",
    ),
}
"""Settings that do not change what is learned, so that a resumed run may have others."""

_PATHS = ("data.name", "distill.teacher", "distill.pretrained", "model.init_from")
"""Settings that may be paths; what lies there is compared by its content, so the folder may be another."""


@contextmanager
def claimed(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Hold the folder for as long as it is written, once it is ours to write."""
    _check_folder(folder, recipe, resume)
    with disk_errors(folder):
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


def located(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths, so that its run can be used from any folder."""
    data, model, distill = recipe.data, recipe.model, recipe.distill
    name = data.name if data.name in DATASETS else str(Path(data.name).absolute())
    root = None if data.root is None else str(Path(data.root).absolute())
    update: dict[str, Any] = {
        "data": data.model_copy(update={"name": name, "root": root}),
        "model": model.model_copy(update={"init_from": _located(model.init_from)}),
    }
    if distill is not None:
        paths = {"teacher": _located(distill.teacher), "pretrained": _located(distill.pretrained)}
        update["distill"] = distill.model_copy(update=paths)
    return recipe.model_copy(update=update)


def _located(name: str | None) -> str | None:
    """Return the absolute path of what exists here; the name of anything else."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Return `key=value (was value)` of each setting that changes what is learned and is not as before."""
    old, new = _flat(before.model_dump()), _flat(now.model_dump())
    changed = [key for key in {**old, **new} if key not in FREE and not _same(key, old.get(key), new.get(key))]
    return [f"{key}={_shown(new.get(key))} (was {_shown(old.get(key))})" for key in changed]


def another_run(folder: Path) -> str:
    """Say how to go on where this run cannot be resumed."""
    kept = f" from this run's weights by model.init_from={folder}" if (folder / "model.safetensors").exists() else ""
    return f"start another --out{kept}"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _same(key: str, old: Any, new: Any) -> bool:
    if key in _PATHS and isinstance(old, str) and isinstance(new, str):
        paths = Path(old), Path(new)
        return paths[0].name == paths[1].name if any(path.is_absolute() for path in paths) else old == new
    return bool(old == new)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that holds another run, or none to go on with."""
    config = folder / "config.yaml"
    if resume:
        if not config.exists():
            raise InputError(f"{folder} holds no run to resume: leave out --resume to start one.")
        changed = differences(Recipe.load(config), recipe)
        if changed:
            raise InputError(
                f"{folder} was started with other settings: {', '.join(changed)}. Resume it with its own, or "
                f"{another_run(folder)}."
            )
        return
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another --out, or go on with that run by --resume.")
