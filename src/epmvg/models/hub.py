"""Finds a model's folder: on this disk, in this package, or on the Hugging Face hub."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from epmvg.confidence import CONFIDENCE_FILE
from epmvg.types import InputError

FILES = ["model.yaml", "model.safetensors", "tokenizer/*", CONFIDENCE_FILE, "config.yaml", "README.md"]
"""All that a published model consists of; nothing else is ever fetched."""

DEFAULT = "default"
"""Name of the model that ships in this package (`ready/default`; its README.md is its card)."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def fetch(run: Path | str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return the folder of a run; what is no path here may be `default`, or OWNER/NAME, fetched from the hub once.

    Raises:
        InputError: the hub does not have it, or cannot be reached.
    """
    folder = Path(run)
    if str(run) == DEFAULT and not folder.exists():
        return Path(str(resources.files("epmvg") / "ready" / DEFAULT))
    if folder.exists() or not _HUB_ID.fullmatch(str(run)) or folder.parent.exists():
        return folder  # a slip in a local path is not sent to anybody
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(run), revision=revision, token=token, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run} is no folder here and could not be had from the Hugging Face hub ({type(error).__name__}): "
            "check the name and the network."
        ) from error
