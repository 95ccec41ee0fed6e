"""Typed settings of a run, and the recipe files that hold them.

A recipe states only what differs from these defaults; `key=value` on the command line states it for one run.
Networks, losses and teachers never see a recipe, only plain arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from epmvg.config.renamed import REMOVED, RENAMED
from epmvg.core.types import InputError


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The student: a preset's name and the numbers that differ from it."""

    name: str = "mini"
    pretrained: bool = True
    init_from: str | None = None  # a folder (of a run or of `epmvg convert`) whose weights the student starts from
    overrides: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """Read a bare name as the preset, and keys that are not ours as numbers of the preset."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict):
            own = {key: value[key] for key in value if key in cls.model_fields}
            own["overrides"] = dict(own.get("overrides") or {}) | {
                key: value[key] for key in value if key not in cls.model_fields
            }
            return own
        return value


class AugmentSettings(Settings):
    """How training views vary (`data.transforms.Augment` says what each means)."""

    horizontal_flip: float = Field(0.5, ge=0, le=1)
    crop: float = Field(0.5, ge=0, le=1)
    min_crop: float = Field(0.6, gt=0, le=1)
    min_visible: float = Field(0.8, gt=0, le=1)
    scale: float = Field(0.7, gt=0, le=1)
    color_jitter: float = Field(0.8, ge=0, le=1)
    translate: float = Field(1.0, ge=0, le=1)
    recipe: Literal["default", "transvg"] = "default"  # transvg: the sizes and crops of the published recipe


class DataSettings(Settings):
    """What is learned from."""

    name: str = "scenes"
    root: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    split_key: str = "split"
    fraction: float = Field(1.0, gt=0, le=1)  # of the training images that is used; a smaller one is a subset
    batch_size: int = Field(64, ge=1)  # image-phrase pairs, over all processes together
    phrases_per_image: int = Field(8, ge=1)  # that share one training transform; an image with more comes again
    image_size: int | None = Field(None, ge=32)  # side of training views, if smaller than the model's: cheaper steps
    num_workers: int = Field(0, ge=0)
    cache_gb: float = Field(0.0, ge=0)  # decoded pictures for training views, kept on disk up to this
    augment: AugmentSettings | None = AugmentSettings()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class DistillSettings(Settings):
    """The teacher: an open_clip architecture with its pretrained tag, a folder, or a name on the hub."""

    teacher: str
    pretrained: str | None = None  # of an architecture: a tag, a weights file, or "random"
    quick_gelu: bool | None = None  # the activation of a weights file that does not say it
    frozen: bool = True
    input: Literal["image", "letterboxed", "cropped"] | None = (
        None  # the photo, or the student's view of it; see `_choose`
    )
    loss: Literal["cosine", "l1"] = "cosine"
    image_weight: float = Field(1.5, ge=0)  # alpha (sec. 4.2)
    text_weight: float = Field(2.0, ge=0)  # beta (sec. 4.2)
    dense_weight: float = Field(0.0, ge=0)  # of the teacher's similarity map, beyond the paper

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {"teacher": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _choose(self) -> DistillSettings:
        """A frozen teacher looks at the photo, whose answer can be kept; one that trains sees what the student sees."""
        if self.input is None:
            self.input = "image" if self.frozen else "letterboxed"
        if self.input == "image" and not self.frozen:
            raise InputError("A teacher that trains sees what the student sees: set distill.input=letterboxed.")
        if not self.image_weight and not self.text_weight and not self.dense_weight:
            raise InputError(
                "distill.image_weight, distill.text_weight and distill.dense_weight are all 0: "
                "set distill=null for a run without a teacher."
            )
        return self

    @property
    def sides(self) -> list[str]:
        """The vectors that are compared."""
        return [side for side in ("image", "text") if getattr(self, f"{side}_weight")]


class LossSettings(Settings):
    """Weights of eq. 8 and of the maps that go beyond the paper."""

    box: Literal["l1", "smooth_l1"] = "smooth_l1"
    box_weight: float = Field(1.0, ge=0)
    giou_weight: float = Field(1.0, ge=0)  # lambda (sec. 4.2)
    heatmap_weight: float = Field(1.0, ge=0)
    similarity_weight: float = Field(0.5, ge=0)
    reg_box_weight: float = Field(0.5, ge=0)
    token_box_weight: float = Field(1.0, ge=0)
    iou_head_weight: float = Field(1.0, ge=0)  # of the score head, from which no gradient passes into the rest

    @model_validator(mode="after")
    def _choose(self) -> LossSettings:
        if not self.box_weight and not self.giou_weight:
            raise InputError("loss.box_weight and loss.giou_weight are both 0, so no box would be learned: raise one.")
        return self


class TrainSettings(Settings):
    """How the student is optimised; defaults are the paper's where it states them (sec. 4.2)."""

    epochs: float = Field(90, gt=0)
    lr: float = Field(1e-4, gt=0)  # of all parameters that were not loaded, and of fusion encoder and box head
    lr_backbone: float = Field(1e-5, gt=0)  # of the backbone's; like the next two only of what was loaded
    lr_visual_encoder: float = Field(1e-5, gt=0)  # of the visual branch's encoder and 1x1 projection
    lr_text_encoder: float = Field(1e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)  # printed as "10" with its exponent lost; TransVG's value
    lr_schedule: Literal["step", "cosine"] = "step"
    lr_drop: float = Field(60, gt=0)  # epochs, step schedule: lr / 10 after each
    warmup_steps: int = Field(0, ge=0)  # optimizer steps, like every number of steps here
    max_grad_norm: float | None = Field(None, gt=0)
    gradient_accumulation_steps: int = Field(
        1, ge=1
    )  # batches of an optimizer step; an epoch's last step takes what is left
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False  # compute encoder and fusion layers again in the backward pass, to save memory
    seed: int = 13
    cache_features: bool = False  # keep a wholly frozen backbone's maps on disk; needs augment = null
    feature_cache_gb: float = Field(4.0, gt=0)
    negatives_per_phrase: float = Field(
        0.25, ge=0, le=1
    )  # pairs a phrase that the score head learns "nothing there" from
    lr_teacher: float = Field(1e-6, gt=0)  # of an unfrozen teacher (Table 4)
    eval_interval: float = Field(1.0, gt=0)  # epochs
    eval_limit: int | None = Field(None, ge=1)  # phrases of val, of images drawn by a fixed seed; None scores all
    save_interval: int = Field(200, ge=1)  # steps
    log_interval: int = Field(20, ge=1)  # steps


