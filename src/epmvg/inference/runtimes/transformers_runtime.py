"""The runtime of grounders in the transformers library: Grounding DINO, MM Grounding DINO, OmDet-Turbo, OWL-ViT, OWLv2.

Each phrase is queried alone, so it competes with no other. Boxes are those of the library's own forward pass and
post-processing, clipped to the image as those of every runtime. What ignores the phrase is computed once per image and
handed to later forward passes:

- OWL-ViT, OWLv2: the image tower, nearly all of the work;
- OmDet-Turbo: backbone and encoder;
- Grounding DINO: the backbone only, about a sixth of the work, because its encoder fuses image and text. A further
  phrase costs nearly as much as the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms
from transformers.modeling_outputs import BaseModelOutputWithPooling

from epmvg.core.calibration import read_calibration
from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.types import InputError
from epmvg.inference.candidates import Candidates
from epmvg.inference.runtimes.protocol import MapKind, RuntimeOutput, Size
from epmvg.models.factory import float32_on_cpu
from epmvg.models.weights_file import digest_of_weights

PHRASES_PER_PASS = 4
"""Rows of a forward pass; by its shapes each takes about half a GB in Grounding DINO at its full image size."""

OVERLAP = 0.5  # IoU from which a box repeats a better one of the same phrase


@dataclass(frozen=True, slots=True)
class EncodedPixels:
    """What a model computed of one image without a phrase."""

    size: Size
    tensors: list[Tensor]  # [1, ...]

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


class _Family(ABC):
    """How the models of one architecture are called."""

    end = ""  # closes a phrase
    divides = ""  # characters that would divide a phrase into several
    post_processing: ClassVar[dict[str, float]] = {}  # further arguments

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length: int = model.config.text_config.max_position_embeddings

    @abstractmethod
    def encode(self, pixels: Any) -> list[Tensor]:
        """Compute what needs no phrase of one preprocessed image."""

    @abstractmethod
    def query(self, tensors: list[Tensor], texts: list[str]) -> SimpleNamespace:
        """Query an encoded image with P texts -> what the library's post-processing reads, a row per text."""


class _GroundingDino(_Family):
    end = "."  # without it the words do not attend to one another
    divides = ".?"
    post_processing: ClassVar = {"text_threshold": 1.0}  # no words of each box, which are not used

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.max_length = min(self.max_length, model.config.max_text_len)
        self.backbone = model.model.backbone.conv_encoder

    def encode(self, pixels: Any) -> list[Tensor]:
        mask = pixels["pixel_mask"].bool()
        return [mask, *chain.from_iterable(self.backbone(pixels["pixel_values"], mask))]

    def query(self, tensors: list[Tensor], texts: list[str]) -> SimpleNamespace:
        mask, *maps = _rows(tensors, len(texts))
        tokens = self.tokenizer(texts, padding=True, return_token_type_ids=True, return_tensors="pt").to(mask.device)
        pixels = maps[0].new_zeros(1).expand(len(texts), 3, *mask.shape[1:])  # only the shape is read
        with _returning(self.backbone, list(zip(maps[::2], maps[1::2], strict=True))):
            output = self.model(**tokens, pixel_values=pixels, pixel_mask=mask)
        boxes = output.pred_boxes.float()
        return SimpleNamespace(logits=output.logits.float(), pred_boxes=boxes, input_ids=tokens["input_ids"])


