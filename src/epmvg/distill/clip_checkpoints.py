"""Open a CLIP or SigLIP from any form in which one has it: architecture, folder, configuration, weights file, hub name.

A form states what its weights need (activation, image preprocessing, tokenizer, context length): a pretrained tag, a
folder or a configuration file does; a bare weights file does not, so the caller has to state the rest.
"""

from __future__ import annotations

import difflib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from open_clip.convert import convert_state_dict
from open_clip.model import build_model_from_openai_state_dict, convert_to_custom_text_state_dict
from torch import Tensor

from epmvg.core.types import InputError
from epmvg.distill.clip_tokenizers import Tokenize, describe, tokenizer_of_architecture, tokenizer_of_config
from epmvg.distill.preprocess import Preprocess
from epmvg.distill.transformers_clip import SHARDS_FILE, WEIGHT_FILES, open_transformers
from epmvg.distill.weights_files import Weights, read_weights

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_model.bin",
    "open_clip_pytorch_model.bin",
)
RANDOM = "random"
"""In place of a tag: random weights."""

_QUICK = "-quickgelu"


@dataclass(frozen=True, slots=True)
class OpenedClip:
    """A model with open_clip's methods, and everything that its images and phrases need."""

    model: Any
    tokenize: Tokenize
    width: int  # E
    preprocess: Preprocess
    config: dict[str, Any]  # what the model was built from
    about: dict[str, Any]  # where it came from


def open_clip_model(name: str, pretrained: str | None = None, quick_gelu: bool | None = None) -> OpenedClip:
    """Open a CLIP or SigLIP; arguments and errors are those of `ClipTeacher`."""
    name = name.removeprefix("local-dir:")
    path = Path(name)
    architecture = name.replace("/", "-")  # OpenAI writes ViT-B/32
    known = architecture in open_clip.list_models() and (pretrained is not None or not path.exists())
    if not known and path.suffix != ".json" and pretrained is not None:
        raise InputError(
            f"The teacher {name} is not an architecture of open_clip, so distill.pretrained={pretrained} cannot be its"
            f" weights. Set distill.pretrained=null, or name an architecture. {_hint(architecture)}"
        )
    try:
        if known:
            opened = _open_architecture(architecture, pretrained, quick_gelu)
        elif path.suffix == ".json":
            opened = _open_config(path, pretrained)
        elif path.is_file():
            opened = _open_openai(path)
        else:
            opened = _open_folder(path if path.is_dir() else _download(name, architecture))
    except InputError:
        raise
    except Exception as error:  # on broken files and configurations the libraries raise nearly anything
        reason = f"{type(error).__name__} {str(error).strip()[:120]}".splitlines()[0].rstrip(". ")
        raise InputError(f"The teacher {name} cannot be opened ({reason}). Check its files and the network.") from error
    _check_stated(name, bool(opened.config.get("quick_gelu")), quick_gelu)
    return opened


def build_clip(config: dict[str, Any], folder: Path | None = None) -> Any:
    """Build an open_clip model from its configuration; a text encoder named by a relative path is in `folder`."""
    settings, text = dict(config), dict(config["text_cfg"])
    custom = settings.pop("custom_text", False) or bool(text.get("hf_model_name"))
    if text.get("hf_model_name"):
        inside = folder is not None and (folder / text["hf_model_name"]).is_dir()
        name = str(folder / text["hf_model_name"]) if folder is not None and inside else text["hf_model_name"]
        text |= {"hf_model_name": name, "hf_model_pretrained": False}
    kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return kind(**(settings | {"text_cfg": text}))


