"""Typed settings of a run, and the recipes that state them.

A recipe states what differs from the defaults; `key=value` on the command line states it for one run.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from epmvg.config.published import PUBLISHED, published_start
from epmvg.core.types import InputError, did_you_mean


class Settings(BaseModel):
    """A group of settings; unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The student: the name of a model and the settings that differ from its own."""

    name: str = Field("mini", description="Name of a model, see `epmvg list models`.")
    pretrained: bool = Field(True, description="Load pretrained weights of the backbone and the text encoder.")
    init_from: str | None = Field(
        None, description="Folder of a run or of `epmvg convert` whose weights are loaded; published: docs/paper.md."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the model that differ from its own; any other key of this group is one of them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """Read a bare name as `name`, and unknown keys as `overrides`."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict):
            own = {key: value[key] for key in value if key in cls.model_fields}
            others = {key: value[key] for key in value if key not in cls.model_fields}
            overrides = own.get("overrides") or {}
            return own | {"overrides": overrides | others if isinstance(overrides, dict) else overrides}
        return value


class AugmentSettings(Settings):
    """Training augmentation."""

    horizontal_flip: float = Field(0.5, ge=0, le=1, description="Probability; left and right in phrases are swapped.")
    crop: float = Field(0.5, ge=0, le=1, description="Probability of a random crop.")
    min_crop: float = Field(0.6, gt=0, le=1, description="Smallest crop, as a fraction of each side.")
    min_visible: float = Field(0.8, gt=0, le=1, description="Smallest fraction of a box that a crop may leave.")
    scale: float = Field(0.7, gt=0, le=1, description="Smallest random scale.")
    color_jitter: float = Field(0.8, ge=0, le=1, description="Probability of color jitter.")
    translate: float = Field(1.0, ge=0, le=1, description="Probability of a random position in the padded input.")
    typo: float = Field(0.0, ge=0, le=1, description="Probability of one typo in a phrase.")
    letter_case: float = Field(0.0, ge=0, le=1, description="Probability of other letter case of a phrase.")
    recipe: Literal["default", "transvg"] = Field("default", description="transvg: sizes and crops as published.")


