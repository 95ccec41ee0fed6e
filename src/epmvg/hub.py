"""Publish a trained run on the Hugging Face hub, with a model card that states its settings and measured accuracy."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from epmvg.config.settings import Recipe
from epmvg.core.calibration import Calibration
from epmvg.core.files import disk_errors, write_text
from epmvg.core.locate import DEFAULT, FILES, fetch, read_front_matter
from epmvg.core.types import InputError
from epmvg.core.version import __version__
from epmvg.evaluation.samples import evaluation_name, shared_images, training_images
from epmvg.models.factory import load, save
from epmvg.models.grounder import Grounder
from epmvg.models.weights_file import WEIGHTS, weights_digest

_PATHS = (
    *(("data", "root"), ("data", "name"), ("model", "init_from")),
    *(("distill", key) for key in ("teacher", "pretrained", "unlabeled")),
)
"""Settings that may be local paths, of which only the last part is published."""


def from_pretrained(name: Path | str, *, revision: str | None = None, token: str | None = None) -> Grounder:
    """Load a grounder from a folder, or from the Hugging Face hub.

    Args:
        name: a folder that training or `save_pretrained` wrote, or OWNER/NAME on the hub.
        revision: branch, tag or commit on the hub; the main branch by default.
        token: of the hub, for private models; the one that `hf auth login` stored by default.

    Raises:
        InputError: as `load`, or a folder has no revisions.
    """
    return load(fetch(name, revision=revision, token=token))


def save_pretrained(run: Path | str, folder: Path | str, *, license: str | None = None) -> Path:
    """Write a run as a folder for the hub: weights (safetensors), tokenizer, settings, calibration and a model card.

    Args:
        run: a folder that training wrote.
        folder: a new or empty folder.
        license: of the weights, by the hub's name for it, for example "apache-2.0"; by default what card and LICENSE of
            the run state, or of the model that it started from (`default`).

    Raises:
        InputError: the run cannot be read, the folder is not empty, or a disk error.
    """
    run, folder = fetch(run), Path(folder)
    model = load(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty. Name a new folder.")
    card, settings = model_card(run, name=folder.resolve().name, license=license), _public_settings(run)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            written = Path(temporary) / "model"
            save(model, written)
            write_text(written / "README.md", card)
            stated = _license_folder(run) / "LICENSE"
            if license is None and stated.is_file():
                shutil.copy(stated, written)
            if settings is not None:
                write_text(written / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
            if not folder.exists():
                written.rename(folder)
            for file in written.glob("*"):  # an empty folder stays, it may be the current one
                shutil.move(file, folder)
    return folder


def push_to_hub(
    run: Path | str, name: str, *, private: bool = False, token: str | None = None, license: str | None = None
) -> str:
    """Publish a run on the Hugging Face hub, as `save_pretrained` writes it, and return its address.

    Args:
        run: a folder that training wrote.
        name: OWNER/NAME; created if it does not exist.
        private: whether a new one is visible to its owner only.
        token: with write access; the one that `hf auth login` stored by default.
        license: as for `save_pretrained`.

    Raises:
        InputError: the run cannot be read, or the hub cannot be reached or rejects it.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(run, Path(temporary) / name.rpartition("/")[-1], license=license)
        api = HfApi(token=token)
        try:
            repository = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=folder,
                commit_message=f"epmvg {__version__}",
                delete_patterns=FILES,  # files of an earlier model, such as its calibration
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name} could not be published on the Hugging Face hub ({type(error).__name__}). "
                "Check the network, the name, and that `hf auth login` was done."
            ) from error
    return str(repository)


def model_card(run: Path | str, *, name: str | None = None, license: str | None = None) -> str:
    """Return a run's model card: settings, measured accuracy with intervals, teacher, leakage, license.

    Args:
        run: as for `save_pretrained`.
        name: of the model; that of the run's folder by default.
        license: of the weights, as for `save_pretrained`.

    Raises:
        InputError: a file of the run cannot be read.
    """
    from huggingface_hub import ModelCardData

    run = fetch(run)
    model = load(run)
    settings = _public_settings(run)
    own = read_front_matter(_license_folder(run)) if license is None else {}
    license = license or own.get("license")
    metadata = ModelCardData(
        license=license or "unknown",
        license_name=own.get("license_name"),
        license_link=own.get("license_link"),
        library_name="epmvg",
        language="en",
        tags=["visual-grounding", "referring-expression-comprehension", "phrase-grounding"],
        domain=model.domain,
    )
    # Not `ModelCard.from_template`: it does not escape what names and settings of others hold.
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.1f} %"
    return environment.from_string((resources.files("epmvg.report") / "card.md").read_text(encoding="utf-8")).render(
        front=metadata.to_yaml(),
        name=name or run.resolve().name,
        version=__version__,
        license=None if license == "unknown" else license,
        domain=model.domain,
        settings=settings,
        recipe=None if settings is None else yaml.safe_dump(settings, sort_keys=False).strip(),
        model=model.settings,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        evaluations=_evaluations(run, model.calibration),
        calibration=model.calibration,
        leakage=_leakage(run),
    )


def _license_folder(run: Path) -> Path:
    """Return the folder that states the license of a run's weights: its own, or that of the model it started from."""
    if (run / "LICENSE").is_file() or read_front_matter(run).get("license") or not (run / "config.yaml").is_file():
        return run
    start = Recipe.load(run / "config.yaml").model.init_from
    return run if start is None or not (start == DEFAULT or Path(start).is_dir()) else _license_folder(fetch(start))


def _evaluations(run: Path, calibration: Calibration | None) -> list[dict[str, Any]]:
    """Read the evaluations of these weights, test splits first; without confidence metrics of another calibration."""
    weights, found = weights_digest(run / WEIGHTS), []
    for file in sorted(run.glob("evaluation-*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            if result.get("weights") != weights:
                continue
            if result["confidence"]["mapping"] != (calibration and calibration.mapping):
                result["confidence"] = None
            found.append(result | {"name": evaluation_name(result), "n": result["n"]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} cannot be read. Run `epmvg evaluate` again.") from error
    return sorted(found, key=lambda result: (not result["split"].startswith("test"), result["name"]))


def _public_settings(run: Path) -> dict[str, Any] | None:
    """Read the run's recipe with local paths cut to their last part; None without a recipe."""
    if not (run / "config.yaml").exists():
        return None
    settings = Recipe.load(run / "config.yaml").model_dump()
    for group, key in _PATHS:
        value = (settings[group] or {}).get(key)
        if isinstance(value, str):
            settings[group][key] = None if key == "root" else Path(value).name
    return settings


def _leakage(run: Path) -> list[dict[str, Any]]:
    """Count the images of each evaluated split that were trained on, by content; none if the data cannot be read."""
    learned = training_images(run)
    found = []
    for file in sorted(run.glob("predictions-*.jsonl")) if learned is not None else []:
        with file.open(encoding="utf-8") as lines:
            images = {Path(json.loads(line)["image"]) for line in lines}
        shared = len(shared_images(images, learned or ()))
        name = file.stem.removeprefix("predictions-").replace("-", " ")
        found.append({"name": name, "images": len(images), "shared": shared, "learned": len(learned or ())})
    return found
