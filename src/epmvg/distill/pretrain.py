"""A small CLIP-style teacher of one's own, trained from image-caption pairs through open_clip's model and loss.

Its trunks are pretrained (EfficientNet-Lite0, MiniLM) and stay as they are; what is learned are the two projections
into one space. The trunks therefore look at each picture and caption once, and an epoch takes seconds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

from epmvg.core.files import atomic_write, disk_errors
from epmvg.core.hardware import select_device, use_bf16
from epmvg.core.images import open_image
from epmvg.core.types import InputError, Progress
from epmvg.data.side_words import swap_sides
from epmvg.distill.clip_checkpoints import CONFIG, WEIGHTS, build_clip
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.pretrained import efficientnet_lite0_state, minilm_folder

TextTower = Literal["minilm", "tiny"]
TEXT = "text"  # folder of the text tower in a teacher's
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "resize_mode": "longest",
    "fill_color": 128,
}
"""Whole pictures, padded with grey to the square."""


@dataclass(frozen=True, slots=True)
class TeacherMetrics:
    """How well captions find their pictures among the val pictures, and what that took."""

    r1: float  # share of val captions whose picture comes first
    r5: float
    epoch: int  # the epoch kept
    images: int
    captions: int
    seconds: float
    skipped: int = 0  # pictures that cannot be opened; teacher.json names them


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures and what is said of each."""

    images: list[Path]
    captions: list[list[str]]


