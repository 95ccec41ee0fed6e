"""Use a trained run: an image and phrases in, boxes in the image's own pixels out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from epmvg.data.jsonl import phrase_fault
from epmvg.data.transforms import evaluation_view, open_image, pad_of, render
from epmvg.evaluation import box_scores
from epmvg.models.factory import load
from epmvg.models.grounder import Grounder
from epmvg.results import Predictions
from epmvg.types import Box, InputError, Prediction

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
        if not asked:
            raise InputError("There is no phrase to find: give at least one.")
        for phrase in asked:
            self._check(phrase)
        picture = as_picture(image)
        view = evaluation_view(picture.size, self.model.canvas)
        tokens, token_pad = self.model.tokenize(asked)
        owner = torch.zeros(len(asked), dtype=torch.int64)
        inputs = (render(picture, view)[None], pad_of(view)[None], tokens, token_pad, owner)
        output = self.model(*(part.to(self.device) for part in inputs))
        boxes = view.letterbox.to_source(output.box.double().cpu()).tolist()
        scores = box_scores(output, self.model.calibration).tolist()
        answers = [
            Prediction(phrase, _box(box), score, score >= bound)
            for phrase, box, score in zip(asked, boxes, scores, strict=True)
        ]
        return Predictions(answers, picture, str(image) if isinstance(image, Path | str) else "")

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
