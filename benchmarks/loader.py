"""How fast training views at 640 px come from JPEG files, against a plain pipeline of one phrase at a time.

The plain pipeline is TransVG's, written plainly: Pillow decodes, scales and jitters, torchvision turns to a tensor and
normalises, and the picture is padded, all of it again for each phrase. Ours is timed to the same end, the student's
normalisation included; words are tokenised in neither. Both run in this process on one thread, and take turns.

    python benchmarks/loader.py [--photos FOLDER] [--size 640x480] [--phrases 7] [--rounds 7] [--json FILE]

Without --photos it draws cloudy pictures of `--size` that take about as many bytes as photos do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as vision

from epmvg.core.types import Box, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.data.transforms import Augment

SIDE = 640
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 8  # images


def draw_photos(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Write JPEGs of clouds in several sizes, with grain."""
    drawn = np.random.default_rng(0)
    files = []
    for number in range(count):
        picture = drawn.normal(0, 4, (height, width, 3))
        for cells, strength in ((4, 40), (16, 25), (64, 15), (200, 10)):
            clouds = Image.fromarray(drawn.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += (np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC)) / 128.0 - 1) * strength
        files.append(folder / f"{number}.jpg")
        Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def plain_view(file: Path, box: Box) -> tuple[Tensor, Tensor, Tensor]:
    """One phrase's picture [3, S, S], padding [S, S] and box [4], as published: resize, jitter, flip, tensor, pad."""
    image: Image.Image = Image.open(file).convert("RGB")
    ratio = SIDE / max(image.size)
    image = image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BILINEAR)
    target = torch.tensor(box) * ratio
    if random.random() < 0.8:
        for name in random.sample(["Brightness", "Contrast", "Color"], 3):
            image = getattr(ImageEnhance, name)(image).enhance(random.uniform(0.6, 1.4))
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
        target = torch.stack([image.width - target[2], target[1], image.width - target[0], target[3]])
    tensor = vision.normalize(vision.to_tensor(image), MEAN, STD)
    height, width = tensor.shape[1:]
    left, top = random.randint(0, SIDE - width), random.randint(0, SIDE - height)
    image_size, image_mask = torch.zeros(3, SIDE, SIDE), torch.ones(SIDE, SIDE, dtype=torch.bool)
    image_size[:, top : top + height, left : left + width] = tensor
    image_mask[top : top + height, left : left + width] = False
    target += torch.tensor([left, top, left, top])
    return image_size, image_mask, torch.cat([(target[:2] + target[2:]) / 2, target[2:] - target[:2]]) / SIDE


def plain_epoch(records: list[Sample]) -> None:
    for start in range(0, len(records), BATCH):
        views = [plain_view(record.image, record.box) for record in records[start : start + BATCH]]
        for parts in zip(*views, strict=True):
            torch.stack(parts)


def our_epoch(loader: GroundingLoader, epoch: int) -> None:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for batch in loader.batches(epoch):
        batch.images.sub_(mean).div_(std)  # the student's own first step


def untokenised(phrases: list[str]) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(phrases), 1, dtype=torch.long), torch.zeros(len(phrases), 1, dtype=torch.bool)


def records_of(files: list[Path], phrases: int) -> list[Sample]:
    rows = []
    for file in files:
        with Image.open(file) as image:
            width, height = image.size
        for number in range(phrases):
            x, y = width * number / (2 * phrases), height * number / (2 * phrases)
            rows.append(Sample(file, f"a thing of colour {number}", (x, y, x + width / 3, y + height / 3)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--phrases", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EPMVG_CACHE"] = scratch
        width, height = (int(number) for number in arguments.size.split("x"))
        if arguments.photos:
            files = sorted(arguments.photos.rglob("*.jpg"))[: arguments.count]
        else:
            files = draw_photos(Path(scratch), arguments.count, width, height)
        result = compare(files, arguments.phrases, arguments.rounds)
    print(f"{'pipeline':<36}{'ms an image':>14}{'ms a phrase':>14}")
    for name, row in result["rows"].items():
        print(f"{name:<36}{row['ms_image']:>14.2f}{row['ms_phrase']:>14.2f}")
    print(f"ours against plain: {result['ratio_image']} times an image, {result['ratio_phrase']} times a phrase")
    print(f"with kept pictures: {result['ratio_image_kept']} times an image, {result['ratio_phrase_kept']} a phrase")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(files: list[Path], phrases: int, rounds: int) -> dict[str, Any]:
    """Time the pipelines in turn; medians of rounds, and ratios of medians."""
    one, many = records_of(files, 1), records_of(files, phrases)
    augment = Augment(horizontal_flip=0.5, color_jitter=0.8, translate=1.0)

    def ours(records: list[Sample], cache_gb: float) -> Callable[[int], None]:
        loader = GroundingLoader(
            records,
            untokenised,
            image_size=SIDE,
            batch_size=BATCH * len(records) // len(files),
            phrases_per_image=phrases,
            augment=augment,
            shuffle=True,
            cache_gb=cache_gb,
        )
        return lambda epoch: our_epoch(loader, epoch)

    several = f"{phrases} phrases an image"
    pipelines: dict[str, tuple[int, Callable[[int], None]]] = {
        "plain, 1 phrase an image": (1, lambda _: plain_epoch(one)),
        "ours, 1 phrase an image": (1, ours(one, 0)),
        "ours, kept, 1 phrase an image": (1, ours(one, 4.0)),
        f"plain, {several}": (phrases, lambda _: plain_epoch(many)),
        f"ours, {several}": (phrases, ours(many, 0)),
        f"ours, kept, {several}": (phrases, ours(many, 4.0)),
    }
    taken: dict[str, list[float]] = {name: [] for name in pipelines}
    for round_ in range(rounds + 1):
        for name, (_, run) in pipelines.items():
            start = time.perf_counter()
            run(round_)
            if round_:  # the first warms up and fills the cache
                taken[name].append(time.perf_counter() - start)
    rows = {}
    for name, (asked, _) in pipelines.items():
        an_image = statistics.median(taken[name]) / len(files) * 1000
        rows[name] = {"ms_image": round(an_image, 3), "ms_phrase": round(an_image / asked, 3)}
    plain_one, our_one, kept_one, plain_many, our_many, kept_many = (row["ms_phrase"] for row in rows.values())
    return {
        "rows": rows,
        "ratio_image": round(plain_one / our_one, 2),
        "ratio_phrase": round(plain_many / our_many, 2),
        "ratio_image_kept": round(plain_one / kept_one, 2),
        "ratio_phrase_kept": round(plain_many / kept_many, 2),
        "images": len(files),
        "kilobytes_image": round(sum(file.stat().st_size for file in files) / len(files) / 1000),
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
