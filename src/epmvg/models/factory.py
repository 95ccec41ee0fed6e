"""Create, save and load models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from epmvg.core.calibration import CONFIDENCE_FILE, read_calibration
from epmvg.core.files import atomic_write, write_text
from epmvg.core.locate import fetch, locate, read_domain
from epmvg.core.tokenizer import bert_vocabulary
from epmvg.core.types import InputError
from epmvg.models.grounder import Grounder
from epmvg.models.presets import preset, validated
from epmvg.models.pretrained import load_pretrained
from epmvg.models.swin import SwinEncoder
from epmvg.models.text_encoder import TextEncoder
from epmvg.models.visual_encoder import BaseVisualEncoder, VisualEncoder
from epmvg.models.weights_file import WEIGHTS, read_weights, weights_digest, write_weights

SETTINGS_FILE = "model.yaml"
CONVERSION_FILE = "conversion.yaml"
"""In a folder of `epmvg convert`: the names of the weights that the published file did not hold."""

_POSITIONS = "vl_pos_embed.weight"

_BEHIND_WEIGHTS = {
    "visual_encoder.backbone": [f"visual_encoder.{key}" for key in ("backbone", "strides", "mean", "std")],
    "visual_encoder.encoder": ["visual_encoder.heads"],
    "text_encoder": ["text_encoder.heads"],
    "fusion": ["fusion.heads", "vls", "position"],
}
"""Parts of a model, and the settings that their weights depend on without a trace in names and shapes."""


def create_model(name: str, pretrained: bool = False, **overrides: Any) -> Grounder:
    """Create a grounder by preset name.

    Args:
        name: one of `list_models()`.
        pretrained: load pretrained weights into backbone and text encoder: for `mini` from installed packages, for the
            paper's sizes ImageNet and BERT weights from the hubs of timm and transformers.
        overrides: settings that differ from the preset, for example `image_size=320` or `fusion={"layers": 4}`.

    Raises:
        InputError: unknown name or override, or weights that cannot be fetched.
    """
    model = build(preset(name, **overrides))
    if pretrained:
        load_pretrained(model)
    return model


def build(settings: dict[str, Any]) -> Grounder:
    """Build a grounder with random weights from complete settings; invalid ones are rejected (`validated`)."""
    settings = validated(settings)
    visual, text, dropout = settings["visual_encoder"], settings["text_encoder"], settings["dropout"]
    visual_encoder: BaseVisualEncoder
    if "gates" in visual:
        visual_encoder = SwinEncoder(**visual, image_size=settings["image_size"], query_width=text["width"])
    else:
        visual_encoder = VisualEncoder(**visual, dropout=dropout)
    others = {key: settings[key] for key in settings if key not in ("visual_encoder", "text_encoder", "fusion")}
    return Grounder(
        visual_encoder,
        TextEncoder(**text, dropout=dropout),
        tokenizer=default_tokenizer(),
        settings=settings,
        **settings["fusion"],
        **others,
    )


def default_tokenizer() -> PreTrainedTokenizerBase:
    """Return the lower-casing WordPiece tokenizer of bert-base-uncased, whose vocabulary is in this package."""
    return BertTokenizer(vocab=bert_vocabulary(), do_lower_case=True)


def save(model: Grounder, folder: Path | str, *, int8: bool = False) -> None:
    """Write weights, tokenizer and settings into a folder that `load` reads without anything else.

    The folder is created if it does not exist; a calibration of other weights in it is deleted. With `int8` matrices
    are stored as int8 with a scale per row, and loaded as float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIDENCE_FILE).unlink(missing_ok=True)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    write_text(folder / SETTINGS_FILE, yaml.safe_dump(model.settings, sort_keys=False))
    with atomic_write(folder / WEIGHTS) as temporary:
        write_weights(temporary, model.state_dict(), int8=int8)
    if model.calibration is not None:
        calibration = replace(model.calibration, weights=weights_digest(folder / WEIGHTS))
        write_text(folder / CONFIDENCE_FILE, calibration.dump())


def load(run: Path | str) -> Grounder:
    """Load a grounder that `save` or a training run wrote, in eval mode, in float32 on the CPU.

    The caller's default dtype, default device and RNG state have no effect and stay as they are.

    Args:
        run: its folder, `default` for the bundled model, or OWNER/NAME of a model on the Hugging Face hub.

    Raises:
        InputError: the folder or one of its files is missing or not ours, or the hub cannot be reached.
    """
    folder = locate(run)
    if not (folder / SETTINGS_FILE).exists():
        raise InputError(f"{folder} is an export or another grounder, not a run. Give the run's folder.")
    try:
        settings = yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        state = read_weights(folder / WEIGHTS)
        with float32_on_cpu():
            with _ZeroWeights():
                model = build(settings)
            model.load_state_dict(state)
    except (yaml.YAMLError, safetensors.SafetensorError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} holds a model that cannot be read ({reason}). Copy or train it again.") from error
    model.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model.calibration = read_calibration(folder, lambda: weights_digest(folder / WEIGHTS))
    model.domain = read_domain(folder)
    return model.eval()


