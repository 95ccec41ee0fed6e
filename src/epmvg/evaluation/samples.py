"""Which samples a run is evaluated on, and where and under which names its results are written."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from epmvg.config.settings import DataSettings, Recipe
from epmvg.core.files import disk_errors, write_text
from epmvg.core.locate import fetch
from epmvg.core.types import InputError, Sample
from epmvg.data.registry import open_samples
from epmvg.data.samples import SAMPLES, SampleDigest


def results_folder(run: Path | str) -> Path:
    """Return where what is measured of a run is written: its own folder, or `runs/NAME` for `default` or a hub's model.

    Raises:
        InputError: a model of one's own lies there.
    """
    if Path(run).exists():
        return Path(run)
    folder = Path("runs") / Path(run).name
    if (folder / "model.yaml").exists():
        raise InputError(f"{folder} holds a model of its own, so the results of {run} cannot go there: rename it.")
    return folder


def make_results_folder(run: Path | str) -> Path:
    """Make `results_folder`; a new one gets the run's recipe, so that `report` knows what was measured."""
    folder = results_folder(run)
    if not folder.exists():
        with disk_errors(folder):
            folder.mkdir(parents=True)
        config = fetch(run) / "config.yaml"
        if config.exists():
            write_text(folder / "config.yaml", config.read_text(encoding="utf-8"))
    return folder


def data_of(run: Path | str, data: str | None, root: str | None, split_key: str | None) -> DataSettings:
    """Return a run's own data settings, with what is asked for instead; another data set does not lie in its root.

    Raises:
        InputError: the run was converted, not trained, so that it has no data of its own, and none is named.
    """
    config = fetch(run) / "config.yaml"
    if not config.exists():
        if data is None:
            raise InputError(f"{run} was converted, not trained, and has no data of its own: name some with --data.")
        return DataSettings(name=data, root=root, split_key=split_key or "split")
    own = Recipe.load(config).data
    if data is not None and Path(data).resolve() == Path(own.name).resolve():
        data = own.name  # under another spelling
    root = root or (own.root if data in (None, own.name) else None)
    return own.model_copy(update={"name": data or own.name, "root": root, "split_key": split_key or own.split_key})


def rows_to_ask(
    run: Path | str, data: str | None, split: str | None, root: str | None, split_key: str | None
) -> tuple[DataSettings, str | None, list[Sample]]:
    """Return the data a run is scored on, which split of it (None: all) and its rows.

    Without a split it is the validation split where the data is the run's own, whose other rows it has learned from.

    Raises:
        InputError: the run has no settings, or the data cannot be read.
    """
    settings = data_of(run, data, root, split_key)
    own = _is_own(run, settings)
    if split is None and own:
        split = settings.val_split
    records = open_samples(settings.name, split=split, root=settings.root, split_key=settings.split_key)
    if own and split == settings.val_split:
        _warn_of_changes(fetch(run), settings, records)
    return settings, split, records


def _warn_of_changes(run: Path, settings: DataSettings, records: Sequence[Sample]) -> None:
    """Warn where the validation samples of a run's own data are not those of its training any more."""
    if not (run / SAMPLES).exists():
        return
    before = SampleDigest(**json.loads((run / SAMPLES).read_text(encoding="utf-8"))["val"])
    now = SampleDigest.of(records)
    if now != before:
        warnings.warn(
            f"The {settings.val_split} samples of {settings.name} changed since {run} was trained "
            f"({before} then, {now} now): scores before and after cannot be compared.",
            stacklevel=3,
        )


def _is_own(run: Path | str, settings: DataSettings) -> bool:
    """Return whether data settings name the data that a run was trained on."""
    if not (fetch(run) / "config.yaml").exists():
        return False
    own = data_of(run, None, None, None).name
    return settings.name == own or Path(settings.name).resolve() == Path(own).resolve()


def of_some_images(records: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Keep the records of images drawn at random, until they are `limit`."""
    photos = list(dict.fromkeys(record.image for record in records))
    place = {photos[i]: rank for rank, i in enumerate(np.random.default_rng(seed).permutation(len(photos)).tolist())}
    return sorted(records, key=lambda record: place[record.image])[:limit]


def short_name(data: str) -> str:
    """Return what a data set or file is called in the names of a run's files."""
    return Path(data).stem.replace("*", "all")


def stem_of(run: Path | str, settings: DataSettings, split: str | None) -> str:
    """Return what the files of a split's results are called, without characters that a file's name cannot have.

    Files of one name in different folders are told apart by four digits of a digest of their path.
    """
    stem = f"{short_name(settings.name)}-{split or 'all'}"
    plain = re.sub(r"[^\w.-]+", "-", stem).lstrip(".")
    elsewhere = Path(settings.name).is_file() and not _is_own(run, settings)
    if plain == stem and not elsewhere:
        return stem
    whole = f"{Path(settings.name).resolve() if elsewhere else ''} {stem}"
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:4]}"