def _open_architecture(name: str, pretrained: str | None, stated: bool | None) -> OpenedClip:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise InputError(
            f"The teacher {name} has no weights. Give distill.pretrained= {', '.join([*tags, 'a weights file'])} or"
            f" {RANDOM}."
        )
    config, tag = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, pretrained)
    built = bool(config.get("quick_gelu"))
    weights: Weights | None = None
    if tag:
        form, preprocess = "tag", tag
        quick = select_activation(name, pretrained, built, bool(tag.get("quick_gelu")), stated)
    elif pretrained == RANDOM:
        form, preprocess = "random weights", _preprocess_of_tags(name, tags[:1])
        quick = built if stated is None else stated
    elif Path(pretrained).is_file():
        form, weights = "weights file", read_weights(Path(pretrained))
        preprocess = {} if weights.openai else _preprocess_of_tags(name, tags)  # open_clip's defaults are OpenAI's
        quick = select_activation(name, pretrained, built, weights.openai or None, stated)
    elif "/" in pretrained or Path(pretrained).suffix:
        raise InputError(f"The weights file {pretrained} does not exist. Check the path.")
    else:
        raise InputError(f"The teacher {name} has no weights {pretrained!r}. Give one of {', '.join(tags) or 'none'}.")
    _check_stated(name, quick, stated)
    if tag:
        weights = read_weights(Path(open_clip.factory.download_pretrained(tag)))
    config["quick_gelu"] = quick
    model = build_clip(config)
    if weights is not None:
        _load(model, weights, pretrained, name)
    about = {"form": form, "teacher": name, "pretrained": pretrained}
    return _opened(model, tokenizer_of_architecture(name), preprocess, config, about)


def select_activation(name: str, weights: str, built: bool, required: bool | None, stated: bool | None) -> bool:
    """Return whether to use QuickGELU.

    Args:
        name, weights: The architecture, and its tag or weights file.
        built: Whether the architecture uses it.
        required: Whether the weights are known to need it; None of a file that does not state it.
        stated: What the caller states.

    Raises:
        InputError: They contradict each other, or nothing states it.
    """
    if required or (required is None and name.endswith(_QUICK)):
        return True
    if required is False:
        if built and stated is None:
            raise InputError(
                f"The architecture {name} has quick_gelu=true, the weights {weights!r} are listed with"
                " quick_gelu=false. State which they were trained with by distill.quick_gelu=true or false."
            )
        return built and bool(stated)
    if stated is None and name + _QUICK in open_clip.list_models():
        raise InputError(
            f"{weights} does not state its activation. Name the architecture {name}{_QUICK} (QuickGELU: OpenAI,"
            f" MetaCLIP, DFN), or {name} with distill.quick_gelu=false (GELU: most of LAION and DataComp)."
        )
    return built if stated is None else stated


def _check_stated(name: str, quick: bool, stated: bool | None) -> None:
    if stated is not None and quick is not stated:
        raise InputError(
            f"The teacher {name} is built with quick_gelu={str(quick).lower()}, but distill.quick_gelu="
            f"{str(stated).lower()}. Remove that setting."
        )


