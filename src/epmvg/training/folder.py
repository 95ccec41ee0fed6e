"""A run's folder: one training writes it at a time, and none overwrites another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from epmvg.config.flat import as_override, flatten, override_text
from epmvg.config.settings import Recipe
from epmvg.core.files import disk_errors, write_text
from epmvg.core.types import InputError
from epmvg.data.registry import DATASETS

LOCK = ".lock"
"""Locked in a run's folder while it is written; the system unlocks it when its process ends."""

RESUMABLE = {
    *("name", "about", "data.root", "data.num_workers", "train.gradient_checkpointing"),
    *("train.log_interval", "train.save_interval", "train.eval_interval", "train.feature_cache_gb"),
}
"""Settings that do not change the weights, so that a resumed run may have others."""

_PATHS = ("data.name", "distill.teacher", "distill.pretrained", "distill.unlabeled", "model.init_from")
"""Settings that may be paths; their content is compared, so the folder may be another."""


@contextmanager
def lock_folder(folder: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Check and lock a run's folder while it is written.

    Raises:
        InputError: It contains another run, none to resume, or is locked by another training.
    """
    _check_folder(folder, recipe, resume)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / LOCK).acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder} is being written by another training. Wait for its end, or choose another --out."
            ) from error
    with lock:
        _check_folder(folder, recipe, resume)  # again, as nobody else can write it now
        if not resume:
            write_text(folder / "config.yaml", recipe.dump())
        yield


def remove_folder(folder: Path) -> None:
    """Remove what `lock_folder` wrote."""
    for name in ("config.yaml", LOCK):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # there were other hidden files before
        folder.rmdir()


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths, so that its run can be used from any folder."""

    def absolute(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name is not None and Path(name).exists() else name

    data, model, distill = recipe.data, recipe.model, recipe.distill
    name = data.name if data.name in DATASETS else str(Path(data.name).absolute())
    root = None if data.root is None else str(Path(data.root).absolute())
    update: dict[str, Any] = {
        "data": data.model_copy(update={"name": name, "root": root}),
        "model": model.model_copy(update={"init_from": absolute(model.init_from)}),
    }
    if distill is not None:
        paths = {key: absolute(getattr(distill, key)) for key in ("teacher", "pretrained", "unlabeled")}
        update["distill"] = distill.model_copy(update=paths)
    return recipe.model_copy(update=update)


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Return `key=value (was value)` of each setting that differs and changes the weights."""
    old, new = flatten(before.model_dump()), flatten(now.model_dump())
    changed = [key for key in {**old, **new} if key not in RESUMABLE and not _same(key, old.get(key), new.get(key))]
    return [f"{as_override(key, new.get(key))} (was {override_text(old.get(key))})" for key in changed]


def restart_advice(folder: Path) -> str:
    """Return how to continue where a run cannot be resumed."""
    weights = f" from this run's weights by model.init_from={folder}" if (folder / "model.safetensors").exists() else ""
    return f"start another --out{weights}"


def _same(key: str, old: Any, new: Any) -> bool:
    if key == "data.cache_gb":  # cached images were reduced once before their transform, whatever the cache holds
        return bool(old) == bool(new)
    if key in _PATHS and isinstance(old, str) and isinstance(new, str):
        paths = Path(old), Path(new)
        return paths[0].name == paths[1].name if any(path.is_absolute() for path in paths) else old == new
    return bool(old == new)


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    config = folder / "config.yaml"
    if resume:
        if not config.exists():
            raise InputError(f"{folder} contains no run to resume. Omit --resume to start one.")
        changed = differences(Recipe.load(config), recipe)
        if changed:
            raise InputError(
                f"{folder} was started with other settings: {', '.join(changed)}. Resume it with its own, or "
                f"{restart_advice(folder)}."
            )
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise InputError(f"{folder} is not empty. Choose another --out, or continue that run with --resume.")
