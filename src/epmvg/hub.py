"""Puts a trained run into hands: a folder for the Hugging Face hub, with a model card that states what is known.

Weights travel as safetensors only. The card repeats what the run's folder measured, and says so where nothing did.
"""

from __future__ import annotations

import itertools
import json
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, StrictUndefined
from PIL import Image

from epmvg.config.settings import Recipe
from epmvg.core.calibration import Calibration
from epmvg.core.files import write_text
from epmvg.core.locate import FILES, fetch
from epmvg.core.types import InputError
from epmvg.core.version import __version__
from epmvg.evaluation.leakage import shared_images, training_images
from epmvg.inference.predictor import Predictor
from epmvg.models.factory import load, save
from epmvg.models.grounder import Grounder
from epmvg.models.weights_file import WEIGHTS, weights_digest

_PATHS = (("data", "root"), ("data", "name"), ("distill", "teacher"), ("distill", "pretrained"), ("model", "start"))
"""Settings that may name a place on the trainer's disk, which is nobody's business."""


def from_pretrained(name: Path | str, *, revision: str | None = None, token: str | None = None) -> Grounder:
    """Load a grounder from a folder, or from the Hugging Face hub at a revision of it.

    Args:
        name: a folder that training or `save_pretrained` wrote, or OWNER/NAME on the hub.
        revision: branch, tag or commit; the main branch by default.
        token: of the hub, for private models; the one that `hf auth login` stored by default.

    Raises:
        InputError: as `load`.
    """
    return load(fetch(name, revision=revision, token=token))


def save_pretrained(
    run: Path | str,
    folder: Path | str,
    *,
    licence: str | None = None,
    measure_latency: bool = False,
) -> Path:
    """Write what the hub wants of a run: weights, tokenizer, settings, calibration and a model card.

    Args:
        run: a folder that training wrote.
        folder: a new or empty folder.
        licence: of the weights, by the hub's name for it, for example "apache-2.0"; the card says if none is stated.
        measure_latency: time the model on this machine for the card.

    Raises:
        InputError: the run cannot be read, or the folder is in use.
    """
    run, folder = fetch(run), Path(folder)
    model = load(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: name a new folder.")
    latency = time_model(model) if measure_latency else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary) / "model"
        save(model, whole)
        write_text(whole / "README.md", model_card(run, name=folder.name, licence=licence, latency=latency))
        settings = _public_settings(run)
        if settings is not None:
            write_text(whole / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        if folder.exists():
            folder.rmdir()
        shutil.move(whole, folder)
    return folder


def push_to_hub(
    run: Path | str,
    name: str,
    *,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    measure_latency: bool = False,
) -> str:
    """Publish a run on the Hugging Face hub, as `save_pretrained` writes it, and return its address.

    Args:
        name: OWNER/NAME; made if it is not there.
        private: whether only its owner sees a new one.
        token: that may write; the one that `hf auth login` stored by default.

    Raises:
        InputError: the run cannot be read, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name.rpartition("/")[-1]
        save_pretrained(run, folder, licence=licence, measure_latency=measure_latency)
        api = HfApi(token=token)
        try:
            made = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=f"epmvg {__version__}",
                delete_patterns=FILES,  # what an earlier model left there, such as its calibration
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name} could not be published on the Hugging Face hub ({type(error).__name__}): "
                "check the network, the name, and that `hf auth login` was done."
            ) from error
    return str(made)


def model_card(
    run: Path | str,
    *,
    name: str | None = None,
    licence: str | None = None,
    latency: Latency | None = None,
) -> str:
    """Return a run's model card: settings, measured accuracy with intervals, teacher, leakage, licence.

    Args:
        run: as for `save_pretrained`.
        name: what the model is called; as the run's folder by default.
        licence: of the weights.
        latency: as `time_model` measured it.

    Raises:
        InputError: a file of the run cannot be read.
    """
    from huggingface_hub import ModelCardData

    run = fetch(run)
    model = load(run)
    settings = _public_settings(run)
    about = ModelCardData(
        license=licence or "unknown",
        library_name="epmvg",
        language="en",
        tags=["visual-grounding", "referring-expression-comprehension", "phrase-grounding"],
        domain=model.domain,
    )
    environment = Environment(undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    template = (resources.files("epmvg") / "card.md").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        front=about.to_yaml(),
        name=name or run.resolve().name,
        version=__version__,
        licence=licence,
        settings=settings,
        recipe=None if settings is None else yaml.safe_dump(settings, sort_keys=False).strip(),
        model=model.settings,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        evaluations=_evaluations(run, model.calibration),
        calibration=model.calibration,
        latency=latency,
        leaks=_leaks(run),
    )


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds for a new picture with one phrase, and for each further phrase about it."""

    first: float
    further: float
    where: str


def time_model(model: Grounder, rounds: int = 15) -> Latency:
    """Time a model on this machine, on new images of 640 x 480 pixels with new phrases: nothing is remembered."""
    ground = Predictor(model, cache_mb=0)
    image = Image.new("RGB", (640, 480), (120, 120, 120))
    numbers = itertools.count()

    def median_of(count: int) -> float:
        times = []
        for _ in range(rounds + 1):
            phrases = [f"a man in a blue shirt {next(numbers)}" for _ in range(count)]
            start = time.perf_counter()
            ground(image, phrases)
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times[1:])

    one, nine = median_of(1), median_of(9)
    threads = torch.get_num_threads()
    where = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    return Latency(one, (nine - one) / 8, where)


def _evaluations(run: Path, calibration: Calibration | None) -> list[dict[str, Any]]:
    """Read what these very weights were scored on, test splits first; without figures of another calibration."""
    weights, found = weights_digest(run / WEIGHTS), []
    for file in sorted(run.glob("evaluation-*.json")):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            if said.get("weights") != weights:
                continue
            if said["confidence"]["mapping"] != (calibration and calibration.mapping):
                said["confidence"] = None
            found.append(said | {"name": f"{said['data']} {said['split']}", "n": said["n"], "acc50": said["acc50"]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} cannot be read: run `epmvg evaluate` again.") from error
    return sorted(found, key=lambda said: (not said["split"].startswith("test"), said["name"]))


def _public_settings(run: Path) -> dict[str, Any] | None:
    """Read the run's recipe with places on the trainer's disk cut to their last name; None if it has none."""
    if not (run / "config.yaml").exists():
        return None
    settings = Recipe.load(run / "config.yaml").model_dump()
    for group, key in _PATHS:
        value = (settings[group] or {}).get(key)
        if isinstance(value, str):
            settings[group][key] = None if key == "root" else Path(value).name
    return settings


def _leaks(run: Path) -> list[dict[str, Any]]:
    """Count the images of each scored split that were trained on, by content; nothing where the data is not at hand."""
    learned = training_images(run)
    if learned is None:
        return []
    found = []
    for file in sorted(run.glob("predictions-*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            asked = {Path(json.loads(line)["image"]) for line in lines}
        name = file.stem.removeprefix("predictions-").replace("-", " ")
        shared = len(shared_images(asked, learned))
        found.append({"name": name, "images": len(asked), "shared": shared, "learned": len(learned)})
    return found