def _preprocess_of_tags(name: str, tags: list[str]) -> dict[str, Any]:
    """Return the preprocessing that all tags of an architecture share."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    found = [{key: open_clip.get_pretrained_cfg(name, tag).get(key) for key in keys} for tag in tags]
    if any(settings != found[0] for settings in found):
        raise InputError(
            f"A weights file of {name} does not state its image preprocessing, and the tags of {name} differ in it."
            f" Give a tag, or a folder whose {CONFIG} has a preprocess_cfg."
        )
    return found[0] if found else {}


def _open_folder(folder: Path) -> OpenedClip:
    has_config = (folder / "config.json").is_file()
    if (folder / CONFIG).is_file():
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is not None:
            return _open_config(folder / CONFIG, str(weights), form="open_clip folder")
        if not has_config:
            raise InputError(f"{folder} has {CONFIG} but no weights. Copy {WEIGHTS[0]} into it.")
    if not has_config:
        raise InputError(
            f"{folder} is not a teacher. Give a folder with {CONFIG} (open_clip, `epmvg teacher train`) or config.json"
            " (Hugging Face)."
        )
    model, tokenize, preprocess = open_transformers(folder)
    config = {key: value for key, value in model.model.config.to_diff_dict().items() if key != "transformers_version"}
    config |= {"quick_gelu": model.quick_gelu, "embed_dim": model.width}
    about = {"form": f"Hugging Face {type(model.model).__name__} folder", "teacher": str(folder), "pretrained": None}
    return _opened(model, tokenize, preprocess, config, about)


def _open_config(file: Path, pretrained: str | None, form: str = "configuration") -> OpenedClip:
    if pretrained is None:
        raise InputError(f"The teacher {file} has no weights. Give distill.pretrained= a weights file, or {RANDOM}.")
    settings = json.loads(file.read_text(encoding="utf-8"))
    config = {key: value for key, value in settings.get("model_cfg", settings).items() if key != "preprocess_cfg"}
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise InputError(f"{file} is not a configuration of open_clip. Add {key}.")
    weights = None if pretrained == RANDOM else read_weights(Path(pretrained))
    if weights is not None and weights.openai and not config.get("quick_gelu"):
        raise InputError(
            f"{file} has quick_gelu=false, but {pretrained} contains OpenAI's weights, which need quick_gelu=true. Set"
            " it in the file."
        )
    tokenize = tokenizer_of_config(config["text_cfg"], file.parent)
    model = build_clip(config, file.parent)
    if weights is not None:
        _load(model, weights, pretrained, str(file))
    about = {"form": form, "teacher": str(file), "pretrained": Path(pretrained).name}
    return _opened(model, tokenize, settings.get("preprocess_cfg", {}), config, about)


def _open_openai(file: Path) -> OpenedClip:
    """Open OpenAI's weights, whose shapes determine the architecture."""
    weights = read_weights(file)
    if not weights.openai or "visual.conv1.weight" not in weights.state:
        raise InputError(
            f"{file} is a weights file that does not state its architecture. Name that as the teacher, and give the"
            " file as distill.pretrained."
        )
    model = build_model_from_openai_state_dict(dict(weights.state)).float()
    model.load_state_dict(weights.state)  # again, as the line above rounds to half precision
    config = {"embed_dim": model.text_projection.shape[1], "quick_gelu": True}
    about = {"form": "OpenAI file", "teacher": str(file), "pretrained": None}
    return _opened(model, tokenizer_of_config({"context_length": model.context_length}, file.parent), {}, config, about)


def _load(model: Any, weights: Weights, source: str, name: str) -> None:
    """Load all weights, and nothing but weights of this architecture."""
    state: dict[str, Tensor] = convert_state_dict(model, dict(weights.state))  # MobileCLIP's own names
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own: dict[str, Tensor] = model.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.endswith("position_ids")}
    for key in ("logit_scale", "logit_bias"):  # a number or a vector of one
        if key in state and key in own and state[key].numel() == own[key].numel():
            state[key] = state[key].reshape(own[key].shape)
    for key in sorted(own.keys() | state.keys()):
        expected, found = (str(list(part[key].shape)) if key in part else "none" for part in (own, state))
        if expected != found:
            raise InputError(
                f"The weights in {source} are not of the architecture of {name}: {key} is {expected} there and"
                f" {found} in the file. Name the architecture that they were trained with."
            )
    model.load_state_dict(state)


def _download(name: str, architecture: str) -> Path:
    """Download a model from the hub, or find it in the hub's local cache."""
    repository = name.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"There is no file, folder or open_clip model {name!r} as a teacher. {_hint(architecture)}")
    try:
        folder = Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model"]))
        names = WEIGHTS if (folder / CONFIG).is_file() else WEIGHT_FILES
        for weights in names:
            if any((folder / file).is_file() for file in names):
                break
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, weights)
        if (folder / SHARDS_FILE).is_file():
            snapshot_download(repository, allow_patterns=["model-*.safetensors"])
    except Exception as error:  # of the network, the hub and a server
        raise InputError(
            f"There is no folder {repository}, and the model of that name could not be downloaded from the hub"
            f" ({type(error).__name__}). Check name and network, or give a local folder."
        ) from error
    return folder


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, open_clip.list_models(), n=1)
    return f"Did you mean {close[0]!r}?" if close else "`epmvg list teachers` lists them."


def _opened(
    model: Any, tokenize: Tokenize, preprocess: dict[str, Any], config: dict[str, Any], about: dict[str, Any]
) -> OpenedClip:
    model = model.float().eval()
    size = model.image_size if hasattr(model, "image_size") else model.visual.image_size
    about |= {"tokenizer": describe(tokenize)}
    return OpenedClip(model, tokenize, int(config["embed_dim"]), Preprocess.of(preprocess, size), config, about)