class _OmDetTurbo(_Family):
    post_processing: ClassVar = {"nms_threshold": OVERLAP}

    def encode(self, pixels: Any) -> list[Tensor]:
        features = self.model.vision_backbone(pixels["pixel_values"])
        return list(self.model.encoder(features, return_dict=True).extracted_states)

    def query(self, tensors: list[Tensor], texts: list[str]) -> SimpleNamespace:
        states = _rows(tensors, len(texts))
        tasks = [f"Detect {text}." for text in texts]
        inputs: dict[str, Any] = {"classes_structure": torch.ones(len(texts), dtype=torch.long)}
        for name, lines in {"classes": texts, "tasks": tasks}.items():
            tokens = _padded(self.tokenizer, lines, self.max_length).to(states[0].device)
            inputs |= {f"{name}_{key}": tokens[key] for key in ("input_ids", "attention_mask")}
        encoder_output = SimpleNamespace(extracted_states=states, hidden_states=None, attentions=None)
        with _returning(self.model.vision_backbone, None), _returning(self.model.encoder, encoder_output):
            output = self.model(pixel_values=None, **inputs, return_dict=True)
        return SimpleNamespace(
            decoder_coord_logits=output.decoder_coord_logits.float(),
            decoder_class_logits=output.decoder_class_logits.float(),
            classes_structure=inputs["classes_structure"],
        )


class _Owl(_Family):
    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.image_tower = getattr(model, model.config.model_type).vision_model

    def encode(self, pixels: Any) -> list[Tensor]:
        output = self.image_tower(pixel_values=pixels["pixel_values"])
        return [output.last_hidden_state, output.pooler_output]

    def query(self, tensors: list[Tensor], texts: list[str]) -> SimpleNamespace:
        hidden, pooled = cast(Any, tensors)
        tokens = _padded(self.tokenizer, texts, self.max_length).to(hidden.device)
        with _returning(self.image_tower, BaseModelOutputWithPooling(hidden, pooled)):
            output = self.model(tokens["input_ids"], None, tokens["attention_mask"])
        logits, boxes = output.logits[0].T[..., None], output.pred_boxes  # a phrase does not change the boxes
        return SimpleNamespace(logits=logits.float(), pred_boxes=boxes.float().expand(len(texts), -1, -1))


_FAMILIES: dict[str, type[_Family]] = {"grounding-dino": _GroundingDino, "mm-grounding-dino": _GroundingDino}
_FAMILIES |= {"omdet-turbo": _OmDetTurbo, "owlvit": _Owl, "owlv2": _Owl}


