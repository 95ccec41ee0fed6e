"""Published weights -> our folder: TransVG, QRNet, DETR, Swin detectors, ImageNet networks, any BERT.

Every parameter is accounted for: converted, ignored with a reason, or, where a file holds only part of a student, new.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
import yaml
from torch import Tensor

from epmvg.core.files import write_text
from epmvg.core.types import InputError
from epmvg.models.checkpoint_files import read_published
from epmvg.models.factory import CONVERSION_FILE, build, save
from epmvg.models.grounder import Grounder
from epmvg.models.presets import preset
from epmvg.models.pretrained import bert_sizes, load_bert

Kind = Literal["transvg", "qrnet", "detr", "swin", "imagenet"]
KINDS: tuple[str, ...] = get_args(Kind)

# Published name -> ours, tried in order; None leaves the parameter out, for the reason beside it.
Rule = tuple[str, str | None, str]

_SHARED: list[Rule] = [
    (r"textmodel\.bert\.pooler\..*", None, "the pooler's answer is never used"),
    (r"textmodel\.bert\.embeddings\.position_ids", None, "a row of numbers that transformers no longer stores"),
    (r"textmodel\.bert\.(.*)", r"linguistic.bert.\1", ""),
    (r"vl_transformer\.encoder\.(.*)", r"fusion.\1", ""),
    (r"bbox_embed\.(.*)", r"head.\1", ""),
    (r"(visu_proj|text_proj|reg_token|vl_pos_embed)\.(.*)", r"\1.\2", ""),
]
_RESNET: list[Rule] = [
    (r".*\.num_batches_tracked", None, "counts batches, which frozen batch norms do not"),
    (r"fc\..*", None, "the classifier of ImageNet"),
    (r"((?:conv1|bn1|layer\d)\..*)", r"visual.backbone.\1", ""),
]
_SWIN: list[Rule] = [
    (r".*\.relative_position_index", None, "computed, not learned"),
    (r".*\.attn_mask", None, "computed, not learned"),
    (r"norm(\d)\.(.*)", r"visual.norms.\1.\2", ""),
    (r"((?:patch_embed|layers\.\d+\.(?:blocks|downsample))\..*)", r"visual.backbone.\1", ""),
]
_GATE = {"ChannelGate.mlp.0": "squeeze", "ChannelGate.mlp.2": "excite", "SpatialGate.spatial": "spatial"}


def _gate_rules(published: str, ours: str) -> list[Rule]:
    rules: list[Rule] = []
    for name, part in _GATE.items():
        inner = re.escape(name)
        rules.append((rf"{published}\.qdatt\.{inner}\.decoder\.decoder\.(.*)", rf"{ours}.{part}.decoder.\2", ""))
        rules.append((rf"{published}\.qdatt\.{inner}\.decoder\.V", rf"{ours}.{part}.V", ""))
    return rules


def _under(prefix: str, rules: Sequence[Rule]) -> list[Rule]:
    return [(re.escape(prefix) + pattern, ours, why) for pattern, ours, why in rules]


_DETR: list[Rule] = [
    *_under("backbone.0.body.", _RESNET),
    (r"input_proj\.(.*)", r"visual.input_proj.\1", ""),
    (r"transformer\.encoder\.(.*)", r"visual.encoder.\1", ""),
    (r"transformer\.decoder\..*", None, "DETR's decoder finds objects without a phrase"),
    (r"(query_embed|class_embed|bbox_embed)\..*", None, "DETR's head finds objects without a phrase"),
]
_NECK: list[Rule] = [
    (r"neck\.lateral_convs\.(\d)\.conv\.(.*)", r"visual.lateral.\1.\2", ""),
    (r"neck\.fpn_convs\..*", None, "the student's neck has no output convolutions"),
    (r"(rpn_head|roi_head)\..*", None, "a detector's head"),
]

RULES: dict[str, list[Rule]] = {
    "transvg": [*_under("visumodel.", _DETR), *_SHARED],
    "qrnet": [
        *_gate_rules(r"visumodel\.backbone\.layers\.(\d)", r"visual.stage_gates.\1"),
        *_gate_rules(r"visumodel\.neck\.fpn_down\.(\d)", r"visual.neck_gates.\1"),
        *_under("visumodel.backbone.", _SWIN),
        *_under("visumodel.", _NECK),
        (r"scale_embed\.(.*)", r"visual.scale_embed.\1", ""),
        *_SHARED,
    ],
    "detr": _DETR,
    "swin": [*_under("backbone.", _SWIN), *_NECK],
    "imagenet": [
        *_RESNET,
        *_SWIN,
        (r"(norm|head|head\.fc)\.(weight|bias)", None, "the classifier of ImageNet"),
    ],
}

# What a file of each kind must hold to be one; the rest of the student stays new where the kind is only part of it.
_SIGNATURE = {
    "transvg": {"visumodel.input_proj.weight"},
    "qrnet": {"visumodel.backbone.patch_embed.proj.weight"},
    "detr": {"transformer.encoder.layers.0.linear1.weight", "query_embed.weight", "class_embed.weight"},
    "swin": {"neck.lateral_convs.0.conv.weight"},
}
# Other networks that people have weights of, each known by the start of a parameter's name.
_FOREIGN = {
    "transformer.text_encoder.": "MDETR",
    "ml_visual_projection.": "CLIP-VG",
    "clip.visual.": "CLIP-VG",
    "transformer.level_embed": "Grounding DINO or another deformable DETR",
}
_MAY_BE_NEW: dict[str, tuple[str, ...]] = {
    "transvg": (),
    "qrnet": (),
    "detr": ("linguistic.", "fusion.", "head.", "visu_proj.", "text_proj.", "reg_token.", "vl_pos_embed."),
}
_MAY_BE_NEW["swin"] = (*_MAY_BE_NEW["detr"], "visual.scale_embed.", "visual.stage_gates.", "visual.neck_gates.")
_MAY_BE_NEW["imagenet"] = (
    *_MAY_BE_NEW["swin"],
    *("visual.input_proj.", "visual.encoder.", "visual.norms.", "visual.lateral."),
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A converted student, and what became of every parameter."""

    model: Grounder
    preset: str
    converted: list[str]  # published names
    ignored: dict[str, str]  # published name -> reason
    new: list[str]  # our names that the file does not hold; they keep their random start


