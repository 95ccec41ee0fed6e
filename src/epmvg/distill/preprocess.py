"""Image preprocessing of a teacher: resize mode, interpolation, mean and std that its weights were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from epmvg.core.types import InputError


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocessing of a teacher's images, in open_clip's terms."""

    size: tuple[int, int]  # height and width, pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str  # "bicubic" or "bilinear"
    resize_mode: str  # "shortest": center crop; "longest": padded; "squash": stretched
    fill_color: int = 0  # of padding, 0..255

    @classmethod
    def of(cls, settings: Mapping[str, Any], size: int | tuple[int, int]) -> Preprocess:
        """Read open_clip's `preprocess_cfg`, or the configuration of a tag; `size` is that of the encoder's input.

        Raises:
            InputError: An unknown resize mode or interpolation, or not three numbers of a mean or std.
        """
        values = asdict(PreprocessCfg()) | {key: value for key, value in settings.items() if value not in (None, "")}
        for name in ("mean", "std"):
            color = values[name] if isinstance(values[name], list | tuple) else [values[name]] * 3
            if len(color) != 3 or not all(isinstance(number, int | float) for number in color):
                raise InputError(f"{name}={values[name]!r} of the preprocessing is not a color. Give three numbers.")
            values[name] = tuple(map(float, color))
        interpolation, mode = values["interpolation"], values["resize_mode"]
        if interpolation == "random":  # in training
            interpolation = "bicubic"
        if interpolation not in ("bicubic", "bilinear") or mode not in ("shortest", "longest", "squash"):
            raise InputError(
                f"interpolation={interpolation!r} with resize_mode={mode!r} is unknown. Give bicubic or bilinear, and"
                " shortest, longest or squash."
            )
        height, width = (size, size) if isinstance(size, int) else size
        return cls((height, width), values["mean"], values["std"], interpolation, mode, int(values["fill_color"]))

    def image(self, image: Image.Image) -> Tensor:
        """Preprocess an RGB image as open_clip does, without mean and std -> [3, h, w] in 0..1."""
        without_mean = PreprocessCfg(**asdict(self) | {"mean": (0.0,) * 3, "std": (1.0,) * 3})
        return cast(Tensor, image_transform_v2(without_mean, is_train=False)(image))

    def resize(self, image: Tensor) -> Tensor:
        """Stretch square images [I, 3, S, S] in 0..1 to the encoder's input [I, 3, h, w]."""
        if tuple(image.shape[-2:]) == self.size:
            return image
        return F.interpolate(image, self.size, mode=self.interpolation, antialias=True).clamp(0, 1)

    def input_box(self, width: int, height: int) -> Tensor:
        """Return where the encoder's input lies in an image of `width` x `height`: [4], xyxy in 0..1 of the image.

        Outside 0..1 is padding.
        """
        rows, columns = self._scaled_size(width, height)
        left, top = _margin(self.size[1] - columns), _margin(self.size[0] - rows)
        edges = torch.tensor([-left, -top, self.size[1] - left, self.size[0] - top])
        return edges / torch.tensor([columns, rows, columns, rows])

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return height and width of a scaled image, before it is cropped or padded."""
        if self.resize_mode == "squash":
            return self.size
        ratios = self.size[0] / height, self.size[1] / width
        scale = max(ratios) if self.resize_mode == "shortest" else min(ratios)
        return max(1, round(height * scale)), max(1, round(width * scale))


def _margin(more: int) -> int:
    """Return the pixels before an image in the middle of an input `more` pixels longer; negative if it is cropped."""
    return more // 2 if more > 0 else -(-more // 2)