def train_teacher(
    captions: Path | str,
    out: Path | str,
    *,
    images: Path | str | None = None,
    image_tower: str = "tf_efficientnet_lite0",
    text_tower: TextTower = "minilm",
    side: int = 224,
    width: int = 256,
    epochs: int = 10,
    batch: int = 256,
    lr: float = 1e-3,
    mirror: bool = True,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> TeacherMetrics:
    """Train a teacher and leave a folder that `ClipTeacher` loads.

    Pictures that cannot be opened are left out, counted, and named in the folder's teacher.json. The caller's random
    numbers stay as they were.

    Args:
        captions: JSONL rows `{"image", "split", "captions": [...]}`; split "train" is learned, "val" chooses the epoch.
        out: the teacher's folder; it must not exist yet.
        images: folder that image paths are relative to; that of `captions` by default.
        image_tower: a timm network; tf_efficientnet_lite0 starts from pretrained weights, others from random ones.
        text_tower: "minilm" (pretrained) or "tiny" (random, for tests).
        side: of the pictures it sees, pixels; width: E of its answers.
        epochs, batch, lr: of the contrastive training; the best epoch on val is kept.
        mirror: learn each picture in the mirror too, with left and right swapped in its captions.
        seed: of weights and order.
        device: that the towers compute on, "auto" or one of torch's.
        progress: called with (pictures and captions encoded, all of them).

    Raises:
        InputError: unusable captions, fewer than two pictures of a split that can be opened, training diverged, or
            `out` exists.
    """
    start = time.monotonic()
    captions, out = Path(captions), Path(out)
    if out.exists():
        raise InputError(f"{out} exists already: choose another folder for the teacher.")
    root = Path(images) if images else captions.parent
    train, val = (_read(captions, root, split) for split in ("train", "val"))
    chosen = select_device(device)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with staging as parent, disk_errors(out), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        folder = Path(parent) / out.name
        folder.mkdir()
        clip = _write_towers(folder, image_tower, text_tower, side, width)
        teacher = ClipTeacher(folder).to(chosen)
        seen = _Seen(len(train.images) * (1 + mirror) + len(val.images), progress)
        table = _encode(teacher, train, seen, mirror=mirror), _encode(teacher, val, seen, mirror=False)
        for pairs, split in ((table[0], "train"), (table[1], "val")):
            _check_count(captions, len(pairs.rows), split, seen.skipped)
        r1, r5, epoch = _fit(clip, *table, epochs=epochs, batch=batch, lr=lr, seed=seed)
        pictures, count = len(table[0].rows), len(table[0].texts[0])
        seconds = round(time.monotonic() - start, 1)
        metrics = TeacherMetrics(r1, r5, epoch, pictures, count, seconds, len(seen.skipped))
        state = {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}
        with atomic_write(folder / WEIGHTS[0]) as temporary:
            safetensors.torch.save_file(state, temporary)
        about = {
            "captions": captions.name,
            "captions_sha256": hashlib.sha256(captions.read_bytes()).hexdigest(),
            "image_tower": image_tower,
            "text_tower": text_tower,
            "epochs": epochs,
            "batch": batch,
            "lr": lr,
            "seed": seed,
            "skipped": seen.skipped,
            "metrics": asdict(metrics),
        }
        (folder / "teacher.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        folder.rename(out)
    return metrics


def _check_count(captions: Path, count: int, split: str, skipped: list[str]) -> None:
    if count < 2:
        reason = f" ({skipped[0]})" if skipped else ""
        raise InputError(f"{captions} has {count} captioned pictures of split {split!r}: give at least two{reason}.")


def _read(file: Path, root: Path, split: str) -> Pairs:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        rows = [row for row in rows if row.get("split", "train") == split]
        pairs = Pairs([root / row["image"] for row in rows], [[str(text) for text in row["captions"]] for row in rows])
    except OSError as error:
        raise InputError(f"{file} cannot be opened ({error.strerror}): check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{file} must hold JSON rows {{"image", "split", "captions": [...]}} ({error}).') from error
    if not all(pairs.captions):
        bare = pairs.images[[bool(said) for said in pairs.captions].index(False)]
        raise InputError(f"{file} has no caption for {bare}: give at least one, or leave the row out.")
    _check_count(file, len(pairs.images), split, [])
    return pairs


def _write_towers(folder: Path, image_tower: str, text_tower: TextTower, side: int, width: int) -> Any:
    """Write configuration and text tower into `folder` and return the model with its trunks' first weights."""
    text = folder / TEXT
    bert = _write_text(text, text_tower)
    settings: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": width,
            "vision_cfg": {
                "timm_model_name": image_tower,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "image_size": side,
            },
            "text_cfg": {
                "hf_model_name": TEXT,
                "hf_proj_type": "linear",
                "hf_pooler_type": "mean_pooler",
                "context_length": 64,
            },
        },
        "preprocess_cfg": PREPROCESS,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    clip = build_clip(settings["model_cfg"], folder)
    if image_tower == "tf_efficientnet_lite0":
        trunk = efficientnet_lite0_state()
        clip.visual.trunk.load_state_dict({name: trunk[name] for name in clip.visual.trunk.state_dict()})
    clip.text.transformer.load_state_dict({name: bert[name] for name in clip.text.transformer.state_dict()})
    with atomic_write(folder / WEIGHTS[0]) as temporary:
        safetensors.torch.save_file(clip.state_dict(), temporary)
    return clip.eval()


def _write_text(folder: Path, tower: TextTower) -> dict[str, Tensor]:
    """Write the text tower's configuration and tokenizer; return its weights."""
    if tower == "minilm":
        source = minilm_folder()
        bert = BertConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        state = safetensors.torch.load_file(source / "model.safetensors")
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
        words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
        tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
        bert = BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        state = BertModel(bert).state_dict()
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return state


class _Seen:
    """Counts what the trunks have looked at, and keeps what could not be opened."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.skipped: list[str] = []

    def add(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


@dataclass(frozen=True, slots=True)
class _Table:
    """What the trunks say of a set of pairs; a mirrored picture goes with sides swapped in its captions."""

    images: list[Tensor]  # one or two views, [N, C] each
    texts: list[Tensor]  # by view, [captions, C']
    rows: list[list[int]] = field(default_factory=list)  # the captions of each picture


@torch.no_grad()
def _encode(teacher: ClipTeacher, pairs: Pairs, seen: _Seen, *, mirror: bool) -> _Table:
    views: list[list[Tensor]] = [[], []] if mirror else [[]]
    rows: list[list[int]] = []
    flat: list[str] = []
    for start in range(0, len(pairs.images), 32):
        several = range(start, min(start + 32, len(pairs.images)))
        shown: list[Tensor] = []
        for number in several:
            try:
                shown.append(teacher.preprocess.photo(open_image(pairs.images[number])))
            except InputError as error:
                seen.skipped.append(str(error))
                continue
            said = pairs.captions[number]
            rows.append(list(range(len(flat), len(flat) + len(said))))
            flat += said
        if shown:
            image_size = torch.stack(shown)
            for number, view in enumerate(views):
                view.append(_trunk_of_images(teacher, image_size.flip(3) if number else image_size))
        seen.add(len(several) * len(views))
    if not rows:
        return _Table([], [])
    texts = [_trunk_of_texts(teacher, flat)]
    if mirror:
        swapped = [number for number, text in enumerate(flat) if swap_sides(text) != text]
        other = texts[0].clone()
        if swapped:
            other[swapped] = _trunk_of_texts(teacher, [swap_sides(flat[number]) for number in swapped])
        texts.append(other)
    return _Table([torch.cat(view) for view in views], texts, rows)


def _trunk_of_images(teacher: ClipTeacher, image_size: Tensor) -> Tensor:
    device = teacher.mean.device
    pixels = ((image_size.to(device) - teacher.mean) / teacher.std).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto", device)):
        return torch.as_tensor(teacher.clip.visual.trunk(pixels)).float().cpu()


def _trunk_of_texts(teacher: ClipTeacher, texts: list[str]) -> Tensor:
    tower, device = teacher.clip.text, teacher.mean.device
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # equal lengths waste no padding
    answers: list[Tensor] = [torch.empty(0)] * len(texts)
    for start in range(0, len(order), 256):
        part = order[start : start + 256]
        tokens = teacher.tokenize([texts[number] for number in part]).to(device)
        image_mask = (tokens != tower.config.pad_token_id).long()
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16("auto", device)):
            pooled = (
                tower.pooler(tower.transformer(input_ids=tokens, attention_mask=image_mask), image_mask).float().cpu()
            )
        for number, answer in zip(part, pooled, strict=True):
            answers[number] = answer
    return torch.stack(answers)


def _fit(
    clip: Any, train: _Table, val: _Table, *, epochs: int, batch: int, lr: float, seed: int
) -> tuple[float, float, int]:
    """Learn the projections by contrast, keep the best epoch on val, and return its R@1, R@5 and number."""
    heads = nn.ModuleList([clip.visual.head, clip.text.proj])
    heads.train()
    parameters = [*heads.parameters(), clip.logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)
    count = len(train.rows)
    batch = min(batch, count)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / max(1, steps))))
    contrast = ClipLoss()
    random = torch.Generator().manual_seed(seed)
    best: tuple[float, float, int] = (-1.0, 0.0, 0)
    kept: dict[str, Tensor] = {}
    for epoch in range(1, epochs + 1):
        order = torch.randperm(count, generator=random)
        for start in range(0, count - batch + 1, batch):
            part = order[start : start + batch].tolist()  # one caption a picture: its others are no negatives
            view = int(torch.randint(len(train.images), (1,), generator=random))
            texts = [train.rows[i][int(torch.randint(len(train.rows[i]), (1,), generator=random))] for i in part]
            image = nn.functional.normalize(heads[0](train.images[view][part]), dim=-1)
            text = nn.functional.normalize(heads[1](train.texts[view][texts]), dim=-1)
            loss = contrast(image, text, clip.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            clip.logit_scale.data.clamp_(0, math.log(100))  # CLIP's bound
        r1, r5 = _recall(heads, val)
        if (r1, r5) > best[:2]:
            best, kept = (r1, r5, epoch), copy.deepcopy(heads.state_dict())
    if not all(tensor.isfinite().all() for tensor in kept.values()):
        raise InputError(f"The teacher's weights became NaN or Inf in epoch {best[2]}: lower lr={lr:g}.")
    heads.load_state_dict(kept)
    heads.eval()
    return best


@torch.no_grad()
def _recall(heads: nn.ModuleList, table: _Table) -> tuple[float, float]:
    """Text-to-image recall at 1 and 5; a tie is a miss, and so is whatever is not finite."""
    image = nn.functional.normalize(heads[0](table.images[0]), dim=-1)
    text = nn.functional.normalize(heads[1](table.texts[0]), dim=-1)
    image_index = torch.tensor([number for number, rows in enumerate(table.rows) for _ in rows])
    score = text @ image.T
    own = score.gather(1, image_index[:, None])
    rank = (score >= own).sum(1)  # itself included
    finite = score.isfinite().all(1)
    at_1, at_5 = ((finite & (rank <= most)).double().mean().item() for most in (1, 5))
    return at_1, at_5