def convert(file: Path | str, kind: str, **options: Any) -> Conversion:
    """Build a student from a published checkpoint.

    Args:
        file: a `.pth` or `.safetensors` file.
        kind: what it holds: `transvg`, `qrnet`, `detr`, `swin` (a Swin-S detector) or `imagenet` (a backbone).
        options: as for `from_published`.

    Raises:
        InputError: the file cannot be read safely, holds something else, or fits the student only in part.
    """
    if kind not in KINDS:
        raise InputError(f"There is no kind {kind!r} of published weights: give one of {', '.join(KINDS)}.")
    published = read_published(file)
    return from_published(published.tensors, kind, file=file, stated=published.stated, **options)


def from_published(
    published: dict[str, Tensor],
    kind: str,
    *,
    file: Path | str = "the state dict",
    stated: Mapping[str, Any] = MappingProxyType({}),
    model: str | None = None,
    bert: str | None = None,
) -> Conversion:
    """Build a student from published tensors by name.

    Args:
        published: as `read_published` returns them.
        kind: as for `convert`.
        file: what messages call the source.
        stated: the settings of the training that made them, as `read_published` returns them.
        model: a preset's name; guessed from the weights by default, wanted for `imagenet`.
        bert: name on the hub or local folder of a BERT whose weights the linguistic branch starts from.

    Raises:
        InputError: the weights are of something else, contradict what is stated, or fit the student only in part.
    """
    _check_kind(published, kind, file)
    name = model or _guess(kind, published, file)
    settings = preset(name)
    _check_stated(stated, kind, settings, file)
    state, ignored, origin = _rename(published, kind, file)
    positions = state.get("vl_pos_embed.weight")
    if positions is not None:
        settings["image_size"], settings["max_length"] = _sizes(len(positions), settings, stated, file)
    if bert is not None:
        if any(key.startswith("linguistic.") for key in state):
            raise InputError(f"{file} brings its own BERT: leave out --bert.")
        settings["linguistic"] = settings["linguistic"] | bert_sizes(bert)
    student = build(settings)
    new = _fill(student, state, origin, kind, file)
    if bert is not None:
        load_bert(student, bert)
        new = [key for key in new if not key.startswith("linguistic.")]
    return Conversion(student.eval(), name, sorted(origin.values()), ignored, new)


