"""Use a trained run or an exported folder: an image and phrases in, boxes in the image's own pixels out.

An exported folder is answered without torch: nothing here imports it before a torch run is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.core.geometry import Letterbox
from epmvg.core.images import HeldImage, ImageSource, image_digest, open_image
from epmvg.core.types import Box, InputError, Prediction
from epmvg.inference.phrases import checked_phrases, phrases_of_each, shorten
from epmvg.inference.results import Predictions
from epmvg.inference.runtimes.onnx_runtime import ExportedRuntime, is_exported
from epmvg.inference.runtimes.protocol import Backend, MapKind
from epmvg.inference.runtimes.seen import SeenImage, SeenImages

if TYPE_CHECKING:
    from epmvg.models.grounder import Grounder

Precision = Literal["auto", "fp32", "bf16"]
MinScore = float | Literal["auto"] | None

IMAGES = 16
"""Of a list of images, so many are encoded together."""

logger = logging.getLogger("epmvg")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was predicted for the P phrases of one image."""

    boxes: list[list[float]]  # xyxy in pixels of the upright image
    scores: list[float]
    truncated: list[bool]
    unknown: list[bool]
    size: tuple[int, int]  # of the image

    def predictions(self, phrases: Sequence[str], bound: float) -> list[Prediction]:
        rows = zip(phrases, self.boxes, self.scores, self.truncated, self.unknown, strict=True)
        return [
            Prediction(phrase, _box(box), score, score >= bound and not unknown, truncated, unknown)
            for phrase, box, score, truncated, unknown in rows
        ]


