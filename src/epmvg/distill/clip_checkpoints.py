"""Every form in which people have a CLIP or SigLIP, opened as one kind of object.

A form states what its weights need (activation, image preprocessing, tokenizer, context length): a pretrained tag, a
folder or a configuration file does; a bare weights file does not, so what it leaves open has to be told.
"""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor

from epmvg.core.types import InputError
from epmvg.distill.clip_tokenizers import (
    PROBES,
    Tokenize,
    inside,
    tokenizer_identity,
    tokenizer_of_architecture,
    tokenizer_of_config,
)
from epmvg.distill.preprocess import Preprocess
from epmvg.distill.transformers_clip import WEIGHT_FILES, open_transformers, read_json
from epmvg.distill.weights_files import Weights, read_weights

CONFIG = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_model.bin",
    "open_clip_pytorch_model.bin",
)
RANDOM = "random"
"""The word that asks for random weights."""

_TWIN = "-quickgelu"


@dataclass(frozen=True, slots=True)
class OpenedClip:
    """A model with open_clip's methods and all that its images and phrases need."""

    model: Any
    tokenize: Tokenize
    width: int  # E
    preprocess: Preprocess
    config: dict[str, Any]  # what the model was built from
    about: dict[str, Any]  # where it came from


def open_clip_model(name: str, pretrained: str | None = None, quick_gelu: bool | None = None) -> OpenedClip:
    """Open a CLIP or SigLIP by any of its forms.

    Args:
        name: an architecture of open_clip, a folder, a configuration (.json), OpenAI's archive (.pt), or a name on the
            hub (`hf-hub:OWNER/NAME`, `OWNER/NAME`).
        pretrained: of an architecture or configuration: a tag, a weights file, or "random".
        quick_gelu: the activation of a weights file that leaves it open; None takes it from the form.

    Raises:
        InputError: there is no such model, it cannot be read, or what it states disagrees.
    """
    name = name.removeprefix("local-dir:")
    path = Path(name)
    architecture = name.replace("/", "-")  # OpenAI writes ViT-B/32
    known = architecture in open_clip.list_models() and (pretrained is not None or not path.exists())
    if not known and path.suffix != ".json" and pretrained is not None:
        raise InputError(
            f"The teacher {name} is no architecture of open_clip, so distill.pretrained={pretrained} cannot be its"
            f" weights: set distill.pretrained=null, or name an architecture ({_hint(architecture)})."
        )
    try:
        if known:
            opened = _open_architecture(architecture, pretrained, quick_gelu)
        elif path.is_dir():
            opened = _open_folder(path)
        elif path.suffix == ".json":
            opened = _open_config(path, pretrained)
        elif path.is_file():
            opened = _open_file(path)
        else:
            opened = _open_folder(_download(name, architecture))
    except InputError:
        raise
    except Exception as error:  # on broken files and configurations the libraries raise nearly anything
        reason = f"{type(error).__name__} {str(error).strip()[:120]}".splitlines()[0].rstrip(". ")
        raise InputError(f"The teacher {name} cannot be opened ({reason}): check its files and the network.") from error
    _check_stated(name, opened.config, quick_gelu)
    return opened


def _check_stated(name: str, config: dict[str, Any], stated: bool | None) -> None:
    quick = bool(config.get("quick_gelu"))
    if stated is not None and quick is not stated:
        raise InputError(
            f"The teacher {name} is built with quick_gelu={str(quick).lower()}, distill.quick_gelu="
            f"{str(stated).lower()} disagrees: leave that out."
        )


def _open_architecture(name: str, pretrained: str | None, quick_gelu: bool | None) -> OpenedClip:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise InputError(
            f"The teacher {name} has no weights: give distill.pretrained= {', '.join([*tags, 'a weights file'])} or"
            f" {RANDOM}."
        )
    config = open_clip.get_model_config(name)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    weights: Weights | None = None
    if tag:
        preprocess = tag
        config["quick_gelu"] = _tag_activation(name, pretrained, config, tag, quick_gelu)
        _check_stated(name, config, quick_gelu)
        weights = _tag_weights(name, pretrained, tag)
    elif pretrained == RANDOM:
        preprocess = _shared_preprocess(name, tags, None)
        config["quick_gelu"] = bool(config.get("quick_gelu")) if quick_gelu is None else quick_gelu
    elif Path(pretrained).is_file():
        weights = read_weights(Path(pretrained))
        preprocess = _shared_preprocess(name, tags, weights)
        config["quick_gelu"] = _file_activation(name, pretrained, config, weights, quick_gelu)
        _check_stated(name, config, quick_gelu)
    else:
        raise InputError(_no_such_weights(name, pretrained, tags))
    model = build_clip(config)
    if weights is not None:
        _load(model, weights, pretrained, name)
    form = "tag" if tag else "random weights" if weights is None else "weights file"
    about = {"form": form, "teacher": name, "pretrained": pretrained}
    return _opened(model, tokenizer_of_architecture(name), preprocess, config, about)


