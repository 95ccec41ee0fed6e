"""Published weights -> our parameters: TransVG, QRNet, DETR, Swin detectors, ImageNet networks, any BERT.

Every parameter is accounted for: converted, ignored with a reason, or, where a file holds only part of a model, new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from epmvg.core.files import write_text
from epmvg.core.types import InputError
from epmvg.models.checkpoint_files import read_published
from epmvg.models.factory import CONVERSION_FILE, build, save
from epmvg.models.grounder import Grounder
from epmvg.models.layouts import reject_other_networks, to_authors_layout
from epmvg.models.presets import preset
from epmvg.models.pretrained import bert_sizes, load_bert

KINDS = ("transvg", "qrnet", "detr", "swin", "imagenet")

# Published name -> ours, tried in order; None ignores the parameter, for the reason beside it.
Rule = tuple[str, str | None, str]

_SHARED: list[Rule] = [
    (r"textmodel\.bert\.pooler\..*", None, "the pooler's output is not used"),
    (r"textmodel\.bert\.embeddings\.position_ids", None, "computed, not learned"),
    (r"textmodel\.bert\.(.*)", r"text_encoder.bert.\1", ""),
    (r"vl_transformer\.encoder\.(.*)", r"fusion.\1", ""),
    (r"bbox_embed\.(.*)", r"box_head.\1", ""),
    (r"((?:visu_proj|text_proj|reg_token|vl_pos_embed)\..*)", r"\1", ""),
]
_RESNET: list[Rule] = [
    (r".*\.num_batches_tracked", None, "counts batches, which frozen batch norms do not"),
    (r"fc\..*", None, "the classifier of ImageNet"),
    (r"((?:conv1|bn1|layer\d)\..*)", r"visual_encoder.backbone.\1", ""),
]
_SWIN: list[Rule] = [
    (r".*\.(?:relative_position_index|attn_mask)", None, "computed, not learned"),
    (r"norm(\d)\.(.*)", r"visual_encoder.norms.\1.\2", ""),
    (r"((?:patch_embed|layers\.\d+\.(?:blocks|downsample))\..*)", r"visual_encoder.backbone.\1", ""),
]
_GATE = {"ChannelGate.mlp.0": "squeeze", "ChannelGate.mlp.2": "excite", "SpatialGate.spatial": "spatial"}


def _gate_rules(published: str, ours: str) -> list[Rule]:
    rules: list[Rule] = []
    for name, part in _GATE.items():
        prefix = rf"{published}\.qdatt\.{re.escape(name)}\.decoder"
        rules.append((rf"{prefix}\.decoder\.(.*)", rf"{ours}.{part}.decoder.\2", ""))
        rules.append((rf"{prefix}\.V", rf"{ours}.{part}.V", ""))
    return rules


def _under(prefix: str, rules: Sequence[Rule]) -> list[Rule]:
    return [(re.escape(prefix) + pattern, ours, why) for pattern, ours, why in rules]


_DETR: list[Rule] = [
    *_under("backbone.0.body.", _RESNET),
    (r"input_proj\.(.*)", r"visual_encoder.input_proj.\1", ""),
    (r"transformer\.encoder\.(.*)", r"visual_encoder.encoder.\1", ""),
    (r"transformer\.decoder\..*", None, "DETR's decoder detects objects without a phrase"),
    (
        r"(query_embed|class_embed|bbox_embed|bbox_attention|mask_head)\..*",
        None,
        "DETR's head detects without a phrase",
    ),
]
_NECK: list[Rule] = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", r"visual_encoder.lateral.\1.\2", ""),
    (r"neck\.fpn_convs\..*", None, "our neck has no output convolutions"),
    (r"(rpn_head|roi_head|bbox_head|mask_head)\..*", None, "a detector's head"),
]

RULES: dict[str, list[Rule]] = {
    "transvg": [*_under("visumodel.", _DETR), *_SHARED],
    "qrnet": [
        *_gate_rules(r"visumodel\.backbone\.layers\.(\d)", r"visual_encoder.stage_gates.\1"),
        *_gate_rules(r"visumodel\.neck\.fpn_down\.(\d)", r"visual_encoder.neck_gates.\1"),
        *_under("visumodel.backbone.", _SWIN),
        *_under("visumodel.", _NECK),
        (r"scale_embed\.(.*)", r"visual_encoder.scale_embed.\1", ""),
        *_SHARED,
    ],
    "detr": _DETR,
    "swin": [*_under("backbone.", _SWIN), *_NECK],
    "imagenet": [
        *_RESNET,
        *_SWIN,
        *_under("backbone.", _SWIN),
        (r"(norm|head|head\.fc)\.(weight|bias)", None, "the classifier of ImageNet"),
    ],
}

_SIGNATURE = {
    "transvg": {"visumodel.input_proj.weight"},
    "qrnet": {"visumodel.backbone.patch_embed.proj.weight"},
    "detr": {"transformer.encoder.layers.0.linear1.weight", "query_embed.weight"},
    "swin": {"neck.lateral_convs.0.conv.weight"},
}
"""Parameters that a file of each kind must hold."""

_GROUNDING = ("text_encoder.", "fusion.", "box_head.", "visu_proj.", "text_proj.", "reg_token.", "vl_pos_embed.")
_QUERY_AWARE = tuple(f"visual_encoder.{part}." for part in ("scale_embed", "stage_gates", "neck_gates"))
_ENCODER = tuple(f"visual_encoder.{part}." for part in ("input_proj", "encoder", "norms", "lateral"))
_MAY_BE_NEW = {"detr": _GROUNDING, "swin": _GROUNDING + _QUERY_AWARE, "imagenet": _GROUNDING + _QUERY_AWARE + _ENCODER}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted model, and what became of every parameter."""

    model: Grounder
    preset: str
    converted: list[str]  # published names
    ignored: dict[str, str]  # published name -> reason
    new: list[str]  # our names that the file does not hold; they keep their random initialization


