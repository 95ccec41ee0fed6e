"""Use a trained run or an exported folder: an image and phrases in, boxes in the image's own pixels out.

An exported folder is answered without torch: nothing here imports it before a torch run is asked for.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from epmvg.backends.exported import ExportedBackend, is_exported
from epmvg.confidence import Calibration
from epmvg.data.jsonl import phrase_fault
from epmvg.data.photos import ImageSource, open_image
from epmvg.data.views import View, canvas_of, evaluation_view, laid_rectangle, lay
from epmvg.letterbox import Letterbox
from epmvg.results import Predictions
from epmvg.types import Box, InputError, Prediction

if TYPE_CHECKING:
    from epmvg.models.grounder import Grounder

Precision = Literal["auto", "fp32", "bf16"]
MapKind = Literal["where", "attention"]


class Backend(Protocol):
    """What computes the answers; arrays are numpy's, but features may be anything with `nbytes`."""

    canvas: int  # S
    length: int  # L
    calibration: Calibration | None  # from the scores that `answer` gives to probabilities
    knows: str | None  # what the model was trained to recognise

    def pieces(self, phrase: str) -> list[int]: ...

    def encode(self, image: NDArray[np.float32], pad: NDArray[np.bool_]) -> Any: ...

    def join(self, features: Sequence[Any]) -> Any: ...

    def answer(
        self,
        features: Any,
        pad: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_pad: NDArray[np.bool_],
        owner: NDArray[np.int64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

    def maps(
        self,
        kind: MapKind,
        features: Any,
        pad: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        token_pad: NDArray[np.bool_],
    ) -> list[NDArray[np.float32]]: ...


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An encoded image, ready for further phrases."""

    letterbox: Letterbox
    pad: NDArray[np.bool_]  # [1, S, S]
    features: Any  # [1, ...]

    @property
    def nbytes(self) -> int:
        return int(self.pad.nbytes + self.features.nbytes)


class Predictor:
    """Find phrases in images. The latest images are remembered: a further question costs only the phrase.

    Args:
        run: a folder that training or `epmvg export` wrote, OWNER/NAME of a model on the Hugging Face hub, or a model,
            which is copied as it is now.
        device: where torch computes, for example "cuda" or "auto", which takes a GPU where there is one; the CPU by
                default.
        precision: fp32, bf16, or auto, which is bf16 where the hardware has it. The default gives the boxes that
            `epmvg evaluate` scores, on any machine.
        compile: let torch.compile make kernels for the shapes met.
        threads: to compute with; for torch they count in the whole process.
        keep_mb: memory for the features of images; the longest unused go first, and 0 keeps none.

    Raises:
        InputError: the folder is neither a trained run nor an exported one, or its runtime is not installed.
    """

    def __init__(
        self,
        run: Path | str | Grounder,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        compile: bool = False,
        threads: int | None = None,
        keep_mb: float = 64,
    ) -> None:
        self.backend: Backend
        self.name = str(run) if isinstance(run, Path | str) else type(run).__name__
        if isinstance(run, Path | str) and is_exported(Path(run)):
            if device not in ("auto", "cpu") or compile:
                raise InputError(f"{run} is an exported folder: it runs on the CPU and is compiled already.")
            self.backend = ExportedBackend(Path(run), precision=precision, threads=threads)
        else:
            from epmvg.backends.eager import EagerBackend
            from epmvg.models.factory import load

            model = load(run) if isinstance(run, Path | str) else copy.deepcopy(run)
            self.backend = EagerBackend(model, device=device, precision=precision, compile=compile, threads=threads)
        self._seen = SeenImages(int(keep_mb * 1e6))
        self._lock = Lock()

    @property
    def knows(self) -> str | None:
        """What the model was trained to recognise ("drawn scenes, not photographs"); None where nobody stated it."""
        return self.backend.knows

    def __repr__(self) -> str:
        knows = f", knows={self.knows!r}" if self.knows else ""
        return f"Predictor({self.name!r}, image_size={self.backend.canvas}, max_length={self.backend.length}{knows})"

    def __call__(
        self, image: ImageSource, phrases: Sequence[str] | str, *, min_score: float | Literal["auto"] | None = None
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
        asked = self._asked(phrases)
        found = _predictions(asked, *self.find(image, asked), bound)
        return Predictions(found, lambda: open_image(image), str(image) if isinstance(image, Path | str) else "")

    def ask(
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
        asked = [(image, self._asked(phrases)) for image, phrases in questions]
        found = zip(asked, self._find(asked, keys, sizes), strict=True)
        return [_predictions(phrases, boxes, scores, 0.0) for (_, phrases), (boxes, scores) in found]

    @property
    def canvas(self) -> int:
        """Pixels of a side of the square that the model sees."""
        return self.backend.canvas

    @property
    def threshold(self) -> float | None:
        """The score stored by `epmvg calibrate` from which a phrase counts as found, or None."""
        return self.backend.calibration.threshold if self.backend.calibration else None

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
        asked = self._asked(phrases)
        tokens, token_pad = tokenize(self.backend, asked)
        with self._lock:
            (seen,) = self._see([image])
            levels = self.backend.maps(kind, seen.features, seen.pad, tokens, token_pad)  # [P, side, side] each
        return [_over_picture([level[i] for level in levels], seen.letterbox) for i in range(len(asked))]

    def _asked(self, phrases: Sequence[str] | str) -> list[str]:
        asked = [phrases] if isinstance(phrases, str) else list(phrases)
        if not asked:
            raise InputError("There is no phrase to find: give at least one.")
        for phrase in asked:
            self._check(phrase)
        return asked

    def _bound(self, min_score: float | Literal["auto"] | None) -> float:
        """Return the lowest score that counts as found."""
        if min_score is None:
            return 0.0
        if min_score != "auto":
            return min_score
        if self.threshold is None:
            raise InputError(
                "This model has no stored threshold: run `epmvg calibrate RUN`, or give min_score a number."
            )
        return self.threshold

    def find(self, image: ImageSource, phrases: Sequence[str]) -> tuple[list[list[float]], list[float]]:
        """Answer P phrases, cut where they are too long: xyxy boxes in pixels of the upright image, and scores.

        Raises:
            InputError: the image cannot be opened.
        """
        return self._find([(image, phrases)])[0]

    def _find(
        self,
        questions: Sequence[tuple[ImageSource, Sequence[str]]],
        keys: Sequence[bytes] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[tuple[list[list[float]], list[float]]]:
        """Answer as `find` does, several images in one pass."""
        counts = [len(phrases) for _, phrases in questions]
        tokens, token_pad = tokenize(self.backend, [phrase for _, phrases in questions for phrase in phrases])
        owner = np.repeat(np.arange(len(counts)), counts)
        with self._lock:
            seen = self._see([image for image, _ in questions], keys, sizes)
            features = seen[0].features if len(seen) == 1 else self.backend.join([one.features for one in seen])
            pad = np.concatenate([one.pad for one in seen])
            box, score = self.backend.answer(features, pad, tokens, token_pad, owner)
        if self.backend.calibration is not None:
            score = self.backend.calibration(score)
        own = [owner == number for number in range(len(seen))]
        return [
            (one.letterbox.to_source(box[rows]).tolist(), score[rows].tolist())
            for one, rows in zip(seen, own, strict=True)
        ]

    def _see(
        self,
        images: Sequence[ImageSource],
        given: Sequence[bytes] | None = None,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[SeenImage]:
        """Encode images together, but for those remembered, by a key, a file's bytes or the pixels on the canvas."""
        keys: list[bytes] = []
        seen: dict[bytes, SeenImage] = {}
        fresh: dict[bytes, tuple[View, NDArray[np.uint8]]] = {}
        for number, image in enumerate(images):
            key = given[number] if given else _file_key(image)
            if key is None or self._seen.get(key) is None:
                picture = open_image(image)
                size = sizes[number] if sizes else picture.size
                view = evaluation_view(size, self.backend.canvas)
                laid = lay(picture, view)
                key = key or _digest(repr(size).encode() + laid.tobytes())
                if self._seen.get(key) is None:
                    fresh[key] = view, laid
            known = self._seen.get(key)
            if known is not None:
                seen[key] = known
            keys.append(key)
        if fresh:
            canvases, pads = zip(*(canvas_of(laid, view) for view, laid in fresh.values()), strict=True)
            features = self.backend.encode(np.stack(canvases), np.stack(pads))
            for number, (key, (view, _)) in enumerate(fresh.items()):
                own = self.backend.join([features[number : number + 1]])  # a slice would keep all of them alive
                seen[key] = SeenImage(view.letterbox, pads[number][None], own)
                self._seen.add(key, seen[key])
        return [seen[key] for key in keys]

    def _check(self, phrase: str) -> None:
        fault = phrase_fault(phrase)
        if fault is not None:
            raise InputError(f"The phrase {_shorten(phrase)!r} cannot be asked: {fault}.")
        pieces = len(self.backend.pieces(phrase))
        if pieces > self.backend.length:
            raise InputError(
                f"The phrase {_shorten(phrase)!r} has {pieces} word pieces and this model reads "
                f"{self.backend.length}: shorten it."
            )


class SeenImages:
    """Encoded images by key, within so many bytes; the longest unused go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[bytes, SeenImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes | None) -> SeenImage | None:
        """Return what is kept under a key, or None."""
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def add(self, key: bytes, seen: SeenImage) -> None:
        """Keep an image that is not kept yet, unless it alone is too large."""
        if seen.nbytes > self.limit:
            return
        self._kept[key] = seen
        self.nbytes += seen.nbytes
        while self.nbytes > self.limit:
            self.nbytes -= self._kept.popitem(last=False)[1].nbytes


def tokenize(backend: Backend, phrases: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Turn P phrases into tokens [P, L'] and token_pad [P, L'], cut and padded as `Grounder.tokenize` does."""
    length = backend.length
    rows = [backend.pieces(phrase.lower().strip()) for phrase in phrases]
    rows = [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows]
    longest = max(map(len, rows))
    width = -(-longest // 4) * 4 if length % 4 == 0 else longest
    tokens = np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
    return tokens, np.arange(width) >= np.array([[len(row)] for row in rows])


def _over_picture(levels: Sequence[NDArray[np.float32]], letterbox: Letterbox) -> NDArray[np.float32]:
    """Lay shares of visual tokens [side, side], maps of several strides added up, over the picture [height, width]."""
    side, size = letterbox.side, (round(letterbox.width), round(letterbox.height))
    rectangle = laid_rectangle(evaluation_view(size, side))
    over = np.zeros(size[::-1], np.float32)
    for level in levels:
        density = Image.fromarray(level * level.size)  # a coarse token's share is spread over more pixels
        laid = density.resize((side, side), Image.Resampling.BICUBIC).crop(rectangle)
        over += np.asarray(laid.resize(size, Image.Resampling.BILINEAR))
    np.maximum(over, 0, out=over)
    over /= max(float(over.max()), 1e-9)
    return over


def _file_key(image: ImageSource) -> bytes | None:
    """Tell a file by its bytes, which need not be decoded for it; None for pictures and arrays."""
    if isinstance(image, Path | str):
        try:
            return _digest(Path(image).read_bytes())
        except OSError:
            return None  # whoever opens it will say why
    return _digest(image) if isinstance(image, bytes) else None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _predictions(
    phrases: Sequence[str], boxes: Sequence[list[float]], scores: Sequence[float], bound: float
) -> list[Prediction]:
    return [
        Prediction(phrase, _box(box), score, score >= bound)
        for phrase, box, score in zip(phrases, boxes, scores, strict=True)
    ]


def _box(values: list[float]) -> Box:
    x0, y0, x1, y1 = (round(value, 2) for value in values)
    return x0, y0, x1, y1


def _shorten(phrase: str) -> str:
    return phrase if len(phrase) <= 40 else phrase[:37] + "..."