def _tag_activation(name: str, tag: str, config: dict[str, Any], settings: dict[str, Any], stated: bool | None) -> bool:
    """A plain architecture takes its tag's activation; one that has QuickGELU itself must agree with its tag."""
    if settings.get("quick_gelu"):
        return True
    if config.get("quick_gelu") and stated is None:
        raise InputError(
            f"The architecture {name} has quick_gelu=true, the weights {tag!r} are listed with quick_gelu=false: say"
            " which they were trained with by distill.quick_gelu=true or false."
        )
    return bool(stated) and bool(config.get("quick_gelu"))


def _file_activation(name: str, file: str, config: dict[str, Any], weights: Weights, stated: bool | None) -> bool:
    """A weights file does not say its activation: OpenAI's own have QuickGELU, else the name must decide alone."""
    if weights.openai or name.endswith(_TWIN):
        return True
    if stated is not None:
        return stated
    twin = name + _TWIN
    if twin in open_clip.list_models():
        raise InputError(
            f"{file} does not say its activation: name the architecture {twin} (QuickGELU: OpenAI, MetaCLIP, DFN), or"
            f" {name} with distill.quick_gelu=false (GELU: most of LAION and DataComp)."
        )
    return bool(config.get("quick_gelu"))


def _tag_weights(name: str, tag: str, settings: dict[str, Any]) -> Weights:
    try:
        file = open_clip.factory.download_pretrained(settings)
    except Exception as error:  # of the network, the hub and a server
        raise InputError(
            f"The weights {tag!r} of the teacher {name} could not be downloaded ({type(error).__name__}): check the"
            " network, or give distill.pretrained= a weights file."
        ) from error
    return read_weights(Path(file))


def _shared_preprocess(name: str, tags: list[str], weights: Weights | None) -> dict[str, Any]:
    """What all weights of an architecture were trained with, which a weights file does not say."""
    if weights is not None and weights.openai:
        return {}  # open_clip's defaults are OpenAI's
    keys = ("mean", "std", "interpolation", "resize_mode")
    found = [{key: open_clip.get_pretrained_cfg(name, tag).get(key) for key in keys} for tag in tags]
    if weights is not None and any(one != found[0] for one in found):
        raise InputError(
            f"A weights file of {name} does not say its image preprocessing, of which there are several: give a tag,"
            f" or a folder whose {CONFIG} has a preprocess_cfg."
        )
    return found[0] if found else {}


def _no_such_weights(name: str, pretrained: str, tags: list[str]) -> str:
    if "/" in pretrained or Path(pretrained).suffix:
        return f"The weights file {pretrained} does not exist: check the path."
    others = [other for other, tag in open_clip.list_pretrained() if tag == pretrained]
    twin = next((other for other in others if other.removesuffix(_TWIN) == name.removesuffix(_TWIN)), None)
    hint = f"the architecture {twin} has them" if twin else f"there are {', '.join(tags) or 'none'}"
    return f"The teacher {name} has no weights {pretrained!r}: {hint}."


def _open_folder(folder: Path) -> OpenedClip:
    if (folder / CONFIG).is_file():
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is not None:
            return _open_config(folder / CONFIG, str(weights), form="open_clip folder")
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has {CONFIG} but no weights: copy {WEIGHTS[0]} into it.")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not a teacher: it has no {CONFIG} (open_clip, `epmvg teacher train`) and no config.json"
            " (Hugging Face)."
        )
    model, tokenize, preprocess = open_transformers(folder)
    config = model.model.config.to_diff_dict() | {"quick_gelu": _is_quick(model.model.config)}
    config = {key: value for key, value in config.items() if key != "transformers_version"} | {"embed_dim": model.width}
    about = {"form": f"Hugging Face {type(model.model).__name__} folder", "teacher": str(folder), "pretrained": None}
    return _opened(model, tokenize, preprocess, config, about)


def _is_quick(config: Any) -> bool:
    return str(config.vision_config.hidden_act) == str(config.text_config.hidden_act) == "quick_gelu"


def _open_config(file: Path, pretrained: str | None, form: str = "configuration") -> OpenedClip:
    if pretrained is None:
        raise InputError(f"The teacher {file} has no weights: give distill.pretrained= a weights file, or {RANDOM}.")
    settings = read_json(file)
    config = dict(settings.get("model_cfg", settings))
    config = {key: value for key, value in config.items() if key != "preprocess_cfg"}
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in config:
            raise InputError(f"{file} is no configuration of open_clip: it lacks {key}.")
    weights = None if pretrained == RANDOM else read_weights(Path(pretrained))
    if weights is not None and weights.openai and not config.get("quick_gelu"):
        raise InputError(
            f"{file} has quick_gelu=false, but {pretrained} holds OpenAI's weights, which need quick_gelu=true: set it"
            " in the file."
        )
    tokenize = tokenizer_of_config(config["text_cfg"], file.parent)
    model = build_clip(config, file.parent)
    if weights is not None:
        _load(model, weights, pretrained, str(file))
    about = {"form": form, "teacher": str(file), "pretrained": Path(pretrained).name}
    return _opened(model, tokenize, settings.get("preprocess_cfg", {}), config, about)