class _ZeroWeights(TorchFunctionMode):
    """Zero weights that are about to be loaded instead of drawing them, which takes longer than reading the file."""

    _DRAWS = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_")  # Tensor's and nn.init's

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in self._DRAWS:
            return func(*args, **(kwargs or {}))
        tensor: Tensor = args[0] if args else kwargs["tensor"]
        tensor.detach().zero_()
        return tensor


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """Build in float32 on the CPU, whatever the caller's defaults are, and leave the RNG state unchanged."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(dtype)


def init_from(model: Grounder, folder: Path | str) -> set[str]:
    """Load weights and tokenizer of a saved grounder into `model`, in place; return the names of what was loaded.

    Learned positions are resized to another image size; those of text tokens that the saved one did not have, what a
    conversion left new, parts (visu_proj, dense_head, ...) of which the converted file held nothing, and an IoU head
    that only one of the two has keep the values of `model`.

    Raises:
        InputError: the folder holds no grounder, or one of another shape, or of other settings that weights depend on.
    """
    folder = fetch(folder)
    saved = load(folder)
    names = {name for each in (model, saved) for name in each.state_dict()}
    new = _new_names(folder, saved, names)
    _check_settings(model, saved, folder, new)
    if (model.iou_head is None) != (saved.iou_head is None):
        new |= {name for name in names if _part(name) == "iou_head"}
    own, loaded = (
        {name: value for name, value in each.state_dict().items() if name not in new} for each in (model, saved)
    )
    if _POSITIONS in loaded:
        loaded[_POSITIONS] = _resized_positions(model, saved)
    for name in [*own, *loaded]:
        if name not in own or name not in loaded or own[name].shape != loaded[name].shape:
            raise InputError(f"{folder} holds a model of another shape (see {name}). Give the preset it was made for.")
    model.load_state_dict(loaded, strict=False)  # the names were compared above
    model.tokenizer = saved.tokenizer
    return set(loaded)


def _resized_positions(model: Grounder, saved: Grounder) -> Tensor:
    """Return the saved positions of [REG], text and visual tokens for the maximum length and image size of `model`."""
    sizes, saved_sizes = (
        [] if each.sine_position else each.visual_encoder.grid_sizes(each.image_size) for each in (model, saved)
    )
    parts = [1, saved.max_length, *(size**2 for size in saved_sizes)]
    reg, text, *levels = saved.vl_pos_embed.weight.detach().split(parts)
    drawn = model.vl_pos_embed.weight.detach()[1 + len(text) : 1 + model.max_length]
    resized = []
    for level, size, saved_size in zip(levels, sizes, saved_sizes, strict=False):
        grid = level.T.unflatten(1, (saved_size, saved_size))[None]  # [1, D, H, W]
        grid = F.interpolate(grid, (size, size), mode="bilinear", antialias=True) if size != saved_size else grid
        resized.append(grid[0].flatten(1).T)
    return torch.cat([reg, text[: model.max_length], drawn.to(text), *resized])


def _new_names(folder: Path, saved: Grounder, names: set[str]) -> set[str]:
    """Return which of `names` a converted folder leaves to the model that starts from it; none of another folder."""
    file = folder / CONVERSION_FILE
    if not file.exists():
        return set()
    try:
        new = set(yaml.safe_load(file.read_text(encoding="utf-8"))["new"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read. Convert the published weights again.") from error
    held = {_part(name) for name in saved.state_dict() if name not in new}
    return new | {name for name in names if _part(name) not in held}


def _part(name: str) -> str:
    """Return the part of the model that a weight belongs to."""
    return name.partition(".")[0]


def _check_settings(model: Grounder, saved: Grounder, folder: Path, new: set[str]) -> None:
    """Reject weights trained with other settings that leave no trace in names and shapes; new ones do not count."""
    for part, keys in _BEHIND_WEIGHTS.items():
        is_new = any(name.startswith(f"{part}.") for name in new)
        for key in () if is_new else keys:
            own, other = (_setting(each.settings, key) for each in (model, saved))
            if own != other:
                raise InputError(
                    f"{folder} was made with model.{key}={other} and this model has {own}. Give both the same."
                )


def _setting(settings: dict[str, Any], key: str) -> Any:
    group, _, name = key.rpartition(".")
    value = settings[group].get(name) if group else settings[name]
    return value.partition(".")[0] if name == "backbone" else value  # without timm's tag of the pretrained weights