class Recipe(Settings):
    """Everything a run needs to know; the same recipe, seed and machine give the same run."""

    name: str = "custom"
    about: str = ""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    distill: DistillSettings | None = None
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()

    @classmethod
    def load(cls, source: str | Path, *overrides: str) -> Recipe:
        """Read a recipe by name or YAML file and apply `key=value` overrides, parsed by the type of each setting.

        Text (names, paths, splits) is taken as it stands; nothing and `null` clear a setting.

        Raises:
            InputError: unknown recipe, file or key, or a value that does not fit.
        """
        values = _read_yaml(source)
        for override in overrides:
            _apply(values, override)
        data = values.get("data")
        if isinstance(data, dict) and data.get("name", "") is None:
            raise InputError(f"The recipe {source} has no data of its own: give data.name=FILE, such as my.jsonl.")
        if _lacks_teacher(values.get("distill")):
            said = [override for override in overrides if override.startswith("distill.")]
            if said:
                raise InputError(f"{said[-1]} has no teacher to go with: give distill=NAME or distill=FOLDER too.")
            values["distill"] = None
        return cls.of(values, str(source))

    @classmethod
    def of(cls, values: dict[str, Any], source: str) -> Recipe:
        """Check plain values; `source` is named in the message."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_sentence(error, source)) from error

    def dump(self) -> str:
        """Return the whole recipe as YAML that `load` reads back."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)