def _open_file(file: Path) -> OpenedClip:
    """Open OpenAI's weights, whose shapes say all about their architecture."""
    weights = read_weights(file)
    if not weights.openai or "visual.conv1.weight" not in weights.state:
        raise InputError(
            f"{file} is a weights file that does not say its architecture: name that as the teacher, and give the file"
            " as distill.pretrained."
        )
    config = _openai_config(weights.state)
    model = build_clip(config)
    _load(model, weights, str(file), "OpenAI's CLIP")
    tokenize = tokenizer_of_config(config["text_cfg"], file.parent)
    return _opened(model, tokenize, {}, config, {"form": "OpenAI file", "teacher": str(file), "pretrained": None})


def _openai_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """Read OpenAI's architecture from its shapes; all of its heads are 64 wide."""

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)})

    conv = state["visual.conv1.weight"]
    if "visual.proj" in state:
        grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        vision: dict[str, Any] = {"layers": count("visual.transformer.resblocks."), "width": len(conv)}
        vision |= {"patch_size": conv.shape[-1], "image_size": grid * conv.shape[-1]}
    else:
        grid = round((len(state["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        layers = [count(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
        width = len(state["visual.layer1.0.conv1.weight"])
        vision = {"layers": layers, "width": width, "patch_size": None, "image_size": grid * 32}
    words, width = state["token_embedding.weight"].shape
    text = {"context_length": len(state["positional_embedding"]), "vocab_size": words, "width": width}
    text |= {"heads": width // 64, "layers": count("transformer.resblocks.")}
    return {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def build_clip(config: dict[str, Any], folder: Path | None = None) -> Any:
    """Build an open_clip model from its configuration; a text tower named by a relative path lies in `folder`."""
    settings = dict(config)
    text = dict(settings["text_cfg"])
    custom = settings.pop("custom_text", False) or bool(text.get("hf_model_name"))
    if text.get("hf_model_name"):
        text |= {"hf_model_name": inside(text["hf_model_name"], folder), "hf_model_pretrained": False}
    kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return kind(**(settings | {"text_cfg": text}))


def _load(model: Any, weights: Weights, source: str, name: str) -> None:
    """Load weights whole; a form that lacks or has too much is of another architecture."""
    state: dict[str, Tensor] = convert_state_dict(model, dict(weights.state))  # MobileCLIP's own names
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own: dict[str, Tensor] = model.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.endswith("position_ids")}
    for key in ("logit_scale", "logit_bias"):  # one number or a vector of one
        if key in state and key in own and state[key].numel() == own[key].numel():
            state[key] = state[key].reshape(own[key].shape)
    for key in sorted(own.keys() | state.keys()):
        shapes = [str(list(part[key].shape)) if key in part else "none" for part in (own, state)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"The weights in {source} are not of the architecture of {name}: {key} is {shapes[0]} there and"
                f" {shapes[1]} in the file; name the architecture that they were trained with."
            )
    model.load_state_dict(state)


def _download(name: str, architecture: str) -> Path:
    """Fetch a model from the hub, or find it in the hub's local cache."""
    repository = name.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(
            f"There is no teacher {name!r}, neither a file or folder nor an open_clip model; {_hint(architecture)}."
        )
    try:
        folder = Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model"]))
        names = WEIGHTS if (folder / CONFIG).is_file() else WEIGHT_FILES
        for weights in names:
            if any((folder / file).is_file() for file in names):
                break
            with suppress(EntryNotFoundError):
                hf_hub_download(repository, weights)
    except Exception as error:  # of the network, the hub and a server
        raise InputError(
            f"There is no folder {repository}, and the model of that name could not be downloaded from the hub"
            f" ({type(error).__name__}): check name and network, or give a local folder."
        ) from error
    return folder


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, open_clip.list_models(), n=1)
    return f"did you mean {close[0]!r}?" if close else "`epmvg list teachers` names them"


def _opened(
    model: Any, tokenize: Tokenize, preprocess: dict[str, Any], config: dict[str, Any], about: dict[str, Any]
) -> OpenedClip:
    model = model.float().eval()
    size = model.image_size if hasattr(model, "image_size") else model.visual.image_size
    words = config["text_cfg"].get("vocab_size") if "text_cfg" in config else None
    tokens = tokenize(PROBES)
    if words is not None and "hf_model_name" not in config["text_cfg"] and int(tokens.max()) >= int(words):
        raise InputError(
            f"The tokenizer of the teacher {about['teacher']} has token {int(tokens.max())}, its text encoder a"
            f" vocabulary of {words}: give the model's own tokenizer."
        )
    about |= {"tokenizer": tokenizer_identity(tokenize, tokens)}
    return OpenedClip(model, tokenize, int(config["embed_dim"]), Preprocess.of(preprocess, size), config, about)
