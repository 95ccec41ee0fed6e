"""The doors through which a model is built, saved and loaded.

`create_model` never downloads; `pretrained=True` takes weights from
installed packages (`mini`) or from the hubs of timm and transformers (the others).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from epmvg.core.calibration import CONFIDENCE_FILE, read_calibration
from epmvg.core.files import atomic_write, write_text
from epmvg.core.locate import fetch, locate, read_domain
from epmvg.core.tokenizer import bert_vocabulary
from epmvg.core.types import InputError
from epmvg.models.grounder import Grounder
from epmvg.models.packaged_weights import read_wheels
from epmvg.models.presets import preset
from epmvg.models.pretrained import load_pretrained
from epmvg.models.settings import checked
from epmvg.models.text_encoder import LinguisticBranch
from epmvg.models.visual_encoder import IMAGENET_MEAN, IMAGENET_STD, ConvBranch, SwinBranch, VisualBranch
from epmvg.models.weights_file import WEIGHTS, read_weights, weights_digest, write_weights

CONVERSION_FILE = "conversion.yaml"
"""In a folder of `epmvg convert`: the names of the weights that the published file did not hold."""


def create_model(name: str, pretrained: bool = False, **overrides: Any) -> Grounder:
    """Build a grounder by preset name.

    Args:
        name: one of `list_models()`.
        pretrained: start both branches from pretrained weights. `mini` finds them in installed wheels, the paper's
            sizes fetch ImageNet and BERT weights from the hubs of timm and transformers.
        overrides: numbers that differ from the preset, for example `canvas=320` or `fusion={"layers": 4}`.

    Raises:
        InputError: unknown name or override, or weights that cannot be had.
    """
    model = build(preset(name, **overrides))
    if pretrained:
        load_pretrained(model)
    return model


def build(settings: dict[str, Any]) -> Grounder:
    """Build a grounder from a preset's complete numbers.

    Raises:
        InputError: a setting is unknown, out of range or does not fit the others.
    """
    settings = checked(settings)
    visual_settings, linguistic_settings = settings["visual"], settings["linguistic"]
    dropout = settings["dropout"]
    visual: VisualBranch
    if "gates" in visual_settings:
        visual = SwinBranch(**visual_settings, image_size=settings["image_size"], query=linguistic_settings["hidden"])
    else:
        visual = ConvBranch(**visual_settings, dropout=dropout)
    return Grounder(
        visual,
        LinguisticBranch(**linguistic_settings, dropout=dropout),
        tokenizer=default_tokenizer(),
        settings=settings,
        image_size=settings["image_size"],
        max_length=settings["max_length"],
        **settings["fusion"],
        dropout=dropout,
        vls=settings["vls"],
        position=settings["position"],
        normalize=settings["normalize"],
        similarity=settings["similarity"],
        anchored=settings["anchored"],
        score=settings["score"],
    )


def default_tokenizer() -> PreTrainedTokenizerBase:
    """Return the lower-casing WordPiece tokenizer of bert-base-uncased, whose vocabulary ships in this package."""
    return BertTokenizer(vocab=bert_vocabulary(), do_lower_case=True)


def save(model: Grounder, folder: Path | str) -> None:
    """Write weights, tokenizer and settings of `model` into a folder that `load` reads without anything else.

    A calibration of what the folder held before is deleted: it is not true of other weights.

    Args:
        model: the student.
        folder: made if it is not there.

    Raises:
        InputError: the disk refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIDENCE_FILE).unlink(missing_ok=True)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    write_text(folder / "model.yaml", yaml.safe_dump(model.settings, sort_keys=False))
    with atomic_write(folder / WEIGHTS) as temporary:
        write_weights(temporary, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    if model.calibration is not None:
        calibration = replace(model.calibration, weights=weights_digest(folder / WEIGHTS))
        write_text(folder / CONFIDENCE_FILE, calibration.dump())


def load(run: Path | str) -> Grounder:
    """Load a grounder that `save` or a training run wrote, in eval mode, in float32 on the CPU.

    Default dtype, default device and random numbers of the caller play no part and stay as they are.

    Args:
        run: its folder, `default` for the model that ships in this package, or OWNER/NAME of a model on the Hugging
            Face hub.

    Raises:
        InputError: the folder or one of its files is missing or not ours, a package that contains weights of
            `default` is missing or contains others, or the hub cannot be reached.
    """
    folder = locate(run)
    if not (folder / "model.yaml").exists():
        raise InputError(
            f"{folder} is an export, which `epmvg predict` and `serve` take: give the run that it was made of here."
        )
    try:
        settings = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        state = read_weights(folder / WEIGHTS)
        wheels = settings.pop("wheels", {})  # only the bundled model's frozen parts are not in its folder
        settings["score"] = any(name.startswith("score_head.") for name in state)  # it may have been fitted later
        with own_defaults():
            model = build(settings)
            model.load_state_dict(state | read_wheels(wheels, model.state_dict()))
    except (
        *(yaml.YAMLError, safetensors.SafetensorError),
        *(AttributeError, KeyError, TypeError, RuntimeError),
    ) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} holds a model that cannot be read ({reason}): copy or train it again.") from error
    model.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model.calibration = read_calibration(folder)
    if model.calibration and model.calibration.weights not in (None, weights_digest(folder / WEIGHTS)):
        raise InputError(
            f"{folder / CONFIDENCE_FILE} was made for other weights than {WEIGHTS}: delete it, or calibrate again then."
        )
    model.domain = read_domain(folder)
    return model.eval()


