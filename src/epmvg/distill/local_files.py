"""Whether a teacher's files are on this machine, and its size, without opening it or asking the network."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache

from epmvg.distill.clip_checkpoints import RANDOM, WEIGHTS, build_clip
from epmvg.distill.transformers_clip import SHARDS_FILE, WEIGHT_FILES

_OPENAI_CACHE = Path("~/.cache/clip")
"""Where open_clip downloads weights that are not on the Hugging Face hub."""


def is_in_hub_cache(repository: str, *files: str) -> bool:
    """Return whether one of the files of a repository is in the local cache of the Hugging Face hub."""
    return any(_is_cached(repository, file) for file in files)


def _is_cached(repository: str, file: str) -> bool:
    path = try_to_load_from_cache(repository, file)
    if not isinstance(path, str) or file != SHARDS_FILE:
        return isinstance(path, str)
    shards = set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values())
    return all(_is_cached(repository, shard) for shard in shards)


def is_local(name: str, pretrained: str | None) -> bool | None:
    """Return whether the weights of a teacher, named as for `ClipTeacher`, are here; None where no hub has them."""
    name = name.removeprefix("local-dir:")
    if pretrained == RANDOM or Path(name if pretrained is None else pretrained).exists():
        return True
    architecture = name.replace("/", "-")
    if architecture not in open_clip.list_models():
        repository = name.removeprefix("hf-hub:")
        is_name = pretrained is None and repository.count("/") == 1
        return is_in_hub_cache(repository, *WEIGHTS, *WEIGHT_FILES) if is_name else None
    tag = open_clip.get_pretrained_cfg(architecture, pretrained or "")
    if not tag:
        return None
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    if repository:
        return is_in_hub_cache(repository, *([file] if file else WEIGHTS))
    return (_OPENAI_CACHE.expanduser() / Path(tag["url"]).name).is_file()


def parameters(name: str) -> int | None:
    """Return the number of parameters of an open_clip architecture, None of other teachers."""
    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None or config.get("text_cfg", {}).get("hf_model_name"):
        return None
    with torch.device("meta"):
        return sum(int(parameter.numel()) for parameter in build_clip(config).parameters())
