"""Speed of loading training images at 640 px from JPEG files, against a reference that loads one phrase at a time.

The reference re-creates TransVG's pipeline: for each phrase Pillow decodes, resizes and jitters, torchvision converts
to a tensor and normalizes, and the image is padded. The loader's time includes the student's normalization; neither
tokenizes. Both run alternately in this process on one thread.

    python benchmarks/loader.py [--photos FOLDER] [--size 640x480] [--phrases 7] [--rounds 7] [--json FILE]

Without --photos it draws images of `--size` whose files are about as large as those of photos.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as vision

from epmvg.config.settings import AugmentSettings
from epmvg.core.types import Box, Sample
from epmvg.data.loader import GroundingLoader
from reference.timing import interleaved, timer

SIDE = 640
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
IMAGES = 8  # per batch


def draw_photos(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Write JPEGs of noise at several scales, with grain."""
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


def reference_example(file: Path, box: Box) -> tuple[Tensor, Tensor, Tensor]:
    """Return the image [3, S, S], mask [S, S] and box [4] of one phrase, as published."""
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


def reference_epoch(samples: list[Sample]) -> None:
    for start in range(0, len(samples), IMAGES):
        examples = [reference_example(sample.image, sample.box) for sample in samples[start : start + IMAGES]]
        for parts in zip(*examples, strict=True):
            torch.stack(parts)


def loader_epoch(loader: GroundingLoader, epoch: int) -> None:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for batch in loader.batches(epoch):
        batch.images.sub_(mean).div_(std)  # the student's first step


def no_tokens(phrases: list[str]) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(phrases), 1, dtype=torch.long), torch.zeros(len(phrases), 1, dtype=torch.bool)


def samples_of(files: list[Path], phrases: int) -> list[Sample]:
    rows = []
    for file in files:
        with Image.open(file) as image:
            width, height = image.size
        for number in range(phrases):
            x, y = width * number / (2 * phrases), height * number / (2 * phrases)
            rows.append(Sample(file, f"a thing of color {number}", (x, y, x + width / 3, y + height / 3)))
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
    print(f"{'pipeline':<36}{'ms/image':>14}{'ms/phrase':>14}")
    for name, row in result["rows"].items():
        print(f"{name:<36}{row['ms_image']:>14.2f}{row['ms_phrase']:>14.2f}")
    print(f"speedup per image: {result['ratio_image']}, per phrase: {result['ratio_phrase']}")
    print(f"with the disk cache: {result['ratio_image_cached']} and {result['ratio_phrase_cached']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def compare(files: list[Path], phrases: int, rounds: int) -> dict[str, Any]:
    """Time the pipelines alternately; return medians over rounds and ratios of medians."""
    one, many = samples_of(files, 1), samples_of(files, phrases)
    augment = AugmentSettings(horizontal_flip=0.5, crop=0, scale=1, color_jitter=0.8, translate=1.0)

    def loader(samples: list[Sample], cache_gb: float) -> Callable[[], None]:
        grounding_loader = GroundingLoader(
            samples,
            no_tokens,
            image_size=SIDE,
            batch_size=IMAGES * len(samples) // len(files),
            phrases_per_image=phrases,
            augment=augment,
            shuffle=True,
            cache_gb=cache_gb,
        )
        epochs = itertools.count()
        return lambda: loader_epoch(grounding_loader, next(epochs))

    several = f"{phrases} phrases per image"
    pipelines: dict[str, tuple[int, Callable[[], None]]] = {
        "reference, 1 phrase per image": (1, lambda: reference_epoch(one)),
        "loader, 1 phrase per image": (1, loader(one, 0)),
        "loader with cache, 1 phrase per image": (1, loader(one, 4.0)),
        f"reference, {several}": (phrases, lambda: reference_epoch(many)),
        f"loader, {several}": (phrases, loader(many, 0)),
        f"loader with cache, {several}": (phrases, loader(many, 4.0)),
    }
    taken = interleaved([timer(run) for _, run in pipelines.values()], rounds)  # the first round fills the cache too
    rows = {}
    for (name, (count, _)), seconds in zip(pipelines.items(), taken, strict=True):
        per_image = statistics.median(seconds) / len(files) * 1000
        rows[name] = {"ms_image": round(per_image, 3), "ms_phrase": round(per_image / count, 3)}
    ref_one, own_one, cached_one, ref_many, own_many, cached_many = (row["ms_phrase"] for row in rows.values())
    return {
        "rows": rows,
        "ratio_image": round(ref_one / own_one, 2),
        "ratio_phrase": round(ref_many / own_many, 2),
        "ratio_image_cached": round(ref_one / cached_one, 2),
        "ratio_phrase_cached": round(ref_many / cached_many, 2),
        "images": len(files),
        "kilobytes_image": round(sum(file.stat().st_size for file in files) / len(files) / 1000),
        "rounds": rounds,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