@contextmanager
def own_defaults() -> Iterator[None]:
    """Build in float32 on the CPU, whatever the caller's defaults are, and leave the random numbers as they were."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(dtype)


def start_from(model: Grounder, folder: Path | str) -> set[str]:
    """Give `model` the weights and tokenizer of a saved grounder of the same shape, in place; return what was loaded.

    What a conversion left new keeps the values that `model` has, and so does a score head that only one of the two has.

    Raises:
        InputError: the folder holds no grounder, or one of another shape or of other settings that give its weights
            their meaning.
    """
    folder = fetch(folder)
    saved = load(folder)
    new = _new_parts(folder)
    _compare_settings(model, saved, folder, new)
    own, other = (
        {name: value for name, value in each.state_dict().items() if name not in new} for each in (model, saved)
    )
    if (model.score_head is None) != (saved.score_head is None):
        own, other = (
            {name: value for name, value in state.items() if not name.startswith("score_head.")}
            for state in (own, other)
        )
    for name in [*own, *other]:
        if name not in own or name not in other or own[name].shape != other[name].shape:
            raise InputError(f"{folder} holds a model of another shape (see {name}): give the preset it was made for.")
    model.load_state_dict(other, strict=False)  # the names were compared above
    model.tokenizer = saved.tokenizer
    return set(other)


def _new_parts(folder: Path) -> set[str]:
    """Return the names of the weights in a converted folder that were not in the published file."""
    file = folder / CONVERSION_FILE
    if not file.exists():
        return set()
    try:
        return set(yaml.safe_load(file.read_text(encoding="utf-8"))["new"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read: convert the published weights again.") from error


def _compare_settings(model: Grounder, saved: Grounder, folder: Path, new: set[str]) -> None:
    """Reject a start from weights whose meaning, unseen in names and shapes, is another; new ones have none."""
    own, other = (_meaning(each.settings) for each in (model, saved))
    for (part, key), value in own.items():
        fresh = any(name.startswith(f"{part}.") for name in new)
        if not fresh and other[part, key] != value:
            raise InputError(
                f"{folder} was made with model.{key}={other[part, key]} and this model has {value}: give both the same."
            )


def _meaning(settings: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return the settings that give weights their meaning, each with the part of the model that it is about."""
    visual = settings["visual"]
    return {
        ("visual.backbone", "visual.backbone"): visual["backbone"].partition(".")[0],
        ("visual.backbone", "visual.strides"): sorted(visual["strides"]),
        ("visual.backbone", "visual.mean"): list(visual.get("mean", IMAGENET_MEAN)),
        ("visual.backbone", "visual.std"): list(visual.get("std", IMAGENET_STD)),
        ("visual.encoder", "visual.heads"): visual.get("heads"),
        ("visual.stage_gates", "visual.pool"): visual.get("pool"),
        ("linguistic", "linguistic.heads"): settings["linguistic"]["heads"],
        ("fusion", "fusion.heads"): settings["fusion"]["heads"],
        ("fusion", "vls"): settings["vls"],
        ("fusion", "position"): settings["position"],
    }


@torch.no_grad()
def measure(model: Grounder) -> dict[str, float]:
    """Count what a student costs.

    Returns:
        parameters; trained, those of them that learn; tokens, the visual tokens; gflops of one square image with one
        phrase of full length, and phrase_gflops of a further phrase; a multiplication and an addition count as two.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    words = torch.full((1, model.max_length), 1)
    listen = words == 0
    image = torch.zeros(1, 3, model.image_size, model.image_size)
    image_mask = torch.zeros(1, model.image_size, model.image_size, dtype=torch.bool)
    model.eval()
    with FlopCounterMode(display=False) as whole:
        encoded = model.encode_image(image, image_mask)
        with FlopCounterMode(display=False) as phrase:
            model.answer(encoded, model.linguistic(words, listen), listen, torch.zeros(1, dtype=torch.int64))
    return {
        "parameters": sum(n for n, _ in sizes),
        "trained": sum(n for n, trains in sizes if trains),
        "tokens": model.visual.places(model.image_size),
        "gflops": round(whole.get_total_flops() / 1e9, 2),
        "phrase_gflops": round(phrase.get_total_flops() / 1e9, 2),
    }
