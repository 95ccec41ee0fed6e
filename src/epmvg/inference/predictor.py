"""`Predictor`: phrases in images, with a trained run or an exported folder."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from epmvg.core.cache import LruCache
from epmvg.core.images import ImageSource, image_digest, open_image
from epmvg.core.types import Box, Candidate, InputError, Prediction
from epmvg.data.readers.annotations import phrase_error
from epmvg.inference.results import Predictions
from epmvg.inference.runtimes import open_runtime
from epmvg.inference.runtimes.flip import FlipRuntime
from epmvg.inference.runtimes.protocol import GrounderRuntime, MapKind, Runtime, RuntimeOutput, Size

if TYPE_CHECKING:
    from epmvg.models.grounder import Grounder

Precision = Literal["auto", "fp32", "bf16"]
MinScore = float | Literal["auto"] | None

IMAGES_PER_PASS = 16
PHRASES_PER_PASS = 64
"""Bound memory: with the bundled model 64 phrases take half a gigabyte."""

logger = logging.getLogger("epmvg")


class Predictor:
    """Find phrases in images.

    Encoded images are cached: another phrase about one of the latest images costs only the phrase. A `Predictor` may be
    used by several threads of one process; pickled, it is loaded again from its folder.

    Args:
        run: a folder that training or `epmvg export` wrote, `default`, OWNER/NAME on the Hugging Face hub; a grounder
            of transformers, as a folder or hf:OWNER/NAME; or a model, which is copied.
        device: device of torch, for example "cuda:1"; "auto" selects a GPU where there is one, but for graphs (of an
            exported folder and `default`), which run on the CPU: `default` runs in torch on any other device.
        precision: fp32, bf16, or auto, which is bf16 where the hardware has it. With fp32 boxes are those of
            `epmvg evaluate`. With bf16 `default` runs in torch.
        compile: use torch.compile.
        threads: number of threads; for torch it applies to the whole process.
        cache_mb: memory for encoded images, in MB; least recently used ones are dropped first.
        flip: average over the image and its mirror image (flip averaging at test time), at twice the cost.

    Attributes:
        name: the run as it was given.
        runtime: the `Runtime` that computes.

    Raises:
        InputError: the folder is neither a run nor an export, its runtime is not installed, the device or precision
            is not available, a number is out of range, or `flip` is for a grounder of transformers.
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
        flip: bool = False,
    ) -> None:
        if precision not in get_args(Precision):
            raise InputError(f"precision={precision!r} is unknown. Use one of {', '.join(get_args(Precision))}.")
        if not _is_number(cache_mb) or not 0 <= cache_mb < math.inf:
            raise InputError(f"cache_mb is {cache_mb!r}. Give a number of MB from 0 on.")
        threads = None if threads is None else check_count("threads", threads)
        settings: dict[str, Any] = {"device": device, "precision": precision, "compile": compile, "threads": threads}
        self.runtime: Runtime = open_runtime(run, **settings)
        if flip:
            if not isinstance(self.runtime, GrounderRuntime):
                raise InputError(f"{run}, a grounder of transformers, is not averaged over flipped images. Omit flip.")
            self.runtime = FlipRuntime(self.runtime)
        self.name = str(run) if isinstance(run, Path | str) else type(run).__name__
        arguments = settings | {"cache_mb": cache_mb, "flip": flip}
        self._reopen = partial(Predictor, run, **arguments) if isinstance(run, Path | str) else None
        self._process = os.getpid()
        self._encoded: LruCache[Any] = LruCache(int(cache_mb * 1e6))
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: the other process loads the model itself."""
        if self._reopen is None:
            raise TypeError("A Predictor of a model in memory does not pickle. Save the model and open its folder.")
        return self._reopen, ()

    def __repr__(self) -> str:
        domain = f", domain={self.domain!r}" if self.domain else ""
        return f"Predictor({self.name!r}, image_size={self.image_size}, max_length={self.runtime.max_length}{domain})"

    @property
    def domain(self) -> str | None:
        """What the model was trained to recognize ("drawn scenes, not photographs"), None where it is not stated."""
        return self.runtime.domain

    @property
    def image_size(self) -> int | None:
        """Side of the square network input, in pixels; None for grounders of transformers, whose input varies."""
        return self.runtime.image_size

    @property
    def threshold(self) -> float | None:
        """The confidence stored by `epmvg calibrate` from which a phrase counts as found, or None."""
        return self.runtime.calibration.threshold if self.runtime.calibration else None

    @overload
    def __call__(
        self, image: ImageSource, phrases: str | Sequence[str], *, min_score: MinScore = None, top_k: int = 1
    ) -> Predictions: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],  # of ImageSource; a list is invariant
        phrases: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        min_score: MinScore = None,
        top_k: int = 1,
    ) -> list[Predictions]: ...

    def __call__(
        self, image: Any, phrases: Any, *, min_score: MinScore = None, top_k: int = 1
    ) -> Predictions | list[Predictions]:
        """Find each phrase in an image, or in each of a list of images.

        A phrase longer than the model's input is truncated, and one without a known word is never `found`; both are
        logged and marked in the prediction.

        Args:
            image: a path, a file's bytes, a binary file, a PIL image, uint8 [H, W, 3] RGB (also [H, W] and [H, W, 4]),
                or a uint8 tensor [3, H, W]; or a list of them. The EXIF orientation is applied, and transparency is
                blended with white.
            phrases: one or several; for a list of images also a list of each image's phrases.
            min_score: predictions with a lower confidence are not `found`; "auto" is the threshold stored by
                `epmvg calibrate`.
            top_k: with more than 1, each prediction has up to so many different boxes as its `candidates`.

        Returns:
            One prediction per phrase, boxes (x0, y0, x1, y1) in pixels of the upright image; for a list of images one
            such list per image.

        Raises:
            InputError: an image cannot be opened, a phrase is empty, `min_score` is not in 0..1, there is no stored
                threshold, or `top_k` is not a positive integer.
            TypeError: an image or the phrases are of another type.
        """
        threshold = self.resolve_min_score(min_score)
        if not isinstance(image, list | tuple):
            return self._predict([image], [check_phrases(phrases)], threshold, top_k)[0]
        per_image = phrases_per_image(phrases, len(image))
        results = []
        for start in range(0, len(image), IMAGES_PER_PASS):
            part = slice(start, start + IMAGES_PER_PASS)
            results += self._predict(image[part], per_image[part], threshold, top_k)
        return results

    def predict_batch(
        self,
        queries: Sequence[tuple[ImageSource, Sequence[str]]],
        keys: Sequence[bytes] | None = None,
        sizes: Sequence[Size] | None = None,
        *,
        top_k: int = 1,
    ) -> list[list[Prediction]]:
        """Find phrases in several images, which are encoded in one pass.

        Args:
            queries: images, each with its phrases.
            keys: cache keys of the images, such as digests of their files; by default the content is hashed.
            sizes: (width, height) of the originals where images are reduced copies; boxes are in pixels of these.
            top_k: as for calling.

        Returns:
            For each query one prediction per phrase, as calling returns them.

        Raises:
            InputError: an image cannot be opened, or a phrase is empty; nothing is predicted.
        """
        per_image = [check_phrases(phrases) for _, phrases in queries]
        images = [image for image, _ in queries]
        outputs = self._query(images, keys or list(map(image_digest, images)), per_image, sizes, top_k)
        return [_predictions(phrases, output, 0.0) for phrases, (output, _) in zip(per_image, outputs, strict=True)]

    def predict_boxes(self, image: ImageSource, phrases: Sequence[str]) -> RuntimeOutput:
        """Return the runtime's output for phrases in an image, boxes not rounded; phrases are not checked.

        Raises:
            InputError: the image cannot be opened.
        """
        ((output, _),) = self._query([image], [image_digest(image)], [phrases])
        return output

    def maps(self, kind: MapKind, image: ImageSource, phrases: Sequence[str] | str) -> list[NDArray[np.float32]]:
        """Return a map over the image for each phrase, [height, width] with maximum 1.

        Args:
            kind: "heatmap" (of the dense head) or "attention" (of [REG] to visual tokens in the last fusion layer).
            image: as for a prediction.
            phrases: one or several.

        Raises:
            InputError: as for a prediction, or the model has no such map.
        """
        if kind not in get_args(MapKind):
            raise InputError(f"There is no map {kind!r}. Use one of {', '.join(get_args(MapKind))}.")
        checked = check_phrases(phrases)
        self._check_process()
        with self._lock:
            (encoded,) = self._encode([image], [image_digest(image)])
            return self.runtime.maps(kind, encoded, checked)

    def resolve_min_score(self, min_score: MinScore) -> float:
        """Return the lowest confidence that counts as found.

        Raises:
            InputError: `min_score` is not in 0..1, or "auto" and there is no stored threshold.
        """
        if min_score is None:
            return 0.0
        if min_score != "auto":
            if not _is_number(min_score) or not 0 <= min_score <= 1:
                raise InputError(f'min_score is {min_score!r}. Give a number from 0 to 1, or "auto".')
            return float(min_score)
        if self.threshold is None:
            raise InputError(
                "This model has no stored threshold. Run `epmvg calibrate RUN`, which stores one where the data has "
                "enough negative phrases, or give min_score a number."
            )
        return self.threshold

    def _predict(
        self, images: Sequence[ImageSource], per_image: Sequence[list[str]], threshold: float, top_k: int
    ) -> list[Predictions]:
        # What may change or be read only once is opened now: drawing needs it again.
        images = [image if isinstance(image, Path | str | bytes) else open_image(image) for image in images]
        keys = list(map(image_digest, images))
        results = []
        outputs = self._query(images, keys, per_image, top_k=top_k)
        for image, key, phrases, (output, size) in zip(images, keys, per_image, outputs, strict=True):
            predictions = _predictions(phrases, output, threshold)
            for one in predictions:
                if one.truncated:
                    logger.warning(
                        "Phrase %r is truncated to %d word pieces.", one.phrase[:40], self.runtime.max_length
                    )
                if one.unknown:
                    logger.warning("No word of phrase %r is in the vocabulary, so it is not found.", one.phrase[:40])
            results.append(Predictions(predictions, image, size=size, digest=key))
        return results

    def _query(
        self,
        images: Sequence[ImageSource],
        keys: Sequence[bytes],
        per_image: Sequence[Sequence[str]],
        sizes: Sequence[Size] | None = None,
        top_k: int = 1,
    ) -> list[tuple[RuntimeOutput, Size]]:
        """Query each image with its phrases, encoded in one pass; return also the size of each image."""
        top_k = check_count("top_k", top_k)
        phrases = [phrase for own in per_image for phrase in own]
        image_index = np.repeat(np.arange(len(images)), [len(own) for own in per_image])
        self._check_process()
        with self._lock:
            encoded = self._encode(images, keys, sizes)
            parts = []
            for start in range(0, max(1, len(phrases)), PHRASES_PER_PASS):
                part = slice(start, start + PHRASES_PER_PASS)
                parts.append(self.runtime.query(encoded, phrases[part], image_index[part], top_k=top_k))
        output = RuntimeOutput.join(parts)
        return [(output.select((image_index == number).nonzero()[0]), one.size) for number, one in enumerate(encoded)]

    def _encode(
        self, images: Sequence[ImageSource], keys: Sequence[bytes], sizes: Sequence[Size] | None = None
    ) -> list[Any]:
        """Return encoded images, encoding those that are not cached in one pass."""
        encoded = {key: cached for key in keys if (cached := self._encoded.get(key)) is not None}
        missing = {key: number for number, key in enumerate(keys) if key not in encoded}
        opened = [open_image(images[number]) for number in missing.values()]
        if opened:
            own_sizes = [sizes[number] for number in missing.values()] if sizes else [image.size for image in opened]
            for key, new in zip(missing, self.runtime.encode(opened, own_sizes), strict=True):
                encoded[key] = new
                self._encoded.put(key, new, new.nbytes)
        return [encoded[key] for key in keys]

    def _check_process(self) -> None:
        """Raise in a forked process, where the runtime's threads do not exist and a call would block."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "This Predictor was made before its process was forked. Make one in each process, or start processes "
                'with multiprocessing.get_context("spawn").'
            )