def convert(
    source: Path | str | dict[str, Tensor], kind: str, *, model: str | None = None, bert: str | None = None
) -> Conversion:
    """Build a model from published weights.

    Args:
        source: a file or a folder as `read_published` takes them, or tensors by name.
        kind: what it holds: `transvg`, `qrnet`, `detr`, `swin` (a Swin-S detector) or `imagenet` (a backbone).
        model: a preset's name; guessed from the weights by default, required for `imagenet`.
        bert: name on the hub or local folder of a BERT for the text encoder.

    Raises:
        InputError: the file cannot be read safely, holds something else, contradicts the settings that it states, or
            fits the model only in part.
    """
    if kind not in KINDS:
        raise InputError(f"There is no kind {kind!r} of published weights. Give one of {', '.join(KINDS)}.")
    published, stated = (source, {}) if isinstance(source, dict) else read_published(source)
    file = "the state dict" if isinstance(source, dict) else str(source)
    reject_other_networks(published, file)
    published, sources = to_authors_layout(published, file)
    _check_kind(published, kind, file)
    name = model or _guess_preset(kind, published, file)
    settings = preset(name)
    _check_stated(stated, kind, settings, file)
    state, ignored, origin = _rename(published, sources, kind, file)
    if (positions := state.get("vl_pos_embed.weight")) is not None:
        settings["image_size"], settings["max_length"] = _sizes(len(positions), settings, stated, file)
    if bert is not None:
        if any(key.startswith("text_encoder.") for key in state):
            raise InputError(f"{file} holds its own BERT. Leave out --bert.")
        settings["text_encoder"] = settings["text_encoder"] | bert_sizes(bert)
    built = build(settings)
    new = _fill(built, state, origin, kind, file)
    if bert is not None:
        load_bert(built, bert)
        new = [key for key in new if not key.startswith("text_encoder.")]
    return Conversion(built.eval(), name, sorted(chain.from_iterable(origin.values())), ignored, new)


def write(conversion: Conversion, folder: Path | str) -> None:
    """Save the converted model as a new folder that `load` and `model.init_from` read.

    The names of new weights are stored with it; a training that starts from it draws these from its own seed.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty. Choose another --out.")
    save(conversion.model, folder)
    write_text(folder / CONVERSION_FILE, yaml.safe_dump({"new": conversion.new}))


def _check_kind(published: dict[str, Tensor], kind: str, file: str) -> None:
    """Reject weights that are not of a kind, naming the kind that they are of."""
    absent = _SIGNATURE.get(kind, set()) - published.keys()
    if absent:
        other = next((k for k, signature in _SIGNATURE.items() if signature <= published.keys()), None)
        hint = f"give --as {other}" if other else "it is incomplete or of another network"
        raise InputError(f"{file} holds no {kind} weights (there is no {min(absent)}): {hint}.")


def _check_stated(stated: dict[str, Any], kind: str, settings: dict[str, Any], file: str) -> None:
    """Reject weights that were trained with other settings, which leave no trace in the tensors' shapes."""
    visual = settings["visual_encoder"]
    expected: dict[str, tuple[Any, ...]] = {}
    if kind in ("transvg", "detr"):
        expected |= {"dilation": (False,), "pre_norm": (False,), "backbone": (visual["backbone"].partition(".")[0],)}
        expected |= {"nheads": (visual["heads"],), "position_embedding": ("sine", "v2")}
        expected |= {"model_type": ("detr",), "activation_function": ("relu",), "downsample_in_bottleneck": (False,)}
    if kind in ("transvg", "qrnet"):
        expected["vl_nheads"] = (settings["fusion"]["heads"],)
    for key, values in expected.items():
        if key in stated and stated[key] not in values:
            raise InputError(
                f"{file} states {key}={stated[key]}, and our model has {key}={values[0]}: no preset fits these weights."
            )


