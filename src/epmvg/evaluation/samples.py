"""The samples a run is evaluated on, the files its results go to, and images it shares with its training data."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epmvg.config.settings import DataSettings, Recipe
from epmvg.core.files import disk_errors, write_text
from epmvg.core.locate import fetch, is_run, is_transformers, own_folder
from epmvg.core.types import InputError, Sample
from epmvg.data.registry import open_samples, open_unlabeled
from epmvg.data.samples import SAMPLES, SampleDigest, read_digests


def results_folder(run: Path | str, *, create: bool = False) -> Path:
    """Return the folder for results of a run: its own, or `runs/NAME` for `default` and models of the hub.

    Args:
        run: the run, as `load` takes it.
        create: make a folder that is missing, with the run's recipe, which `report` reads.

    Raises:
        InputError: another model lies in `runs/NAME`, or the folder cannot be made.
    """
    folder = own_folder(run)
    if Path(run).exists():
        return folder
    if is_run(folder) or is_transformers(folder):
        raise InputError(f"{folder} holds another model, so results of {run} cannot be written there. Rename it.")
    if create and not folder.exists():
        with disk_errors(folder):
            folder.mkdir(parents=True)
        config = fetch(run) / "config.yaml"
        if config.exists():
            write_text(folder / "config.yaml", config.read_text(encoding="utf-8"))
    return folder


def data_settings(run: Path | str, data: str | None = None, root: str | None = None) -> tuple[DataSettings, bool]:
    """Return data settings of a run, overridden by the arguments, and whether they name the data of its training.

    Raises:
        InputError: the run was converted or exported, so it has no data of its own, and `data` is not given.
    """
    config = fetch(run) / "config.yaml"
    if not config.exists():
        if data is None:
            raise InputError(f"{run} was not trained here and has no data of its own. Name some with --data.")
        return DataSettings(name=data, root=root), False
    own = Recipe.load(config).data
    is_own = data is None or data == own.name or Path(data).resolve() == Path(own.name).resolve()
    name = own.name if is_own or data is None else data
    return own.model_copy(update={"name": name, "root": root or (own.root if is_own else None)}), is_own


def open_split(settings: DataSettings, split: str | None) -> list[Sample]:
    """Read the samples of a split, all if it is None."""
    return open_samples(settings.name, split=split, root=settings.root, split_key=settings.split_key)


def evaluation_samples(
    run: Path | str, data: str | None, split: str | None, root: str | None
) -> tuple[DataSettings, str | None, list[Sample]]:
    """Return the data settings, split (None: all) and samples that a run is evaluated on.

    By default these are the validation split of the run's own data, whose other samples it was trained on.

    Raises:
        InputError: the run has no settings, or the data cannot be read.
    """
    settings, is_own = data_settings(run, data, root)
    if split is None and is_own:
        split = settings.val_split
    samples = open_split(settings, split)
    file = fetch(run) / SAMPLES
    if is_own and split == settings.val_split and file.exists():
        before, now = read_digests(file)[0]["val"], SampleDigest.of(samples)
        if now != before:
            warnings.warn(
                f"The {split} samples of {settings.name} changed since {run} was trained ({before} then, {now} now): "
                "metrics before and after cannot be compared.",
                stacklevel=3,
            )
    return settings, split, samples


def limit_to_images(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Return the samples of images drawn at random, at most `limit`."""
    images = list(dict.fromkeys(sample.image for sample in samples))
    order = {images[i]: rank for rank, i in enumerate(np.random.default_rng(seed).permutation(len(images)).tolist())}
    return sorted(samples, key=lambda sample: order[sample.image])[:limit]


def plain_phrase(phrase: str) -> str:
    """Return a phrase without differences of letter case and spaces."""
    return " ".join(phrase.casefold().split())


def short_name(data: str) -> str:
    """Return the name of a data set or file in file names."""
    return Path(data).stem.replace("*", "all")


def evaluation_name(result: Mapping[str, Any]) -> str:
    """Return the name "DATA SPLIT" of an evaluation, with a suffix where `clip` or `flip` is not the usual."""
    return f"{result['data']} {result['split']}" + result_suffix(result)


def result_suffix(result: Mapping[str, Any]) -> str:
    """Return what tells results of other evaluations of a split apart, for a result or its `clip` and `flip`."""
    return ("-canvas" if result.get("clip") == "canvas" else "") + ("-flip" if result.get("flip") else "")


def results_stem(run: Path | str, settings: DataSettings, split: str | None) -> str:
    """Return the stem of a split's result files, without characters that a file name cannot have.

    Files of the same name in other folders get four digits of a digest of their path.
    """
    stem = f"{short_name(settings.name)}-{split or 'all'}"
    plain = re.sub(r"[^\w.-]+", "-", stem).lstrip(".")
    elsewhere = Path(settings.name).is_file() and not data_settings(run, settings.name)[1]
    if plain == stem and not elsewhere:
        return stem
    whole = f"{Path(settings.name).resolve() if elsewhere else ''} {stem}"
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:4]}"


def training_images(run: Path | str) -> set[Path] | None:
    """Return the images that a run was trained on, with and without boxes; None without a recipe or readable data."""
    try:
        recipe = Recipe.load(fetch(run) / "config.yaml")
        samples = open_split(recipe.data, recipe.data.train_split)
        if recipe.unlabeled is not None:
            samples += open_unlabeled(recipe.unlabeled, recipe.data.train_split)
    except InputError:
        return None
    return {sample.image for sample in samples}


def shared_images(images: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Return those of `images` whose bytes are those of one of `others`, under any name; missing files have none."""
    first, second = ({image: _size(image) for image in set(paths)} for paths in (images, others))
    sizes = set(first.values()) & set(second.values()) - {None}
    known = {_digest(image) for image, size in second.items() if size in sizes}  # few have to be read
    return {image for image, size in first.items() if size in sizes and _digest(image) in known}


def _size(image: Path) -> int | None:
    try:
        return image.stat().st_size
    except OSError:
        return None


def _digest(image: Path) -> bytes:
    return hashlib.sha256(image.read_bytes()).digest()
