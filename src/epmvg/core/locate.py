"""Finds a model's folder on this disk, in this package or on the Hugging Face hub, and what its card says it knows."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from epmvg.core.calibration import CONFIDENCE_FILE
from epmvg.core.types import InputError

FILES = ["model.yaml", "model.safetensors", "tokenizer/*", CONFIDENCE_FILE, "config.yaml", "README.md"]
"""All that a published model consists of; nothing else is ever fetched."""

EXPORT_FILE = "export.json"
"""Settings of an exported folder, by which it is known."""

DEFAULT = "default"
"""Name of the model that ships in this package (`ready/default`; its README.md is its card)."""

SCENES_DOMAIN = "drawn scenes, not photographs"
"""What a training on `scenes` teaches."""

_HEAD = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read_domain(folder: Path) -> str | None:
    """Return what a model was trained to recognise ("drawn scenes, not photographs"), None where nothing is stated.

    It is the key `domain` at the head of the model card, or follows from the recipe of a training on drawn scenes.
    """
    card = folder / "README.md"
    head = _HEAD.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    domain = _yaml(head[1]).get("domain") if head else None
    if isinstance(domain, str):
        return domain
    recipe = folder / "config.yaml"
    data = _yaml(recipe.read_text(encoding="utf-8")).get("data") if recipe.is_file() else None
    return SCENES_DOMAIN if isinstance(data, dict) and data.get("name") == "scenes" else None


def _yaml(text: str) -> dict[str, Any]:
    """Read a YAML mapping; a broken one or anything else counts as empty, since what it would say is optional."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return read if isinstance(read, dict) else {}


def fetch(run: Path | str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a run; what is no path here may be `default`, or OWNER/NAME, fetched from the hub once.

    Raises:
        InputError: the hub does not have it, or cannot be reached.
    """
    folder = Path(run).expanduser()
    if str(run) == DEFAULT and not folder.exists():
        return Path(str(resources.files("epmvg.pretrained") / DEFAULT))
    if folder.exists() or not _HUB_ID.fullmatch(str(run)) or folder.parent.exists():
        return folder  # a slip in a local path is not sent to anybody
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(str(run), revision=revision, token=token, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        if isinstance(error, GatedRepoError):
            why = "is for those whom its owner lets in: ask there, then run `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError):
            why = "is not on the Hugging Face hub, or private: check the name, or run `hf auth login`"
        elif isinstance(error, LocalEntryNotFoundError):
            why = "was not fetched before, and the Hugging Face hub cannot be reached: check the network"
        else:
            why = f"could not be had from the Hugging Face hub ({type(error).__name__}): check name and revision"
        raise InputError(f"{run} is no folder here and {why}.") from error
    if not (folder / "model.yaml").exists():
        raise InputError(f"{run} on the Hugging Face hub is no model of epmvg (it has no model.yaml): give another.")
    return folder


def locate(run: Path | str) -> Path:
    """Return the folder of a trained run or of an export, without reading the model.

    Raises:
        InputError: there is no such folder, it holds neither, or the hub does not have it.
    """
    folder = fetch(run)
    if not folder.is_dir():
        raise InputError(
            f"There is no run {run}: give the folder that training or `epmvg export` wrote, `default`, the model that "
            "ships in this package, or OWNER/NAME on the Hugging Face hub."
        )
    for name in () if (folder / EXPORT_FILE).is_file() else ("model.yaml", "model.safetensors", "tokenizer"):
        if not (folder / name).exists():
            raise InputError(
                f"{folder} is not a trained run: it has no {name}. Give the folder that training or `epmvg export` "
                "wrote, or `default`, the model that ships in this package."
            )
    return folder