def _guess_preset(kind: str, published: dict[str, Tensor], file: str) -> str:
    if kind == "imagenet":
        raise InputError(f"{file} may be for several models. Name one, for example --model transvg-r50.")
    if kind in ("qrnet", "swin"):
        return "qrnet-swin-s"
    return "transvg-r101" if any(".layer3.22." in name for name in published) else "transvg-r50"


def _rename(
    published: dict[str, Tensor], sources: dict[str, list[str]], kind: str, file: str
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, list[str]]]:
    """Return our names -> tensors, ignored published names -> reasons, and our names -> published names."""
    merges_late = any(re.search(r"(^|\.)layers\.0\.downsample\.", name) for name in published)  # Swin's own layout
    state: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    origin: dict[str, list[str]] = {}
    for name, tensor in published.items():
        for pattern, ours, reason in RULES[kind]:
            if match := re.fullmatch(pattern, name):
                own, why = ours and match.expand(ours), reason
                break
        else:
            raise InputError(f"{file} has the unknown parameter {sources[name][0]!r}. Is it {kind}?")
        if own is None:
            ignored |= dict.fromkeys(sources[name], why)
            continue
        if merges_late:  # timm merges patches at the start of the next stage
            own = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", own)
        is_pointwise = own.startswith("visual_encoder.lateral.") and tensor.dim() == 4  # a 1x1 convolution is linear
        state[own] = tensor.flatten(1) if is_pointwise else tensor
        origin[own] = sources[name]
    return state, ignored, origin


def _sizes(rows: int, settings: dict[str, Any], stated: dict[str, Any], file: str) -> tuple[int, int]:
    """Return image size and maximum length that fit the learned positions: 1 + L + N rows.

    L is 20 or 40 in what is published, unless the file states another; an image size that it states must fit too.
    """
    lengths = [stated["max_query_len"]] if "max_query_len" in stated else [20, 40]
    strides = settings["visual_encoder"]["strides"]
    found = [
        (size, length)
        for length in lengths
        for size in range(64, 2048, 32)
        if 1 + length + sum((-(-size // stride)) ** 2 for stride in strides) == rows
    ]
    if not found:
        raise InputError(f"{file}: its {rows} positions fit no maximum length of {lengths} and no square image.")
    size = stated.get("imsize", found[0][0])
    fitting = [sizes for sizes in found if sizes[0] == size]
    if not fitting:
        raise InputError(
            f"{file} states imsize={size}, and its {rows} positions fit an image size of {found[0][0]}: "
            "it was trained with other strides, which no model here has."
        )
    return fitting[0]


def _fill(model: Grounder, state: dict[str, Tensor], origin: dict[str, list[str]], kind: str, file: str) -> list[str]:
    """Load all tensors into the model, or raise before any is; return the names that stay new."""
    wanted = model.state_dict()
    for name, tensor in state.items():
        if name not in wanted:
            raise InputError(f"{file}: our model has no parameter for {origin[name][0]}. Is it {kind}?")
        if wanted[name].shape != tensor.shape:
            raise InputError(
                f"{file}: {origin[name][0]} is {list(tensor.shape)} and ours is {list(wanted[name].shape)}. "
                "Choose the --model that these weights were made for."
            )
        if not torch.isfinite(tensor.float()).all():
            raise InputError(f"{file}: {origin[name][0]} contains NaN or Inf. Download the file again.")
    new = [name for name in wanted if name not in state]
    missing = [name for name in new if not name.startswith(_MAY_BE_NEW.get(kind, ()))]
    if missing:
        raise InputError(f"{file} is not complete: {missing[0]} (and {len(missing) - 1} more) would stay random.")
    model.load_state_dict(wanted | state)
    return new
