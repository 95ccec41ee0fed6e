"""Pairs of an image and a text for contrastive training: drawn scenes, and photos with their regions.

A pair depends on its number and the epoch only, so that a training resumes with the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from epmvg.core.images import open_image
from epmvg.core.types import WHOLE_IMAGE, Box, Sample
from epmvg.data.samples import SampleDigest
from epmvg.data.side_words import has_clear_sides, swap_sides
from epmvg.data.synthetic.phrases import sentence_of
from epmvg.data.synthetic.scenes import draw_scene

MARGIN = 0.2  # most context on each side of a region, as a fraction of the region
SMALLEST = 0.75  # crop of a whole image, as a fraction of each side


class Pairs(Protocol):
    """Pairs by number."""

    def __len__(self) -> int:
        """Return the number of pairs per epoch."""

    def pair(self, number: int, epoch: int) -> tuple[Image.Image, str]:
        """Return the image and the text of a pair."""

    def describe(self) -> dict[str, Any]:
        """Return what determines the pairs, as plain values."""


@dataclass(frozen=True, slots=True)
class ScenePairs:
    """Drawn scenes of all names, each with one sentence per epoch.

    Scenes are drawn when they are needed (6 ms each) and stored nowhere: 200,000 of them would take 4 GB.
    """

    count: int
    seed: int = 0
    side: int = 256  # longer side of the images, pixels

    def __len__(self) -> int:
        return self.count

    def pair(self, number: int, epoch: int) -> tuple[Image.Image, str]:
        scene = draw_scene("captions", number, seed=self.seed, side=self.side)
        random = np.random.default_rng([self.seed, 2, number, epoch])
        return scene.image, sentence_of(scene.objects, scene.image.size, random)

    def describe(self) -> dict[str, Any]:
        return {"scenes": self.count, "seed": self.seed, "side": self.side}


@dataclass(frozen=True, slots=True)
class PhotoPairs:
    """Photos with their sentences, and crops of their regions with their phrases; half of both are mirrored."""

    captioned: Sequence[tuple[Path, list[str]]]
    regions: Mapping[Path, Sequence[tuple[Box, str]]]  # boxes xyxy in pixels, of some of the photos
    per_photo: int = 3  # regions per photo and epoch
    seed: int = 0

    @classmethod
    def of(cls, captioned: Sequence[tuple[Path, list[str]]], samples: Sequence[Sample]) -> PhotoPairs:
        """Join captioned photos with the samples of the same photos."""
        regions: dict[Path, list[tuple[Box, str]]] = {path: [] for path, _ in captioned}
        for sample in samples:
            if sample.image in regions:
                regions[sample.image].append((sample.box, sample.phrase))
        return cls(captioned, regions)

    def __len__(self) -> int:
        return len(self.captioned) * (1 + self.per_photo)

    def pair(self, number: int, epoch: int) -> tuple[Image.Image, str]:
        photo, part = divmod(number, 1 + self.per_photo)
        path, sentences = self.captioned[photo]
        random = np.random.default_rng([self.seed, number, epoch])
        image, regions = open_image(path), self.regions.get(path, ())
        if part and regions:
            box, text = regions[int(random.integers(len(regions)))]
            width, height = box[2] - box[0], box[3] - box[1]
            left, top, right, bottom = random.uniform(0, MARGIN, 4) * (width, height, width, height)
            image = _crop(image, (box[0] - left, box[1] - top, box[2] + right, box[3] + bottom))
        else:
            text = sentences[int(random.integers(len(sentences)))]
            width, height = random.uniform(SMALLEST, 1, 2) * image.size
            x, y = random.uniform(0, 1, 2) * (image.width - width, image.height - height)
            image = _crop(image, (x, y, x + width, y + height))
        if random.random() < 0.5 and has_clear_sides(text):
            return ImageOps.mirror(image), swap_sides(text)
        return image, text

    def describe(self) -> dict[str, Any]:
        sentences = [Sample(path, text, WHOLE_IMAGE) for path, texts in self.captioned for text in texts]
        regions = [Sample(path, phrase, box) for path, own in self.regions.items() for box, phrase in own]
        counts = {"photos": len(self.captioned), "regions": len(regions), "per_photo": self.per_photo}
        return counts | {"seed": self.seed, "sha256": SampleDigest.of([*sentences, *regions]).sha256}


def _crop(image: Image.Image, box: Box) -> Image.Image:
    """Crop to a box, xyxy in pixels, as far as it lies inside, and to one pixel at least."""
    x0, y0 = (min(max(0, int(low)), edge - 1) for low, edge in zip(box[:2], image.size, strict=True))
    x1, y1 = (
        min(max(low + 1, round(high)), edge) for low, high, edge in zip((x0, y0), box[2:], image.size, strict=True)
    )
    return image.crop((x0, y0, x1, y1))
