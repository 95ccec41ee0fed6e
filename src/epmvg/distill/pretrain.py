"""Train a small CLIP of one's own from image-caption pairs, as a teacher.

Its pretrained encoders (EfficientNet-Lite0, MiniLM) stay frozen; two projections into one space are learned. So each
image and caption is encoded once, and an epoch takes seconds. The loop is of its own, as `training` is a level above.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoTokenizer

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Progress
from epmvg.data.readers.fields import short_repr
from epmvg.data.readers.image_finder import ImageFinder
from epmvg.data.readers.jsonl import json_objects
from epmvg.distill.clip_checkpoints import CONFIG, WEIGHTS, build_clip
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.pretrained import efficientnet_lite0_state, minilm_folder

TEXT_FOLDER = "text"  # of the text encoder, in a teacher's folder
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "resize_mode": "longest",
    "fill_color": 128,
}
"""Whole images, padded with gray to the square."""

_WIDTH = 256  # E, of its embeddings

CaptionedImage = tuple[Path, list[str]]


@dataclass(frozen=True, slots=True)
class TeacherMetrics:
    """Text-to-image recall on the val images, and what the training took."""

    r1: float
    r5: float
    epoch: int  # the best one, whose weights are kept
    images: int
    captions: int  # of the training images; pairs learned, where an epoch draws its own texts
    seconds: float
    skipped: int = 0  # images that cannot be opened; teacher.json names them


@dataclass(frozen=True, slots=True)
class Features:
    """Outputs of the frozen encoders."""

    images: Tensor  # [N, C]
    texts: Tensor  # [captions, C']
    captions: list[list[int]]  # indices of each image's captions


def train_teacher(
    captions: Path | str,
    out: Path | str,
    *,
    images: Path | str | None = None,
    image_size: int = 224,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 1e-3,
    progress: Progress | None = None,
) -> TeacherMetrics:
    """Train a teacher and write a folder that `ClipTeacher` opens.

    Images that cannot be opened are skipped, counted, and named in the folder's teacher.json. The caller's random
    number generators are not changed.

    Args:
        captions: JSONL rows `{"image", "split", "captions": [...]}`; split "train" is learned, "val" chooses the epoch.
        out: The teacher's folder; it must not exist yet.
        images: Folder that image paths are relative to; that of `captions` by default.
        image_size: Of its square input, pixels.
        epochs, batch_size, lr: Of the contrastive training; the best epoch on val is kept.
        progress: Called with (images read, total).

    Raises:
        InputError: Unusable captions, no epoch, fewer than two images of a split can be opened, the training diverged,
            or `out` exists.
    """
    start = time.monotonic()
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    check_epochs(epochs)
    captions, out = Path(captions), Path(out)
    if out.exists():
        raise InputError(f"{out} exists already. Choose another folder for the teacher.")
    root = Path(images) if images else captions.parent
    train, val = (read_captions(captions, root, split) for split in ("train", "val"))
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with staging as parent, disk_errors(out), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        folder = Path(parent) / out.name
        clip = write_encoders(folder, image_size)
        train_features, val_features, skipped = _encode_splits(folder, train, val, progress)
        for features, split in ((train_features, "train"), (val_features, "val")):
            check_count(captions, len(features.captions), split, skipped)
        r1, r5, epoch = _fit(clip, train_features, val_features, **settings)
        write_weights(clip, folder)
        counts = len(train_features.captions), len(train_features.texts)
        metrics = TeacherMetrics(r1, r5, epoch, *counts, round(time.monotonic() - start, 1), len(skipped))
        digest = hashlib.sha256(captions.read_bytes()).hexdigest()
        description = {"captions": captions.name, "captions_sha256": digest, "image_size": image_size} | settings
        description |= {"skipped": skipped, "metrics": asdict(metrics)}
        (folder / "teacher.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        folder.rename(out)
    return metrics


def check_epochs(epochs: int) -> None:
    if epochs < 1:
        raise InputError(f"epochs={epochs} trains nothing. Give 1 or more.")


def check_count(source: Path | str, count: int, split: str, skipped: list[str]) -> None:
    if count < 2:
        reason = f" ({skipped[0]})" if skipped else ""
        raise InputError(f"{source} has {count} captioned images of split {split!r}{reason}. Give at least two.")


def read_captions(file: Path, root: Path, split: str) -> list[CaptionedImage]:
    """Read the images of a split with their captions; an InputError as `train_teacher`."""
    find, captioned = ImageFinder(root), list[CaptionedImage]()
    for location, row in json_objects(file):
        if row.get("split", "train") != split:
            continue
        texts = row.get("captions")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            stated = f'"captions" is {short_repr(texts)}'
            raise InputError(f'{location}: {stated}, it must be ["a caption", ...]. Fix or delete the line.')
        captioned.append((find(row.get("image"), location), texts))
    check_count(file, len(captioned), split, [])
    return captioned


def write_encoders(folder: Path, image_size: int) -> Any:
    """Write configuration, text encoder and first weights into `folder`; return the model."""
    source = minilm_folder()
    AutoConfig.from_pretrained(source).save_pretrained(folder / TEXT_FOLDER)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / TEXT_FOLDER)
    vision = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": image_size,
    }
    text = {
        "hf_model_name": TEXT_FOLDER,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 64,
    }
    config = {"embed_dim": _WIDTH, "vision_cfg": vision, "text_cfg": text}
    settings = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    clip = build_clip(config, folder)
    text_weights = safetensors.torch.load_file(source / "model.safetensors")
    for encoder, weights in (
        (clip.visual.trunk, efficientnet_lite0_state()),
        (clip.text.transformer, text_weights),
    ):
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    write_weights(clip, folder)
    return clip.eval()


def write_weights(clip: Any, folder: Path) -> None:
    """Write the weights of a model beside its configuration."""
    with atomic_write(folder / WEIGHTS[0]) as temporary:
        safetensors.torch.save_file({name: t.contiguous() for name, t in clip.state_dict().items()}, temporary)


def _encode_splits(
    folder: Path, train: list[CaptionedImage], val: list[CaptionedImage], progress: Progress | None
) -> tuple[Features, Features, list[str]]:
    """Encode both splits by the encoders in `folder`; also return what is wrong with unreadable images."""
    teacher, skipped = ClipTeacher(folder).to(select_device("auto")), list[str]()

    def report(done: int) -> None:
        if progress:
            progress(done, len(train) + len(val))

    train_features = encode(teacher, train, skipped, report)
    val_features = encode(teacher, val, skipped, lambda done: report(len(train) + done))
    return train_features, val_features, skipped


@torch.no_grad()
def encode(
    teacher: ClipTeacher, captioned: list[CaptionedImage], skipped: list[str], report: Callable[[int], None]
) -> Features:
    """Encode images and captions by the frozen encoders, and add what is wrong with unreadable images to `skipped`."""
    features: list[Tensor] = []
    captions: list[list[int]] = []
    texts: list[str] = []
    for start in range(0, len(captioned), 32):
        pixels: list[Tensor] = []
        batch = captioned[start : start + 32]
        for image, own in batch:
            try:
                pixels.append(teacher.preprocess.image(open_image(image)))
            except InputError as error:
                skipped.append(str(error))
                continue
            captions.append(list(range(len(texts), len(texts) + len(own))))
            texts += own
        if pixels:
            features.append(_encode_images(teacher, torch.stack(pixels)))
        report(start + len(batch))
    if not captions:
        return Features(torch.empty(0), torch.empty(0), [])
    return Features(torch.cat(features), _encode_texts(teacher, texts), captions)


def _encode_images(teacher: ClipTeacher, pixels: Tensor) -> Tensor:
    device = teacher.mean.device
    pixels = ((pixels.to(device) - teacher.mean) / teacher.std).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto", device)):
        return torch.as_tensor(teacher.clip.visual.trunk(pixels)).float().cpu()


def _encode_texts(teacher: ClipTeacher, texts: list[str]) -> Tensor:
    encoder, device = teacher.clip.text, teacher.mean.device
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # equal lengths need no padding
    features: list[Tensor] = []
    for start in range(0, len(order), 256):
        tokens = teacher.tokenize([texts[number] for number in order[start : start + 256]]).to(device)
        mask = (tokens != encoder.config.pad_token_id).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto", device)):
            states = encoder.transformer(input_ids=tokens, attention_mask=mask)
            features.append(encoder.pooler(states, mask).float().cpu())
    return torch.cat(features)[torch.tensor(order).argsort()]


def _fit(
    clip: Any, train: Features, val: Features, *, epochs: int, batch_size: int, lr: float
) -> tuple[float, float, int]:
    """Learn the projections contrastively, keep the best epoch on val, and return its R@1, R@5 and number."""
    heads = nn.ModuleList([clip.visual.head, clip.text.proj]).train()
    scale = clip.logit_scale
    optimizer = torch.optim.AdamW([*heads.parameters(), scale], lr=lr, weight_decay=0.1)
    batch_size = min(batch_size, len(train.captions))
    steps = epochs * (len(train.captions) // batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
    )
    criterion = ClipLoss()
    generator = torch.Generator().manual_seed(0)
    best: tuple[float, float, int] = (-1.0, 0.0, 0)
    best_weights, best_scale = dict[str, Tensor](), scale.detach()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(train.captions), generator=generator)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            options = [train.captions[i] for i in batch.tolist()]  # one of each: an image's others are no negatives
            texts = [own[int(torch.randint(len(own), (1,), generator=generator))] for own in options]
            image = normalize(heads[0](train.images[batch]), dim=-1)
            text = normalize(heads[1](train.texts[texts]), dim=-1)
            loss = criterion(image, text, scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            scale.data.clamp_(0, math.log(100))  # CLIP's bound
        r1, r5 = recall(heads, val)
        if (r1, r5) > best[:2]:
            best, best_weights, best_scale = (r1, r5, epoch), copy.deepcopy(heads.state_dict()), scale.detach().clone()
    if not all(tensor.isfinite().all() for tensor in (*best_weights.values(), best_scale)):
        raise InputError(f"The teacher's weights became NaN or Inf in epoch {best[2]}. Lower lr={lr:g}.")
    heads.load_state_dict(best_weights)
    scale.data.copy_(best_scale)
    heads.eval()
    return best


@torch.no_grad()
def recall(heads: nn.ModuleList, features: Features) -> tuple[float, float]:
    """Text-to-image recall at 1 and 5; a tie or a similarity that is not finite is a miss."""
    device = next(heads.parameters()).device
    image = normalize(heads[0](features.images.to(device)), dim=-1)
    text = normalize(heads[1](features.texts.to(device)), dim=-1)
    image_index = torch.tensor([number for number, own in enumerate(features.captions) for _ in own], device=device)
    similarity = text @ image.T
    rank = (similarity >= similarity.gather(1, image_index[:, None])).sum(1)  # itself included
    finite = similarity.isfinite().all(1)
    at_1, at_5 = ((finite & (rank <= most)).double().mean().item() for most in (1, 5))
    return at_1, at_5