def list_recipes() -> list[str]:
    """Return the names of the recipes in this package."""
    return sorted(file.name.removesuffix(".yaml") for file in _recipes().iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe of this package."""
    return (_recipes() / f"{name}.yaml").read_text(encoding="utf-8")


def _recipes() -> Traversable:
    return resources.files("epmvg.config") / "recipes"


def _read_yaml(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{path} does not exist: give a YAML file or one of {', '.join(list_recipes())}.")
        text = path.read_text(encoding="utf-8")
    elif str(source) in list_recipes():
        text = recipe_text(str(source))
    else:
        close = difflib.get_close_matches(str(source), list_recipes(), n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"there are {', '.join(list_recipes())}, or give a YAML file."
        )
        raise InputError(f"There is no recipe {str(source)!r}: {hint}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(values, dict):
        raise InputError(f"{source} must hold key: value settings.")
    return {"name": path.stem} | values


_BARE_NAMES = {"model": "name", "data": "name", "distill": "teacher"}
"""Groups that may be given as one name, and the setting that the name is."""


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key, making groups on the way; a group that was a bare name becomes a mapping."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r} is not a setting: write key=value, for example train.epochs=3.")
    value = _parsed(key, text)
    if key == "distill" and isinstance(value, str) and _lacks_teacher(values.get(key)):
        key = "distill.teacher"
    *groups, last = key.split(".")
    for group in groups:
        inner = values.get(group)
        if isinstance(inner, str) and group in _BARE_NAMES:
            inner = {_BARE_NAMES[group]: inner}
        if not isinstance(inner, dict | None):
            raise InputError(f"{key} cannot be set in {group}={inner}, which is not a group of settings: drop one.")
        values[group] = inner or {}
        values = values[group]
    values[last] = value


def _parsed(key: str, text: str) -> Any:
    """Parse the text of an override by the type of its setting; the model's own settings are YAML."""
    if text in ("", "null"):
        return None
    kinds = _types_of(key.split("."))
    if kinds and all(kind is str or get_origin(kind) is Literal for kind in kinds):
        return text
    if kinds and not any(kind in (dict, dict[str, Any]) or _is_group(kind) for kind in kinds):
        return _number(text)
    if kinds and not text.startswith("{"):
        return text  # the bare name of a group
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"The value of {key!r} is not valid YAML: quote it.") from error


def _types_of(path: Sequence[str]) -> list[Any]:
    """Return the types that a setting may have besides None; none if there is no such setting."""
    kinds: list[Any] = [Recipe]
    for part in path:
        settings = next((kind for kind in kinds if _is_group(kind)), None)
        if settings is None or part not in settings.model_fields:
            return []
        annotation = settings.model_fields[part].annotation
        united = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
        kinds = [kind for kind in united if kind is not NoneType]
    return kinds


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _lacks_teacher(distill: Any) -> bool:
    """A recipe may say how to distil and leave to each run from whom; a run without a teacher is plain."""
    return isinstance(distill, dict) and distill.get("teacher", "") is None


def _number(value: Any) -> Any:
    """Return the number that a text states (YAML 1.1 reads 1e-4 as text), anything else as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _sentence(error: ValidationError, source: str) -> str:
    """Turn the first complaint into one sentence that names the key and the cure."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if key in RENAMED:
        return f"{source}: {key} is now {RENAMED[key]}; rename it."
    if key in REMOVED:
        return f"{source}: the setting {key} is gone, delete it: {REMOVED[key]}."
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key.split(".")[-1], _known_keys(first["loc"]), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(_known_keys(first['loc']))}."
        return f"{source}: there is no setting {key!r}; {hint}"
    if first["type"] == "value_error":  # one of our own, a sentence already
        return f"{source}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{source}: the setting {key!r} is missing; give it."
    return f"{source}: {key}={first['input']!r} does not fit: {first['msg'].lower()}."


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    kinds = _types_of([str(part) for part in location[:-1]])
    return [key for kind in kinds if _is_group(kind) for key in kind.model_fields]