def check_count(name: str, value: Any) -> int:
    """Return an argument that is a positive integer, of numpy too.

    Raises:
        InputError: it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r}. Give a whole number from 1 on.")
    return int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_phrases(phrases: Any) -> list[str]:
    """Return phrases as a list.

    Raises:
        InputError: there is none, or one is empty or too long.
        TypeError: they are neither a string nor a sequence of strings.
    """
    checked = [phrases] if isinstance(phrases, str) else list(phrases) if _is_sequence(phrases) else [phrases]
    for phrase in checked:
        if not isinstance(phrase, str):
            raise TypeError(f"Phrases must be a string or a sequence of strings, not {type(phrase).__name__}.")
        fault = phrase_error(phrase)
        if fault is not None:
            raise InputError(f"The phrase {phrase[:40]!r} cannot be used: {fault}.")
    if not checked:
        raise InputError("No phrase given. Give at least one.")
    return checked


def phrases_per_image(phrases: Any, images: int) -> list[list[str]]:
    """Return the phrases of each of several images; errors as for `check_phrases`."""
    if not _is_sequence(phrases) or not phrases or any(isinstance(one, str) for one in phrases):
        return [check_phrases(phrases)] * images
    if len(phrases) != images:
        raise InputError(f"There are {images} images and {len(phrases)} lists of phrases. Give one list per image.")
    return [check_phrases(own) for own in phrases]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _predictions(phrases: Sequence[str], output: RuntimeOutput, threshold: float) -> list[Prediction]:
    predictions = []
    for i, phrase in enumerate(phrases):
        box, score = _rounded(output.boxes[i]), float(output.scores[i])
        truncated, unknown = bool(output.truncated[i]), bool(output.unknown[i])
        found = score >= threshold and not unknown
        candidates: tuple[Candidate, ...] = ()
        if output.candidates is not None:
            others = zip(output.candidates[i].boxes[1:], output.candidates[i].scores[1:], strict=True)
            further = (Candidate(_rounded(other), float(confidence)) for other, confidence in others)
            candidates = (Candidate(box, score), *further)
        predictions.append(Prediction(phrase, box, score, found, truncated, unknown, candidates))
    return predictions


def _rounded(box: NDArray[np.float64]) -> Box:
    x0, y0, x1, y1 = (round(float(edge), 2) for edge in box)
    return x0, y0, x1, y1