class DataSettings(Settings):
    """The data set and its batches."""

    name: str = Field("scenes", description="Name of a data set, see `epmvg list datasets`, or an annotation file.")
    root: str | None = Field(None, description="Folder of the data set; image paths are relative to it.")
    train_split: str = Field("train", description="Split to train on.")
    val_split: str = Field("val", description="Split to validate on.")
    split_key: str = Field("split", description="Key of an annotation that names its split.")
    fraction: float = Field(1.0, gt=0, le=1, description="Fraction of the training images; a smaller is a subset.")
    batch_size: int = Field(64, ge=1, description="Image-phrase pairs per batch, over all processes.")
    phrases_per_image: int = Field(8, ge=1, description="Maximum phrases that share an image's training transform.")
    image_size: int | None = Field(None, ge=32, description="Input size in training, where smaller than the model's.")
    num_workers: int = Field(0, ge=0, description="Processes that load data.")
    cache_gb: float = Field(0.0, ge=0, description="Size of the disk cache of decoded training images, GB.")
    augment: AugmentSettings | None = Field(AugmentSettings(), description="null: no augmentation.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class DistillSettings(Settings):
    """The teacher and the weights of its losses."""

    teacher: str = Field(description="Architecture of open_clip, a folder, or a name on the hub.")
    pretrained: str | None = Field(None, description='Of an architecture: a tag, a weights file, or "random".')
    quick_gelu: bool | None = Field(None, description="Activation of a weights file that does not state it.")
    frozen: bool = Field(True, description="Keep the teacher as it is, or train it (Table 4).")
    input: Literal["image", "letterboxed"] | None = Field(
        None, description="What the teacher encodes: the image (default if frozen), or the student's input of it."
    )
    loss: Literal["cosine", "l1"] = Field("cosine", description="Distillation loss.")
    image_weight: float = Field(1.5, ge=0, description="Weight of the image loss, alpha in sec. 4.2.")
    text_weight: float = Field(2.0, ge=0, description="Weight of the text loss, beta in sec. 4.2.")
    dense_weight: float = Field(0.0, ge=0, description="Weight of the similarity-map loss, beyond the paper.")
    unlabeled: str | None = Field(None, description="JSONL of images with phrases and no boxes, beside the samples.")
    unlabeled_ratio: float = Field(1.0, gt=0, description="Unlabeled phrases in an epoch, per phrase with a box.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"teacher": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> DistillSettings:
        """Choose the input: embeddings of whole images can be cached, a teacher in training needs the student's."""
        if self.input is None:
            self.input = "image" if self.frozen else "letterboxed"
        if self.input == "image" and not self.frozen:
            raise InputError("A teacher in training encodes the student's input. Set distill.input=letterboxed.")
        if not self.image_weight and not self.text_weight and not self.dense_weight:
            raise InputError("All weights of distill are 0. Set distill=null to train without a teacher.")
        return self

    @property
    def sides(self) -> list[str]:
        """The embeddings that are compared."""
        return [side for side in ("image", "text") if getattr(self, f"{side}_weight")]


class LossSettings(Settings):
    """Weights of the losses (eq. 8), and of those beyond the paper."""

    box: Literal["l1", "smooth_l1"] = Field("smooth_l1", description="Box regression loss.")
    box_weight: float = Field(1.0, ge=0, description="Weight of the box regression loss.")
    giou_weight: float = Field(1.0, ge=0, description="Weight of the GIoU loss, lambda in sec. 4.2.")
    heatmap_weight: float = Field(1.0, ge=0, description="Weight of the heatmap loss.")
    similarity_weight: float = Field(0.5, ge=0, description="Weight of the token-phrase similarity loss.")
    match_weight: float = Field(0.0, ge=0, description="Weight of ranking similarities above those of negative pairs.")
    reg_box_weight: float = Field(
        0.5, ge=0, description="Weight of the loss of the box from [REG] beside a dense head."
    )
    token_box_weight: float = Field(1.0, ge=0, description="Weight of the loss of the per-token boxes.")
    iou_head_weight: float = Field(1.0, ge=0, description="Weight of the IoU head's loss; it trains the head only.")

    @model_validator(mode="after")
    def _check(self) -> LossSettings:
        if not self.box_weight and not self.giou_weight:
            raise InputError("loss.box_weight and loss.giou_weight are both 0. Raise one.")
        return self


class TrainSettings(Settings):
    """Optimization; defaults are the paper's where it states them (sec. 4.2)."""

    epochs: float = Field(90, gt=0, description="Epochs; fractions are allowed.")
    lr: float = Field(1e-4, gt=0, description="Learning rate of all parameters without pretrained weights.")
    lr_backbone: float = Field(1e-5, gt=0, description="Learning rate of a pretrained backbone.")
    lr_visual_encoder: float = Field(1e-5, gt=0, description="Of a pretrained visual encoder and its projection.")
    lr_text_encoder: float = Field(1e-5, gt=0, description="Learning rate of a pretrained text encoder.")
    # The paper prints "10", its exponent lost; this is TransVG's value.
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of AdamW.")
    lr_schedule: Literal["step", "cosine"] = Field("step", description="Learning-rate schedule.")
    lr_drop: float = Field(60, gt=0, description="Epochs after which the step schedule divides the rate by 10.")
    warmup_steps: int = Field(0, ge=0, description="Optimizer steps of linear warm-up.")
    max_grad_norm: float | None = Field(None, gt=0, description="Clip gradients to this norm.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the weights, which is validated and saved."
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "fp32", description="tf32: products of 10 bits on NVIDIA GPUs; auto: bf16 where the hardware has it."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute encoder layers in the backward pass.")
    seed: int = Field(13, ge=0, lt=2**32, description="Seed of weights, data order and augmentation.")
    cache_features: bool = Field(False, description="Cache features of a frozen backbone; needs data.augment=null.")
    feature_cache_gb: float = Field(4.0, gt=0, description="Size of that disk cache, GB.")
    negatives_per_phrase: float = Field(0.25, ge=0, le=1, description="Negative pairs per phrase.")
    lr_teacher: float = Field(1e-6, gt=0, description="Learning rate of a teacher that is not frozen (Table 4).")
    eval_interval: float = Field(1.0, gt=0, description="Epochs between two validations.")
    eval_limit: int | None = Field(None, ge=1, description="Maximum phrases of a validation; null: all.")
    save_interval: int = Field(200, ge=1, description="Optimizer steps between two checkpoints.")
    log_interval: int = Field(20, ge=1, description="Optimizer steps between two log lines.")

    def lengthened(self, factor: float) -> TrainSettings:
        """Return these settings with a multiple of all epochs: the whole, until the drop, and between validations."""
        keys = ("epochs", "eval_interval", *(("lr_drop",) if self.lr_schedule == "step" else ()))
        return self.model_copy(update={key: factor * getattr(self, key) for key in keys})


class Recipe(Settings):
    """All settings of a run; the same recipe, seed and machine give the same run."""

    name: str = Field("custom", description="Name of the recipe.")
    about: str = Field("", description="One line for `epmvg list recipes`.")
    model: ModelSettings = Field(ModelSettings(), description="The student.")
    data: DataSettings = Field(DataSettings(), description="The data set and its batches.")
    distill: DistillSettings | None = Field(None, description="The teacher; null: train without one.")
    loss: LossSettings = Field(LossSettings(), description="Weights of the losses.")
    train: TrainSettings = Field(TrainSettings(), description="Optimization.")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.loss.match_weight and not self.train.negatives_per_phrase:
            raise InputError("loss.match_weight needs negative pairs. Set train.negatives_per_phrase=1.")
        return self

    @model_validator(mode="after")
    def _resolve(self) -> Recipe:
        """Replace the published start by its folder, so that settings and runs state which weights were loaded."""
        if self.model.init_from == PUBLISHED:
            start = published_start(self.model.name, self.data.name)
            self.model = self.model.model_copy(update={"init_from": start and start.folder})
        return self

    @property
    def unlabeled(self) -> str | None:
        """The file of images with phrases and no boxes; None where there are none."""
        return None if self.distill is None else self.distill.unlabeled

    @property
    def unlabeled_ratio(self) -> float:
        """Unlabeled phrases in an epoch, per phrase with a box."""
        return 0.0 if self.distill is None or self.unlabeled is None else self.distill.unlabeled_ratio

    @classmethod
    def load(cls, source: str | Path, *overrides: str) -> Recipe:
        """Read a recipe by name or YAML file and apply `key=value` overrides.

        Text (names, paths, splits) is taken as it is; an empty value and `null` clear a setting. Among the overrides
        may be further recipes (`improved`, mine.yaml), which replace what they state before any key is set, and groups
        (`data=FILE`) are set before their keys (`data.batch_size=4`), whatever the order. A recipe may state how to
        distill without a teacher, which each run names; a run that does not is trained without one.

        Raises:
            InputError: unknown recipe, file or key, or a value that does not fit.
        """
        values = _read_yaml(source)
        for overlay in filter(_is_recipe, overrides):
            name = f"{values['name']} {Path(overlay).stem}"
            values = _overlaid(values, _read_yaml(overlay)) | {"name": name, "about": values.get("about", "")}
        keys = [override for override in overrides if not _is_recipe(override)]
        for override in sorted(keys, key=lambda override: override.partition("=")[0].count(".")):
            _apply_override(values, override)
        data = values.get("data")
        if isinstance(data, dict) and data.get("name", "") is None:
            raise InputError(f"The recipe {source} states no data. Give data.name=FILE, such as my.jsonl.")
        if _lacks_teacher(values.get("distill")):
            for override in keys:
                if override.startswith("distill."):
                    raise InputError(f"{override} needs a teacher. Give distill=NAME or distill=FOLDER too.")
            values["distill"] = None
        return cls.of(values, str(source))

    @classmethod
    def of(cls, values: dict[str, Any], source: str) -> Recipe:
        """Validate plain values; `source` is named in the message of an InputError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_message(error, source)) from error

    def dump(self) -> str:
        """Return the whole recipe as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def list_recipes() -> list[str]:
    """Return the names of the recipes in this package."""
    return sorted(file.name.removesuffix(".yaml") for file in _recipes().iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe of this package."""
    return (_recipes() / f"{name}.yaml").read_text(encoding="utf-8")


def setting_fields(settings: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of every setting."""
    for name, field in settings.model_fields.items():
        kinds = get_args(field.annotation) or (field.annotation,)
        group = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)
        yield f"{prefix}{name}", field
        if group is not None:
            yield from setting_fields(group, f"{prefix}{name}.")


_BARE_NAMES = {"model": "name", "data": "name", "distill": "teacher"}
"""Groups that may be given as one name, and the setting of that name."""


def _recipes() -> Traversable:
    return resources.files("epmvg.config") / "recipes"


def _read_yaml(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{path} does not exist. Give a YAML file or one of {', '.join(list_recipes())}.")
        content: str | bytes = path.read_bytes()
    elif str(source) in list_recipes():
        content = recipe_text(str(source))
    else:
        raise InputError(f"There is no recipe {str(source)!r}. {did_you_mean(str(source), list_recipes())}")
    values = _parse_yaml(content, str(source)) or {}
    if not isinstance(values, dict):
        raise InputError(f"{source} is not a recipe. Write `key: value` settings.")
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("overrides"), dict):  # as the command line sets them
        values["model"] = model.pop("overrides") | model
    return {"name": path.stem} | values


def _parse_yaml(text: str | bytes, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:  # the others: of dates and numbers
        raise InputError(f"{source} is not valid YAML ({str(error).splitlines()[0]}). Correct it.") from error


def _is_recipe(override: str) -> bool:
    return "=" not in override and (override in list_recipes() or override.endswith((".yaml", ".yml")))


def _overlaid(values: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with those of `overlay` in their place, groups key by key."""
    merged = dict(values)
    for key, value in overlay.items():
        base = merged.get(key)
        if isinstance(value, dict) and isinstance(base, str) and key in _BARE_NAMES:
            base = {_BARE_NAMES[key]: base}
        merged[key] = _overlaid(base, value) if isinstance(base, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; a group that is a bare name or missing becomes a mapping."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r} is not a setting. Write key=value, for example train.epochs=3.")
    if key == "model.overrides":
        raise InputError(f"{override!r} is not a setting. Write model.KEY=value for each setting of the model.")
    key = key.replace("model.overrides.", "model.", 1) if key.startswith("model.overrides.") else key
    value = _parse_value(key, text)
    if key == "distill" and isinstance(value, str) and _lacks_teacher(values.get(key)):
        key = "distill.teacher"
    *groups, last = key.split(".")
    for group in groups:
        inner = values.get(group)
        if isinstance(inner, str) and group in _BARE_NAMES:
            inner = {_BARE_NAMES[group]: inner}
        if not isinstance(inner, dict | None):
            raise InputError(f"{key} cannot be set beside {group}={inner}. Drop one of them.")
        values[group] = inner or {}
        values = values[group]
    values[last] = value


def _parse_value(key: str, text: str) -> Any:
    """Return text as it is, for pydantic to parse by the setting's type; mappings and model overrides are YAML."""
    if text in ("", "null"):
        return None
    is_override = key.startswith("model.") and key.split(".")[1] not in ModelSettings.model_fields
    if not is_override and not text.startswith("{"):
        return text
    value = _parse_yaml(text, f"The value of {key!r}")
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-4 as text
    except ValueError:
        return value


def _lacks_teacher(distill: Any) -> bool:
    return isinstance(distill, dict) and distill.get("teacher", "") is None


def _message(error: ValidationError, source: str) -> str:
    """Return the first error as a message that names the key and what to do."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        group = [name for name, _ in setting_fields(Recipe) if name.rpartition(".")[0] == key.rpartition(".")[0]]
        return f"{source}: there is no setting {key!r}. {did_you_mean(key, group)}"
    if first["type"] == "value_error":  # raised by a validator, a sentence already
        return f"{source}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{source}: the setting {key!r} is missing. Give it."
    return f"{source}: {key}={reprlib.repr(first['input'])} does not fit: {first['msg'].lower()}."