class TransformersRuntime:
    """Runs a grounder of the transformers library; it is a `Runtime` without maps.

    Args:
        folder: with config.json of a type in `locate.TRANSFORMERS_TYPES`, weights, tokenizer and image processor.
        results: the folder of its calibration, if it has one.
        device: device of torch, or "auto".
        precision: fp32, bf16, or auto, which is bf16 where the hardware has it.
        threads: number of threads of torch, in the whole process.

    Raises:
        InputError: the folder cannot be loaded or lacks weights, its calibration was made for other weights, or the
            device is not available.
    """

    image_size: int | None = None
    domain: str | None = None

    def __init__(
        self, folder: Path, *, results: Path, device: str = "cpu", precision: str = "fp32", threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = select_device(device)
        self._bf16 = use_bf16(precision, self.device)
        model, self._processor = _load(folder)
        model = model.to(self.device).eval().requires_grad_(False)
        self._family = _FAMILIES[model.config.model_type](model, self._processor.tokenizer)
        self.max_length = self._family.max_length
        self.calibration = read_calibration(results, lambda: digest_of_weights(folder))

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image], sizes: Sequence[Size]) -> list[EncodedPixels]:
        """Encode I images, one by one as their shapes differ; see `Runtime.encode`."""
        encoded = []
        for image, size in zip(images, sizes, strict=True):
            pixels = self._processor.image_processor(images=[image], return_tensors="pt").to(self.device)
            with self._autocast():
                encoded.append(EncodedPixels(size, self._family.encode(pixels)))
        return encoded

    def query(
        self,
        encoded: Sequence[EncodedPixels],
        phrases: Sequence[str],
        image_index: NDArray[np.int64],
        *,
        top_k: int = 1,
    ) -> RuntimeOutput:
        """Predict the boxes of P phrases, each the highest-scoring of its phrase; see `Runtime.query`.

        Candidates are further boxes by score, after non-maximum suppression.
        """
        texts, truncated, unknown = self._prepare(phrases)
        candidates: dict[int, Candidates] = {}
        for number, image in enumerate(encoded):
            own = (image_index == number).nonzero()[0].tolist()
            for start in range(0, len(own), PHRASES_PER_PASS):
                part = own[start : start + PHRASES_PER_PASS]
                found = self._find(image, [texts[i] for i in part], top_k)
                candidates |= dict(zip(part, found, strict=True))
        ordered = [candidates[i] for i in range(len(phrases))]
        boxes = np.array([one.boxes[0] for one in ordered]).reshape(-1, 4)
        scores = np.array([one.scores[0] for one in ordered])
        return RuntimeOutput(boxes, scores, truncated, unknown, ordered if top_k > 1 else None)

    def maps(self, kind: MapKind, encoded: EncodedPixels, phrases: Sequence[str]) -> list[NDArray[np.float32]]:
        """Raise InputError: these models have none."""
        raise InputError(f"A model of transformers has no {kind} here. Use a run, or predict without it.")

    def _prepare(self, phrases: Sequence[str]) -> tuple[list[str], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the texts of P phrases, cut where too long; which were cut; which have no known word."""
        end, tokenizer = self._family.end, self._processor.tokenizer
        undivided = str.maketrans(dict.fromkeys(self._family.divides, " "))
        texts = [" ".join(phrase.lower().translate(undivided).split()) for phrase in phrases]
        longest = self.max_length - tokenizer.num_special_tokens_to_add() - len(end)
        truncated, unknown = np.zeros(len(texts), bool), np.zeros(len(texts), bool)
        for i, text in enumerate(texts):
            pieces = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            truncated[i] = len(pieces["input_ids"]) > longest
            unknown[i] = all(piece == tokenizer.unk_token_id for piece in pieces["input_ids"])
            texts[i] = (text[: pieces["offset_mapping"][longest - 1][1]] if truncated[i] else text) + end
        return texts, truncated, unknown

    @torch.inference_mode()
    def _find(self, image: EncodedPixels, texts: list[str], top_k: int) -> list[Candidates]:
        with self._autocast():
            output = self._family.query(image.tensors, texts)
        sizes = [image.size[::-1]] * len(texts)
        found = self._processor.post_process_grounded_object_detection(
            output, threshold=-1.0, target_sizes=sizes, **self._family.post_processing
        )
        candidates = []
        for one in found:
            boxes, scores = one["boxes"].cpu(), one["scores"].cpu()
            best = scores.argmax()[None] if top_k == 1 else nms(boxes, scores, OVERLAP)[:top_k]
            confidences = scores[best].double().numpy()
            confidences = confidences if self.calibration is None else self.calibration(confidences)
            clipped = clip_boxes_to_image(boxes[best].double(), image.size[::-1])
            candidates.append(Candidates(clipped.numpy(), confidences))
        return candidates

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)


def _load(folder: Path) -> tuple[Any, Any]:
    """Load model and processor; transformers itself would fill missing weights with random ones."""
    library = cast(Any, transformers)
    library.logging.disable_progress_bar()
    level = library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    try:
        with float32_on_cpu():
            model, report = library.AutoModelForZeroShotObjectDetection.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # files of others fail in many ways
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{folder} cannot be loaded ({reason}). Download or copy it again.") from error
    finally:
        library.logging.set_verbosity(level)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"{folder} lacks {len(missing)} weights (first: {missing[0]}). Download or copy it again.")
    return model, processor


def _rows(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    """Repeat tensors [1, ...] without copying them -> [rows, ...]."""
    return [tensor.expand(rows, *tensor.shape[1:]) for tensor in tensors]


def _padded(tokenizer: Any, texts: list[str], length: int) -> Any:
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")


@contextmanager
def _returning(module: nn.Module, output: object) -> Iterator[None]:
    """Let a module return what it computed before."""
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
