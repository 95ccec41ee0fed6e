"""How a teacher's images are made: resize mode, interpolation, mean and std, as its weights were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.types import InputError

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocessing of a teacher's images, in open_clip's terms."""

    size: tuple[int, int]  # height and width, pixels
    mean: Colour
    std: Colour
    interpolation: Interpolation
    resize_mode: ResizeMode  # "shortest": centre crop; "longest": padded; "squash": stretched
    fill_color: int = 0  # of padding, 0..255

    @classmethod
    def of(cls, settings: Mapping[str, Any], size: int | tuple[int, int]) -> Preprocess:
        """Read open_clip's `preprocess_cfg`, or the configuration of a tag; what it leaves out is open_clip's default.

        Args:
            settings: the configuration.
            size: of the image that the tower takes, which counts whatever the configuration says.

        Raises:
            InputError: an unknown resize mode or interpolation, or no three numbers of a mean or std.
        """
        default = PreprocessCfg()
        interpolation = settings.get("interpolation") or default.interpolation
        if interpolation == "random":  # of training
            interpolation = "bicubic"
        mode = settings.get("resize_mode") or default.resize_mode
        if interpolation not in ("bicubic", "bilinear") or mode not in ("shortest", "longest", "squash"):
            raise InputError(
                f"interpolation={interpolation!r} with resize_mode={mode!r} is unknown: give bicubic or bilinear, and"
                " shortest, longest or squash."
            )
        mean, std = (_colour(name, settings.get(name) or getattr(default, name)) for name in ("mean", "std"))
        sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        return cls(
            sides,
            mean,
            std,
            cast(Interpolation, interpolation),
            cast(ResizeMode, mode),
            int(settings.get("fill_color") or 0),
        )

    def photo(self, image: Image.Image) -> Tensor:
        """Preprocess an RGB photo as published, but for mean and std -> [3, h, w] in 0..1."""
        plain = PreprocessCfg(
            size=self.size,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
            fill_color=self.fill_color,
        )
        return cast(Tensor, image_transform_v2(plain, is_train=False)(image))

    def resize(self, image: Tensor) -> Tensor:
        """Resize images [I, 3, H, W] in 0..1 as `photo` does -> [I, 3, h, w]."""
        image = self.scaled(image, self._scaled_size(image.shape[-1], image.shape[-2]))
        for axis, wanted in ((2, self.size[0]), (3, self.size[1])):
            more = wanted - image.shape[axis]
            start = _margin(more)
            if more < 0:
                image = image.narrow(axis, -start, wanted)
            elif more > 0:
                edges = (start, more - start)
                image = F.pad(image, edges if axis == 3 else (0, 0, *edges), value=self.fill_color / 255)
        return image

    def scaled(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Scale images [I, 3, H, W] to a height and width, whatever their proportions."""
        if tuple(image.shape[-2:]) == size:
            return image
        return F.interpolate(image, size, mode=self.interpolation, antialias=True).clamp(0, 1)

    def frame(self, width: int, height: int) -> Tensor:
        """Where the teacher's input lies on a photo of `width` x `height`: [4], xyxy in 0..1 of the photo.

        Outside 0..1 is padding.
        """
        rows, columns = self._scaled_size(width, height)
        left, top = _margin(self.size[1] - columns), _margin(self.size[0] - rows)
        edges = torch.tensor([-left, -top, self.size[1] - left, self.size[0] - top])
        return edges / torch.tensor([columns, rows, columns, rows])

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of a scaled photo, before it is cropped or padded to the input's."""
        down, across = self.size[0] / height, self.size[1] / width
        if self.resize_mode == "squash":
            return self.size
        scale = max(down, across) if self.resize_mode == "shortest" else min(down, across)
        return max(1, round(height * scale)), max(1, round(width * scale))


def _margin(more: int) -> int:
    """Pixels before a picture in the middle of an input that is `more` pixels longer; negative where it is cropped."""
    return more // 2 if more > 0 else -(-more // 2)


def _colour(name: str, value: Any) -> Colour:
    numbers = [value] * 3 if isinstance(value, int | float) else list(value)
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise InputError(f"{name}={value!r} of the preprocessing is no colour: give three numbers.")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