def write(conversion: Conversion, folder: Path | str) -> None:
    """Save the converted student as a folder that `load`, `evaluate`, `predict` and `model.init_from` read.

    The folder says which weights are new; a training that starts from it draws these from its own seed.

    Raises:
        InputError: the folder holds something already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: choose another --out.")
    save(conversion.model, folder)
    write_text(folder / CONVERSION_FILE, yaml.safe_dump({"new": conversion.new}))


def _check_kind(published: dict[str, Tensor], kind: str, file: Path | str) -> None:
    """Reject weights that are not of a kind, naming what they are where that is known."""
    foreign = next((name for start, name in _FOREIGN.items() if any(key.startswith(start) for key in published)), None)
    if foreign:
        raise InputError(f"{file} holds weights of {foreign}, which fit no student: give one of {', '.join(KINDS)}.")
    absent = _SIGNATURE.get(kind, set()) - published.keys()
    if not absent:
        return
    other = next((k for k, signature in _SIGNATURE.items() if signature <= published.keys()), None)
    hint = (
        f"give --as {other}" if other else f"it is incomplete or of another network (it begins with {min(published)})"
    )
    raise InputError(f"{file} holds no {kind} weights (there is no {min(absent)}): {hint}.")


def _check_stated(stated: Mapping[str, Any], kind: str, settings: dict[str, Any], file: Path | str) -> None:
    """Reject weights whose training states what a student of these settings would compute otherwise.

    What is compared leaves no trace in the tensors' shapes.
    """
    expected: dict[str, tuple[Any, ...]] = {}
    if kind in ("transvg", "detr"):
        backbone = settings["visual"]["backbone"].partition(".")[0]
        expected |= {"dilation": (False,), "pre_norm": (False,), "backbone": (backbone,)}
        expected |= {"nheads": (settings["visual"]["heads"],), "position_embedding": ("sine", "v2")}
    if kind in ("transvg", "qrnet"):
        expected["vl_nheads"] = (settings["fusion"]["heads"],)
    for key, values in expected.items():
        if key in stated and stated[key] not in values:
            raise InputError(
                f"{file} states {key}={stated[key]}, and the student computes with {key}={values[0]}: "
                "no preset here fits these weights."
            )


def _guess(kind: str, published: dict[str, Tensor], file: Path | str) -> str:
    """Tell which preset the weights belong to."""
    if kind == "imagenet":
        raise InputError(f"{file}: say which student the ImageNet weights are for, for example --model transvg-r50.")
    if kind in ("qrnet", "swin"):
        return "qrnet-swin-s"
    return "transvg-r101" if any(".layer3.22." in name for name in published) else "transvg-r50"


def _rename(
    published: dict[str, Tensor], kind: str, file: Path | str
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Return our names -> tensors, ignored names -> reasons, and our names -> published names."""
    merges_late = any(re.search(r"(^|\.)layers\.0\.downsample\.", name) for name in published)  # Swin's own layout
    state: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name, tensor in published.items():
        for pattern, ours, why in RULES[kind]:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if ours is None:
                ignored[name] = why
                break
            own = match.expand(ours)
            if merges_late:  # timm keeps patch merging at the start of the next stage
                own = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", own)
            pointwise = own.startswith("visual.lateral.") and tensor.dim() == 4  # a 1x1 convolution is a linear map
            state[own] = tensor.flatten(1) if pointwise else tensor
            origin[own] = name
            break
        else:
            raise InputError(f"{file}: nobody knows the parameter {name!r}: is this {kind}?")
    return state, ignored, origin


def _sizes(rows: int, settings: dict[str, Any], stated: Mapping[str, Any], file: Path | str) -> tuple[int, int]:
    """Read canvas and length off the learned positions: 1 + L + N rows.

    L is 20 or 40 in what is published, unless the file states another; a canvas that it states must be the one found.
    """
    lengths = [stated["max_query_len"]] if "max_query_len" in stated else [20, 40]
    strides = settings["visual"]["strides"]
    found = [
        (image_size, length)
        for length in lengths
        for image_size in range(64, 2048, 32)
        if 1 + length + sum(math.ceil(image_size / stride) ** 2 for stride in strides) == rows
    ]
    if not found:
        raise InputError(f"{file}: its {rows} positions fit no length of {lengths} words and no square canvas.")
    said = stated.get("imsize", found[0][0])
    fitting = [sizes for sizes in found if sizes[0] == said]
    if not fitting:
        raise InputError(
            f"{file} states imsize={said}, and its {rows} positions fit a canvas of {found[0][0]}: "
            "it was trained with other strides, which no student has."
        )
    return fitting[0]


def _fill(model: Grounder, state: dict[str, Tensor], origin: dict[str, str], kind: str, file: Path | str) -> list[str]:
    """Put every tensor in its place, or raise before any is; return the places that stay new."""
    wanted = model.state_dict()
    for name, tensor in state.items():
        if name not in wanted:
            raise InputError(f"{file}: the student has no place for {origin[name]}: is this {kind}?")
        if wanted[name].shape != tensor.shape:
            raise InputError(
                f"{file}: {origin[name]} is {list(tensor.shape)} and the student's is {list(wanted[name].shape)}: "
                "choose the --model that these weights were made for."
            )
        if not torch.isfinite(tensor.float()).all():
            raise InputError(f"{file}: {origin[name]} holds values that are not numbers: fetch the file again.")
    new = [name for name in wanted if name not in state]
    missing = [name for name in new if not name.startswith(_MAY_BE_NEW[kind])]
    if missing:
        raise InputError(f"{file} is not complete: it has nothing for {missing[0]} (and {len(missing) - 1} more).")
    model.load_state_dict(wanted | state)
    return new