class Predictor:
    """Find phrases in images. The latest images are remembered: a further question costs only the phrase.

    One `Predictor` may be used by several threads, and by one process: pickled, it is made anew from its folder.

    Args:
        run: a folder that training or `epmvg export` wrote, OWNER/NAME of a model on the Hugging Face hub, or a model,
            which is copied as it is now.
        device: where torch computes, for example "cuda:1"; "auto" takes a GPU where there is one.
        precision: fp32, bf16, or auto, which is bf16 where the hardware has it. The default gives the boxes that
            `epmvg evaluate` scores, on any machine.
        compile: let torch.compile make kernels for the shapes met.
        threads: to compute with; for torch they count in the whole process.
        cache_mb: memory for the features of images; the longest unused go first, and 0 keeps none.

    Attributes:
        name: the run as it was given.
        domain: what the model was trained to recognise; None where nobody stated it.

    Raises:
        InputError: the folder is neither a trained run nor an exported one, its runtime is not installed, or there is
            no such device or precision.
        TypeError: `run` is neither a folder or name nor a model.
    """

    def __init__(
        self,
        run: Path | str | Grounder,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        compile: bool = False,
        threads: int | None = None,
        cache_mb: float = 64,
    ) -> None:
        if precision not in get_args(Precision):
            raise InputError(f"precision={precision!r} is not known: give one of {', '.join(get_args(Precision))}.")
        self.runtime: Backend
        self._settings: dict[str, Any] = {"device": device, "precision": precision, "compile": compile}
        self._settings |= {"threads": threads, "cache_mb": cache_mb}
        self._folder = run if isinstance(run, Path | str) else None
        self._process = os.getpid()
        self.name = str(run) if self._folder is not None else type(run).__name__
        if isinstance(run, Path | str) and is_exported(Path(run).expanduser()):
            if device not in ("auto", "cpu") or compile:
                raise InputError(f"{run} is an exported folder: it runs on the CPU and is compiled already.")
            self.runtime = ExportedRuntime(Path(run).expanduser(), precision=precision, threads=threads)
        else:
            from epmvg.inference.runtimes.torch_runtime import TorchRuntime
            from epmvg.models.factory import load
            from epmvg.models.grounder import Grounder

            if not isinstance(run, Path | str | Grounder):
                raise TypeError(f"The run must be a folder, the name of a model, or a model, not {type(run).__name__}.")
            model = copy.deepcopy(run) if isinstance(run, Grounder) else load(run)
            self.runtime = TorchRuntime(model, device=device, precision=precision, compile=compile, threads=threads)
        self._seen = SeenImages(int(cache_mb * 1e6))
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made from: the other process loads the model itself."""
        if self._folder is None:
            raise TypeError("A Predictor made of a model does not pickle: save the model, and give its folder.")
        return partial(Predictor, **self._settings), (self._folder,)

    @property
    def domain(self) -> str | None:
        """What the model was trained to recognise ("drawn scenes, not photographs"); None where nobody stated it."""
        return self.runtime.domain

    def __repr__(self) -> str:
        domain = f", domain={self.domain!r}" if self.domain else ""
        size, length = self.runtime.image_size, self.runtime.max_length
        return f"Predictor({self.name!r}, image_size={size}, max_length={length}{domain})"

    @overload
    def __call__(
        self, image: ImageSource, phrases: str | Sequence[str], *, min_score: MinScore = None
    ) -> Predictions: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],  # of ImageSource; a list is invariant
        phrases: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        min_score: MinScore = None,
    ) -> list[Predictions]: ...

    def __call__(self, image: Any, phrases: Any, *, min_score: MinScore = None) -> Predictions | list[Predictions]:
        """Find each phrase in an image, which is encoded once; or in a list of images, which are encoded together.

        A phrase that is longer than the model reads is cut, and one of which the model knows no word is never `found`;
        both are logged, and marked in the prediction.

        Args:
            image: a path, a file's bytes, a binary file, a PIL image, uint8 [H, W, 3] RGB (also [H, W] and [H, W, 4]),
                or a uint8 tensor [3, H, W]; or a list of them. The same image gives the same boxes in every form: it is
                turned by its EXIF orientation, and transparency is laid on white.
            phrases: one or several; with a list of images they are for each of them, and a list of lists has each
                image's own.
            min_score: what scores less is not `found`; "auto" takes the threshold stored by `epmvg calibrate`.

        Returns:
            One prediction a phrase, boxes (x0, y0, x1, y1) in pixels of the upright image; of a list one such list an
            image.

        Raises:
            InputError: an image cannot be opened, a phrase is empty, `min_score` is not in 0..1, or there is no stored
                threshold.
            TypeError: an image or the phrases are of another type.
        """
        bound = self._bound(min_score)
        if not isinstance(image, list | tuple):
            return self._predictions([image], [checked_phrases(phrases)], bound)[0]
        asked = phrases_of_each(phrases, len(image))
        found = []
        for start in range(0, len(image), IMAGES):
            part = slice(start, start + IMAGES)
            found += self._predictions(image[part], asked[part], bound)
        return found

    def _predictions(
        self, images: Sequence[ImageSource], phrases: Sequence[list[str]], bound: float
    ) -> list[Predictions]:
        held = [HeldImage.of(image) for image in images]
        questions = [(one.source, asked) for one, asked in zip(held, phrases, strict=True)]
        answers = self._find(questions, [one.digest for one in held])
        found = []
        for one, image, asked, answer in zip(held, images, phrases, answers, strict=True):
            made = answer.predictions(asked, bound)
            self._log(made)
            name = str(image) if isinstance(image, Path | str) else ""
            found.append(Predictions(made, one.open, name, answer.size))
        return found

    def _log(self, predictions: Sequence[Prediction]) -> None:
        for one in predictions:
            if one.truncated:
                pieces, most = self.runtime.tokenizer.length_of(one.phrase), self.runtime.max_length
                logger.warning(
                    "The phrase %r has %d word pieces and this model reads %d: the rest is cut.",
                    *(shorten(one.phrase), pieces, most),
                )
            if one.unknown:
                logger.warning("No word of %r is known to this model: it counts as not found.", shorten(one.phrase))

    def predict_batch(
        self,
        questions: Sequence[tuple[ImageSource, Sequence[str]]],
        keys: Sequence[bytes] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[list[Prediction]]:
        """Find phrases in several images, all in one pass; the answers are those of asking one by one.

        Args:
            questions: images, each with its phrases.
            keys: what each image is known by, such as a digest of its file; else its bytes or pixels are hashed.
            sizes: width and height, in pixels, of the upright photos of which the images are reduced copies; boxes are
                in their pixels.

        Returns:
            For each question a prediction a phrase, as calling gives them.

        Raises:
            InputError: as calling does; nothing is answered then.
        """
        asked = [(image, checked_phrases(phrases)) for image, phrases in questions]
        found = zip(asked, self._find(asked, keys, sizes), strict=True)
        return [answer.predictions(phrases, 0.0) for (_, phrases), answer in found]

    @property
    def image_size(self) -> int:
        """Pixels of a side of the square that the model sees."""
        return self.runtime.image_size

    @property
    def threshold(self) -> float | None:
        """The score stored by `epmvg calibrate` from which a phrase counts as found, or None."""
        return self.runtime.calibration.threshold if self.runtime.calibration else None

    def where(self, image: ImageSource, phrases: Sequence[str] | str) -> list[NDArray[np.float32]]:
        """Return where the model looks for each phrase, over the picture: [height, width], 1 where it is highest.

        Raises:
            InputError: as for a prediction, or the model has no where-map.
        """
        return self._maps("where", image, phrases)

    def attention(self, image: ImageSource, phrases: Sequence[str] | str) -> list[NDArray[np.float32]]:
        """Return what [REG] attends to in the last fusion layer, over the picture: [height, width] a phrase.

        Each map is 1 where it is highest. What [REG] pays to words and to itself is left out.

        Raises:
            InputError: as for a prediction.
        """
        return self._maps("attention", image, phrases)

    def _maps(self, kind: MapKind, image: ImageSource, phrases: Sequence[str] | str) -> list[NDArray[np.float32]]:
        asked = checked_phrases(phrases)
        tokens, token_mask = tokenize(self.runtime, asked)
        self._check_process()
        with self._lock:
            (seen,) = self._see([image])
            levels = self.runtime.maps(kind, seen.features, seen.image_mask, tokens, token_mask)  # [P, side, side] each
        return [_over_picture([level[i] for level in levels], seen.letterbox) for i in range(len(asked))]

    def _bound(self, min_score: MinScore) -> float:
        """Return the lowest score that counts as found."""
        if min_score is None:
            return 0.0
        if min_score != "auto":
            if isinstance(min_score, bool) or not isinstance(min_score, int | float) or not 0 <= min_score <= 1:
                raise InputError(f'min_score is {min_score!r}: give a number from 0 to 1, or "auto".')
            return float(min_score)
        if self.threshold is None:
            raise InputError(
                "This model has no stored threshold: run `epmvg calibrate RUN`, which stores one where the data has "
                "enough negative phrases, or give min_score a number."
            )
        return self.threshold

    def predict_boxes(self, image: ImageSource, phrases: Sequence[str]) -> tuple[list[list[float]], list[float]]:
        """Answer P phrases, cut where they are too long: xyxy boxes in pixels of the upright image, and scores.

        Raises:
            InputError: the image cannot be opened.
        """
        (answer,) = self._find([(image, phrases)])
        return answer.boxes, answer.scores

    def _find(
        self,
        questions: Sequence[tuple[ImageSource, Sequence[str]]],
        keys: Sequence[bytes | None] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[_Answer]:
        """Answer as `find` does, several images in one pass."""
        self._check_process()
        counts = [len(phrases) for _, phrases in questions]
        tokens = self.runtime.tokenizer([phrase for _, phrases in questions for phrase in phrases])
        image_index = np.repeat(np.arange(len(counts)), counts)
        with self._lock:
            seen = self._see([image for image, _ in questions], keys, sizes)
            features = seen[0].features if len(seen) == 1 else self.runtime.join([one.features for one in seen])
            image_mask = np.concatenate([one.image_mask for one in seen])
            box, score = self.runtime.answer(features, image_mask, tokens.ids, tokens.padding, image_index)
        if self.runtime.calibration is not None:
            score = self.runtime.calibration(score)
        answers = []
        for number, one in enumerate(seen):
            own = image_index == number
            boxes = one.letterbox.to_source(box[own]).tolist()
            size = round(one.letterbox.width), round(one.letterbox.height)
            marks = tokens.truncated[own].tolist(), tokens.unknown[own].tolist()
            answers.append(_Answer(boxes, score[own].tolist(), *marks, size))
        return answers

    def _check_process(self) -> None:
        """Refuse what would wait for ever in a fork, where the threads of the runtime do not exist."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "This Predictor was made before its process was forked: make one in each process, or start processes "
                'by multiprocessing.get_context("spawn").'
            )

    def _see(
        self,
        images: Sequence[ImageSource],
        given: Sequence[bytes | None] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[SeenImage]:
        """Encode images together, but for those remembered, by a key, a file's bytes or the pixels on the canvas."""
        keys: list[bytes] = []
        seen: dict[bytes, SeenImage] = {}
        fresh: dict[bytes, tuple[Letterbox, NDArray[np.uint8]]] = {}
        for number, image in enumerate(images):
            key = given[number] if given else image_digest(image)
            if key is None or self._seen.get(key) is None:
                picture = open_image(image)
                size = sizes[number] if sizes else picture.size
                letterbox = Letterbox.fit(*size, self.runtime.image_size)
                resized = letterbox.resize(picture)
                key = key or _digest(repr(size).encode() + resized.tobytes())
                if self._seen.get(key) is None:
                    fresh[key] = letterbox, resized
            known = self._seen.get(key)
            if known is not None:
                seen[key] = known
            keys.append(key)
        if fresh:
            canvases, pads = zip(*(letterbox.pad(resized) for letterbox, resized in fresh.values()), strict=True)
            features = self.runtime.encode(np.stack(canvases), np.stack(pads))
            for number, (key, (letterbox, _)) in enumerate(fresh.items()):
                own = self.runtime.join([features[number : number + 1]])  # a slice would keep all of them alive
                seen[key] = SeenImage(letterbox, pads[number][None], own)
                self._seen.add(key, seen[key])
        return [seen[key] for key in keys]


def tokenize(backend: Backend, phrases: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Turn P phrases into tokens [P, L'] and token_mask [P, L'] of a backend."""
    tokens = backend.tokenizer(phrases)
    return tokens.ids, tokens.padding


def _over_picture(levels: Sequence[NDArray[np.float32]], letterbox: Letterbox) -> NDArray[np.float32]:
    """Lay shares of visual tokens [side, side], maps of several strides added up, over the picture [height, width]."""
    side, size = letterbox.side, (round(letterbox.width), round(letterbox.height))
    rectangle = Letterbox.fit(*size, side).content
    over = np.zeros(size[::-1], np.float32)
    for level in levels:
        density = Image.fromarray(level * level.size)  # a coarse token's share is spread over more pixels
        laid = density.resize((side, side), Image.Resampling.BICUBIC).crop(rectangle)
        over += np.asarray(laid.resize(size, Image.Resampling.BILINEAR))
    np.maximum(over, 0, out=over)
    over /= max(float(over.max()), 1e-9)
    return over


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _box(values: list[float]) -> Box:
    x0, y0, x1, y1 = (round(value, 2) for value in values)
    return x0, y0, x1, y1
