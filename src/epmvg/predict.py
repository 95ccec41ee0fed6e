"""Use a trained run: an image and phrases in, boxes in the image's own pixels out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from epmvg.data.jsonl import phrase_fault
from epmvg.data.transforms import View, evaluation_view, laid_rectangle, open_image, pad_of, render
from epmvg.evaluation import box_scores
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.results import Predictions
from epmvg.types import Box, InputError, Output, Prediction

Picture = Path | str | bytes | Image.Image | np.ndarray


class Predictor:
    """Find phrases in images.

    Args:
        run: a folder that training wrote, OWNER/NAME of a model on the Hugging Face hub, or a model.
        device: where to compute, for example "cuda"; the CPU by default.

    Raises:
        InputError: the folder is not a trained run.
    """

    def __init__(self, run: Path | str | Grounder, *, device: str = "cpu") -> None:
        self.model = (run if isinstance(run, Grounder) else load(run)).to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(
        self, image: Picture, phrases: Sequence[str] | str, *, min_score: float | Literal["auto"] | None = None
    ) -> Predictions:
        """Find each phrase in an image, which is encoded once.

        Args:
            image: a file, its bytes, a PIL picture, or uint8 [H, W, 3] RGB. A file's EXIF orientation is applied.
            phrases: one or several.
            min_score: what scores less is not `found`; "auto" takes the threshold stored by `epmvg calibrate`.

        Returns:
            One prediction a phrase, boxes (x0, y0, x1, y1) in pixels of the upright image.

        Raises:
            InputError: the image cannot be opened, a phrase is empty or longer than the model reads, or there is no
                stored threshold.
        """
        bound = self._bound(min_score)
        asked = [phrases] if isinstance(phrases, str) else list(phrases)
        picture = as_picture(image)
        view, output = self._ask(picture, asked)
        boxes = view.letterbox.to_source(output.box.double().cpu()).tolist()
        scores = box_scores(output, self.model.calibration).tolist()
        answers = [
            Prediction(phrase, _box(box), score, score >= bound)
            for phrase, box, score in zip(asked, boxes, scores, strict=True)
        ]
        return Predictions(answers, picture, str(image) if isinstance(image, Path | str) else "")

    @torch.inference_mode()
    def attention(self, image: Picture, phrases: Sequence[str] | str) -> list[NDArray[np.float32]]:
        """Return what [REG] attends to in the last fusion layer, over the picture: [height, width] a phrase.

        Each map is 1 where it is highest. What [REG] pays to words and to itself is left out.

        Raises:
            InputError: as for a prediction.
        """
        picture = as_picture(image)
        view, output = self._ask(picture, [phrases] if isinstance(phrases, str) else list(phrases), attention=True)
        assert output.attention is not None
        places = self.model.visual.places(self.model.canvas)
        return self._over_picture(output.attention[:, 1 : 1 + places], view, picture.size)

    @torch.inference_mode()
    def where(self, image: Picture, phrases: Sequence[str] | str) -> list[NDArray[np.float32]]:
        """Return where the model looks for each phrase, over the picture: [height, width], 1 where it is highest.

        Raises:
            InputError: as for a prediction, or the model has no where-map.
        """
        picture = as_picture(image)
        view, output = self._ask(picture, [phrases] if isinstance(phrases, str) else list(phrases))
        if output.where is None:
            raise InputError("This model has no where-map (model.anchored=false): look at its attention instead.")
        return self._over_picture(output.where.softmax(-1), view, picture.size)

    def _ask(self, picture: Image.Image, asked: list[str], *, attention: bool = False) -> tuple[View, Output]:
        if not asked:
            raise InputError("There is no phrase to find: give at least one.")
        for phrase in asked:
            self._check(phrase)
        view = evaluation_view(picture.size, self.model.canvas)
        tokens, token_pad = self.model.tokenize(asked)
        owner = torch.zeros(len(asked), dtype=torch.int64)
        inputs = (render(picture, view)[None], pad_of(view)[None], tokens, token_pad, owner)
        output: Output = self.model(*(part.to(self.device) for part in inputs), attention=attention)
        return view, output

    def _over_picture(self, shares: Tensor, view: View, size: tuple[int, int]) -> list[NDArray[np.float32]]:
        """Lay shares of visual tokens [P, N] over a picture of (width, height); maps of several strides add up."""
        canvas, (width, height) = self.model.canvas, size
        left, top, right, bottom = laid_rectangle(view)
        sides = [-(-canvas // stride) for stride in self.model.visual.strides]
        levels = shares.float().cpu().split([side**2 for side in sides], 1)
        total = torch.zeros(len(shares), 1, height, width)
        for side, level in zip(sides, levels, strict=True):
            density = level.view(-1, 1, side, side) * side**2  # a coarse token's share is spread over more pixels
            laid = F.interpolate(density, (canvas, canvas), mode="bicubic")[:, :, top:bottom, left:right]
            total += F.interpolate(laid, (height, width), mode="bilinear")
        total = total.clamp(min=0)
        return list((total / total.amax((2, 3), keepdim=True).clamp(min=1e-9))[:, 0].numpy())

    def _bound(self, min_score: float | Literal["auto"] | None) -> float:
        """Return the lowest score that counts as found."""
        if min_score is None:
            return 0.0
        if min_score != "auto":
            return min_score
        calibration = self.model.calibration
        if calibration is None or calibration.threshold is None:
            raise InputError(
                "This model has no stored threshold: run `epmvg calibrate RUN`, or give min_score a number."
            )
        return calibration.threshold

    def _check(self, phrase: str) -> None:
        fault = phrase_fault(phrase)
        if fault is not None:
            raise InputError(f"The phrase {_shorten(phrase)!r} cannot be asked: {fault}.")
        pieces = len(self.model.tokenizer(phrase)["input_ids"])
        if pieces > self.model.length:
            raise InputError(
                f"The phrase {_shorten(phrase)!r} has {pieces} word pieces and this model reads {self.model.length}: "
                "shorten it."
            )


def as_picture(image: Picture) -> Image.Image:
    """Turn what a user holds into an upright RGB picture.

    Raises:
        InputError: it is not a picture.
    """
    if isinstance(image, Path | str):
        return open_image(Path(image))
    if isinstance(image, bytes):
        return open_image(io.BytesIO(image))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"An array must be uint8 [H, W, 3] in RGB; this one is {image.dtype} {list(image.shape)}.")
    return Image.fromarray(image)


def _box(values: list[float]) -> Box:
    x0, y0, x1, y1 = (round(value, 2) for value in values)
    return x0, y0, x1, y1


def _shorten(phrase: str) -> str:
    return phrase if len(phrase) <= 40 else phrase[:37] + "..."
