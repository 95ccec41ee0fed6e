"""Train a small CLIP end to end: the teacher of `pretrain`, whose encoders learn too, from a stream of pairs.

A killed training continues from its last checkpoint to the same weights: order, texts and dropout depend on the step.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.types import InputError, Progress
from epmvg.data.pairs import Pairs, PhotoPairs
from epmvg.data.registry import open_samples
from epmvg.distill.pretrain import (
    CaptionedImage,
    TeacherMetrics,
    check_count,
    check_epochs,
    encode,
    read_captions,
    recall,
    write_encoders,
    write_weights,
)
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.cpu_training import speed_up_bf16_training
from epmvg.models.freezing import freeze

CHECKPOINT = "checkpoint.pt"
FROZEN = ("conv_stem", "bn1", "blocks.0", "blocks.1")
"""Of the image encoder, as in `mini`: half of a step's memory and a third of its time, for edges and textures."""

_WARMUP = 0.05  # of all steps
_DATA = "The teacher's data"


@dataclass(frozen=True, slots=True)
class _Progress:
    """What the checkpoint states beside the weights."""

    step: int = 0
    seconds: float = 0.0
    best: tuple[float, float, int] = (-1.0, 0.0, 0)  # R@1, R@5 and the epoch, whose weights are kept


def train_end_to_end(
    pairs: Pairs,
    val: Sequence[CaptionedImage],
    out: Path | str,
    *,
    image_size: int = 224,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_encoder: float = 2e-4,
    save_interval: int = 25,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> TeacherMetrics:
    """Train a teacher with its encoders and write a folder that `ClipTeacher` opens.

    Until it ends, everything is in `.NAME.partial` beside `out`, and the same call continues from there. The caller's
    random number generators are not changed.

    Args:
        pairs: What is learned.
        val: Images with captions; the epoch with the best text-to-image recall at 1 among them is kept.
        out: The teacher's folder; it must not exist yet.
        image_size: Of its square input, pixels.
        epochs, batch_size: Of the contrastive training; pairs of a batch with the same text are all positives.
        lr, lr_encoder: Peak learning rates of the projections and of the encoders.
        save_interval: Steps between two checkpoints.
        num_workers: Processes that make pairs.
        progress: Called with (steps done, total).

    Raises:
        InputError: Too few pairs, images or epochs, the training diverged, an image cannot be opened, `out` exists, or
            the training to be continued has other settings.
    """
    out, start = Path(out), time.monotonic()
    if out.exists():
        raise InputError(f"{out} exists already. Choose another folder for the teacher.")
    check_epochs(epochs)
    check_count(_DATA, len(val), "val", [])
    check_count(_DATA, len(pairs), "train", [])
    batch_size = min(batch_size, len(pairs))
    per_epoch = len(pairs) // batch_size
    settings: dict[str, Any] = {"image_size": image_size, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    settings |= {"lr_encoder": lr_encoder, "pairs": pairs.describe()}
    folder = out.with_name(f".{out.name}.partial")
    with disk_errors(folder), torch.random.fork_rng(range(torch.cuda.device_count())):
        teacher, optimizer, state = _open(folder, settings)
        rates = [group["lr"] for group in optimizer.param_groups]
        start -= state.seconds
        batches = _batches(pairs, teacher, batch_size, range(state.step, epochs * per_epoch), num_workers)
        for step, (pixels, texts) in enumerate(batches, state.step):
            torch.manual_seed(step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _lr_factor(step, epochs * per_epoch)
            _take_step(teacher, optimizer, pixels, texts, lr)
            done = step + 1
            if done % per_epoch == 0:
                state = replace(state, best=_validate(teacher, val, folder, state.best, done // per_epoch))
            if done % per_epoch == 0 or done % save_interval == 0:
                state = replace(state, step=done, seconds=time.monotonic() - start)
                _save(folder, settings, teacher, optimizer, state)
            if progress:
                progress(done, epochs * per_epoch)
        seconds = round(time.monotonic() - start, 1)
        metrics = TeacherMetrics(*state.best, len(pairs), epochs * per_epoch * batch_size, seconds)
        description = json.dumps(settings | {"metrics": asdict(metrics)}, indent=1)
        (folder / "teacher.json").write_text(description + "\n", encoding="utf-8")
        folder.rename(out)
        (out / CHECKPOINT).unlink()
    return metrics


def train_on_photos(
    captions: Path,
    regions: str,
    out: Path,
    *,
    images: Path | None = None,
    epochs: int = 10,
    progress: Progress | None = None,
) -> TeacherMetrics:
    """Train a teacher end to end on captioned photos, and on the training boxes of the same photos with their phrases.

    Args:
        captions, out, images: As for `train_teacher`.
        regions: Data set or annotation file, of whose split "train" the boxes come; paths are relative to `images`.
        epochs, progress: As for `train_end_to_end`.

    Raises:
        InputError: As both, or no box is in a captioned photo.
    """
    root = images or captions.parent
    train, val = (read_captions(captions, root, split) for split in ("train", "val"))
    pairs = PhotoPairs.of(train, open_samples(regions, split="train", root=root))
    if not any(pairs.regions.values()):
        raise InputError(f"{regions} has no box in a photo of {captions}. Give annotations of the same images.")
    return train_end_to_end(pairs, val, out, epochs=epochs, batch_size=64, num_workers=1, progress=progress)


def _open(folder: Path, settings: dict[str, Any]) -> tuple[ClipTeacher, torch.optim.Optimizer, _Progress]:
    """Begin a training in a folder, or continue the one there."""
    checkpoint: dict[str, Any] | None = None
    if (folder / CHECKPOINT).exists():
        checkpoint = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        if json.loads(checkpoint["settings"]) != json.loads(json.dumps(settings)):
            raise InputError(f"{folder} holds a training with other settings. Delete it, or choose another folder.")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        write_encoders(folder, settings["image_size"])
    teacher = ClipTeacher(folder, frozen=False).to(select_device("auto"))
    clip, device = teacher.clip, teacher.mean.device
    freeze(clip.visual.trunk, FROZEN, "the teacher")
    if device.type == "cpu" and use_bf16("auto", device):
        speed_up_bf16_training(clip.visual.trunk, clip.text.transformer)
    encoders = [*clip.visual.trunk.parameters(), *clip.text.transformer.parameters()]
    heads = [*clip.visual.head.parameters(), *clip.text.proj.parameters(), clip.logit_scale]
    groups = [
        {"params": [each for each in parameters if each.requires_grad], "lr": settings[rate]}
        for parameters, rate in ((heads, "lr"), (encoders, "lr_encoder"))
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    _train_mode(teacher)
    if checkpoint is None:
        return teacher, optimizer, _Progress()
    clip.load_state_dict(checkpoint["clip"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    for group, rate in zip(optimizer.param_groups, ("lr", "lr_encoder"), strict=True):
        group["lr"] = settings[rate]  # the peak, of which a checkpoint has a fraction
    return teacher, optimizer, _Progress(**checkpoint["progress"])


def _train_mode(teacher: ClipTeacher) -> None:
    """Train, with batch norms that keep their statistics, as a student's do."""
    teacher.train()
    teacher.clip.visual.trunk.eval()


def _save(
    folder: Path, settings: dict[str, Any], teacher: ClipTeacher, optimizer: torch.optim.Optimizer, state: _Progress
) -> None:
    checkpoint = {"clip": teacher.clip.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint |= {"settings": json.dumps(settings), "progress": asdict(state)}
    with atomic_write(folder / CHECKPOINT) as temporary:
        torch.save(checkpoint, temporary)


def _batches(
    pairs: Pairs, teacher: ClipTeacher, batch_size: int, steps: range, num_workers: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Yield pixels [B, 3, S, S] in 0..1 and B texts for each step."""
    make = partial(_make_batch, pairs, teacher.preprocess, batch_size)
    loader: DataLoader[Any] = DataLoader(
        list(steps),  # type: ignore[arg-type]  # anything with a length and numbers
        batch_size=None,
        num_workers=num_workers,
        collate_fn=make,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _make_batch(pairs: Pairs, preprocess: Any, batch_size: int, step: int) -> Any:
    """Make the batch of a step; an error is returned, since a worker that raises adds its traceback."""
    epoch, number = divmod(step, len(pairs) // batch_size)
    chosen = _order(len(pairs), epoch)[number * batch_size : (number + 1) * batch_size].tolist()
    try:
        images, texts = zip(*(pairs.pair(each, epoch) for each in chosen), strict=True)
    except InputError as error:
        return error
    return torch.stack([preprocess.image(image) for image in images]), list(texts)


@lru_cache(maxsize=1)
def _order(count: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([epoch, count]).permutation(count)


def _take_step(
    teacher: ClipTeacher, optimizer: torch.optim.Optimizer, pixels: Tensor, texts: list[str], lr: float
) -> None:
    device = teacher.mean.device
    pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto", device)):
        output = teacher(pixels, texts)
    loss = contrastive_loss(output.image, output.text, teacher.clip.logit_scale.exp(), texts)
    if not loss.isfinite():
        raise InputError(f"The teacher's loss became NaN or Inf. Lower lr={lr:g}.")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
    optimizer.step()
    teacher.clip.logit_scale.data.clamp_(0, math.log(100))  # CLIP's bound


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, phrases: Sequence[str]) -> Tensor:
    """Return CLIP's symmetric cross-entropy of embeddings [B, E]; pairs with the same phrase [B] are all positives."""
    logits = scale * normalize(images.float(), dim=-1) @ normalize(texts.float(), dim=-1).T
    first: dict[str, int] = {}
    group = torch.tensor([first.setdefault(phrase, len(first)) for phrase in phrases], device=logits.device)
    target = (group[:, None] == group).float()
    target /= target.sum(1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def _lr_factor(step: int, steps: int) -> float:
    warmup = max(1, round(_WARMUP * steps))
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _validate(
    teacher: ClipTeacher,
    val: Sequence[CaptionedImage],
    folder: Path,
    best: tuple[float, float, int],
    epoch: int,
) -> tuple[float, float, int]:
    """Return the better of the best epoch and this one, whose weights are written in that case."""
    skipped: list[str] = []
    teacher.eval()
    features = encode(teacher, list(val), skipped, lambda done: None)
    check_count(_DATA, len(features.captions), "val", skipped)
    r1, r5 = recall(nn.ModuleList([teacher.clip.visual.head, teacher.clip.text.proj]), features)
    _train_mode(teacher)
    if (r1, r5) <= best[:2]:
        return best
    write_weights(teacher.clip, folder)
    return r1, r5, epoch
