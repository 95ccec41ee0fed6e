"""The folder of a model: a path, the bundled `default`, or a name on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.files import expand_home
from epmvg.core.types import InputError

FILES = ["model.yaml", "model.safetensors", "tokenizer/*", CONFIDENCE_FILE, "config.yaml", "README.md", "LICENSE"]
"""All files of a published model; nothing else is downloaded."""

EXPORT_FILE = "export.json"
"""Settings of an exported folder, and the mark of one."""

DEFAULT = "default"
"""Name of the bundled model."""

SCENES_DOMAIN = "drawn scenes, not photographs"
"""Domain of a model trained on `scenes`."""

TRANSFORMERS_PREFIX = "hf:"
"""Of OWNER/NAME, a grounder of the transformers library on the hub."""

TRANSFORMERS_TYPES = ("grounding-dino", "mm-grounding-dino", "omdet-turbo", "owlv2", "owlvit")
"""Types of grounders of the transformers library, as their config.json states them."""

TRANSFORMERS_FILES = ["*config.json", "tokenizer*", "vocab*", "merges.txt", "*tokens*.json", "*.safetensors*"]
"""All files of such a grounder; older ones have their weights in `TRANSFORMERS_PICKLED`."""

TRANSFORMERS_PICKLED = ["pytorch_model*.bin*"]
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WHERE = (
    "Give a folder written by training or `epmvg export`, `default` (the bundled model), OWNER/NAME on the hub, or "
    "hf:OWNER/NAME (a grounder of transformers)"
)


def read_domain(folder: Path) -> str | None:
    """Return what a model was trained to recognize ("drawn scenes, not photographs"), None where it is not stated.

    It is the key `domain` in the front matter of the model card, or follows from a recipe that trains on drawn scenes.
    """
    domain = read_front_matter(folder).get("domain")
    if isinstance(domain, str):
        return domain
    recipe = folder / "config.yaml"
    data = _read_yaml(recipe.read_text(encoding="utf-8")).get("data") if recipe.is_file() else None
    return SCENES_DOMAIN if isinstance(data, dict) and data.get("name") == "scenes" else None


def read_front_matter(folder: Path) -> dict[str, Any]:
    """Return the front matter of a model card, {} without one."""
    card = folder / "README.md"
    content = card.read_text(encoding="utf-8") if card.is_file() else ""
    front_matter = re.match(r"---\n(.*?\n)---\n", content, re.DOTALL)
    return _read_yaml(front_matter[1]) if front_matter else {}


def _read_yaml(text: str) -> dict[str, Any]:
    """Return a YAML mapping, {} for anything else: what it states is optional."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds graphs that `epmvg export` wrote."""
    return (folder / EXPORT_FILE).is_file()


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a model of torch, as a training writes it; `default` holds both."""
    return (folder / "model.yaml").is_file()


def is_transformers(folder: Path) -> bool:
    """Return whether a folder holds a grounder of the transformers library."""
    return not (is_run(folder) or is_exported(folder)) and _transformers_type(folder) in TRANSFORMERS_TYPES


def only_predicts(folder: Path) -> bool:
    """Return whether a folder is used through its runtime: an export, or a grounder of the transformers library."""
    return is_exported(folder) or is_transformers(folder)


def own_folder(run: Path | str) -> Path:
    """Return the folder of results: that of the run, or `runs/NAME` for `default` and models of the hub."""
    return Path(run) if Path(run).exists() else Path("runs") / Path(run).name


def _transformers_type(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetch(run: Path | str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a run: a path, `default`, or OWNER/NAME or hf:OWNER/NAME, downloaded from the hub once.

    Raises:
        InputError: the hub does not have it, or cannot be reached, or a revision of a folder is given.
    """
    folder = expand_home(run)
    if revision is not None and (str(run) == DEFAULT or folder.exists()):
        raise InputError(f"{run} is no name on the hub and has no revision {revision}. Leave revision out.")
    if str(run) == DEFAULT and not folder.exists():
        return Path(str(resources.files("epmvg.pretrained") / DEFAULT))
    if str(run).startswith(TRANSFORMERS_PREFIX):
        return _fetch_transformers(str(run), revision, token)
    if folder.exists() or not _HUB_NAME.fullmatch(str(run)) or folder.parent.exists():
        return folder  # a mistyped local path is not sent to the hub
    folder = _download(str(run), FILES, revision, token)
    if not (folder / "model.yaml").exists():
        raise InputError(f"{run} on the Hugging Face hub has no model.yaml, so it is not a model of epmvg. {_WHERE}.")
    return folder


def _fetch_transformers(run: str, revision: str | None, token: str | None) -> Path:
    name = run.removeprefix(TRANSFORMERS_PREFIX)
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{run} is not a name on the hub. Write hf:OWNER/NAME, or for a local folder its path.")
    folder = _download(name, TRANSFORMERS_FILES, revision, token)
    _check_type(run, folder)
    if not any(folder.glob("*.safetensors")):
        folder = _download(name, TRANSFORMERS_PICKLED, revision, token)
    return folder


def _check_type(run: Path | str, folder: Path) -> None:
    if not is_transformers(folder):
        kind = _transformers_type(folder) or "no model of transformers"
        raise InputError(f"{run} is {kind}, which cannot be run. Give one of {', '.join(TRANSFORMERS_TYPES)}.")


def _download(name: str, patterns: list[str], revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} is no folder here and cannot be downloaded from the Hugging Face hub ({type(error).__name__}). "
            "Check the name and the network; for a private or gated model run `hf auth login`."
        ) from error


def locate(run: Path | str) -> Path:
    """Return the folder of a trained run, an export or a grounder of transformers, without reading the model.

    Raises:
        InputError: there is no such folder, it is none of these, or the hub does not have it.
    """
    folder = fetch(run)
    if not folder.is_dir():
        raise InputError(f"There is no run {run}. {_WHERE}.")
    if not is_run(folder) and _transformers_type(folder):
        _check_type(run, folder)
    for name in () if only_predicts(folder) else ("model.yaml", "model.safetensors", "tokenizer"):
        if not (folder / name).exists():
            raise InputError(f"{folder} is not a trained run: it has no {name}. {_WHERE}.")
    return folder
