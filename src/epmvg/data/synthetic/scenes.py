"""Synthetic scenes: sprites on varied backgrounds, with phrases that are true by construction, and captions.

Used by the demo and tests, where no data set can be downloaded. A scene depends on (seed, split, number) only, so that
a larger data set begins with the scenes of a smaller one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epmvg.core.types import Box, InputError, Progress
from epmvg.data.readers.files import build_folder
from epmvg.data.synthetic.phrases import Phrase, SceneObject, captions_of, phrases_of
from epmvg.data.synthetic.sprite_library import Sprite, load_sprites, sprite_image

DEFAULT_SIZES = {"train": 4000, "val": 250, "test": 400, "open": 300, "captions": 1500}
"""Scenes per split. Phrases of `open` are about names that otherwise only `captions` has, a split without boxes."""

HELD_OUT_FRACTION = 0.12
"""Fraction of the names that the scenes of captions contain and no scene of train, val or test."""

TEXT_FILES = ("annotations.jsonl", "captions.jsonl", "unlabeled.jsonl")

VERSION = 2
MAX_PHRASES = 6  # per scene, two of them per object
OBJECT_SIZES = (0.14, 0.40)  # longer side of an object, as a fraction of the image's
MAX_OVERLAP = 0.12  # of the smaller of two objects, so that all are recognizable


@dataclass(frozen=True, slots=True)
class Scene:
    """An image with its objects, phrases and captions."""

    image: Image.Image
    objects: list[SceneObject]
    phrases: list[Phrase]
    captions: list[str]


def held_out_names(seed: int = 0) -> set[str]:
    """Return the names that only the splits `open` and `captions` contain."""
    names = sorted(load_sprites())
    random = np.random.default_rng([seed, 1])
    return set(random.choice(names, round(HELD_OUT_FRACTION * len(names)), replace=False).tolist())


def draw_scene(split: str, number: int, *, seed: int = 0, side: int = 256) -> Scene:
    """Draw scene `number` of a split, with `side` pixels as the longer side of the image."""
    random = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
    size = (side, int(side * random.uniform(0.72, 1.0)))
    if random.random() < 0.3:
        size = size[::-1]
    image = _draw_background(size, random)
    objects: list[SceneObject] = []
    for sprite, color in _choose_sprites(split, seed, random):
        placed = _place(image, sprite, color, objects, random)
        if placed is not None:
            objects.append(placed)
    phrases = _choose_phrases(phrases_of(objects, size), random)
    if split == "open":
        held_out = held_out_names(seed)
        phrases = [phrase for phrase in phrases if objects[phrase.target].name in held_out]
    order = random.permutation(len(objects)).tolist()
    return Scene(image, objects, phrases, captions_of(objects, size, order) if len(objects) > 1 else [])


def _choose_sprites(split: str, seed: int, random: np.random.Generator) -> list[tuple[Sprite, str | None]]:
    """Choose sprites and tints: often two or three of one kind, and no two kinds that people might confuse."""
    sprites, held_out = load_sprites(), held_out_names(seed)
    pool = [name for name in sorted(sprites) if split == "captions" or name not in held_out]
    names = [str(name) for name in random.permutation(pool)[:8]]
    if split == "open":
        names.insert(0, str(random.choice(sorted(held_out))))
    kinds: list[Sprite] = []
    for name in names:
        if not any(_confusable(sprites[name], other) for other in kinds):
            kinds.append(sprites[name])
    counts = [1] * int(random.integers(2, 5))
    if random.random() < 0.75:
        counts[0] = 2 + int(random.random() < 0.25)
    chosen = [sprite for sprite, count in zip(kinds, counts, strict=False) for _ in range(count)]
    return [(sprite, _choose_tint(sprite, random)) for sprite in chosen]


def _confusable(a: Sprite, b: Sprite) -> bool:
    return bool({a.name, a.alike} & {b.name, b.alike} - {None}) or a.name in b.name or b.name in a.name


def _choose_tint(sprite: Sprite, random: np.random.Generator) -> str | None:
    return str(random.choice(sprite.tints)) if sprite.tints and random.random() < 0.6 else None


def _place(
    image: Image.Image, sprite: Sprite, tint: str | None, objects: Sequence[SceneObject], random: np.random.Generator
) -> SceneObject | None:
    """Paste a sprite where it hides little of the other objects; return None if a few tries fail."""
    drawing = sprite_image(sprite.name, tint)
    for _ in range(12):
        scale = max(image.size) * random.uniform(*OBJECT_SIZES) / max(drawing.size)
        width, height = (max(8, round(edge * scale)) for edge in drawing.size)
        if width >= image.width or height >= image.height:
            continue
        x, y = int(random.integers(0, image.width - width)), int(random.integers(0, image.height - height))
        box = (float(x), float(y), float(x + width), float(y + height))
        if all(_overlap(box, other.box) <= MAX_OVERLAP for other in objects):
            resized = drawing.resize((width, height), Image.Resampling.BILINEAR)
            image.paste(resized, (x, y), resized)
            return SceneObject(sprite.name, tint or sprite.color, box)
    return None


def _overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share, as a fraction of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, width) * max(0.0, height) / smaller


def _choose_phrases(phrases: Sequence[Phrase], random: np.random.Generator) -> list[Phrase]:
    """Choose phrases, at most two per object, the rarer kinds first."""
    rarity = {"size": 0, "color": 1, "place": 2, "relation": 3, "name": 4}
    rank = [rarity[phrase.kind] + 3 * random.random() for phrase in phrases]
    chosen: list[Phrase] = []
    for number in np.argsort(rank):
        phrase = phrases[int(number)]
        if sum(other.target == phrase.target for other in chosen) < 2 and len(chosen) < MAX_PHRASES:
            chosen.append(phrase)
    return chosen


def _draw_background(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Mix two colors in a gradient, soft noise, stripes, tiles or a floor under a sky."""
    first, second = (random.uniform(90, 245, 3) for _ in range(2))
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    kind = random.integers(5)
    if kind == 0:
        angle = random.uniform(0, 2 * np.pi)
        mix = 0.5 + 0.5 * np.cos(angle) * (x - 0.5) + 0.5 * np.sin(angle) * (y - 0.5)
    elif kind == 1:
        grain = int(random.integers(3, 12))
        noise = Image.fromarray((random.random((grain, grain)) * 255).astype(np.uint8))
        mix = np.asarray(noise.resize(size, Image.Resampling.BICUBIC)) / 255
    elif kind == 2:
        slope = random.uniform(-1, 1)
        mix = 0.35 + 0.3 * (np.sin((x + slope * y) * random.uniform(15, 60)) > 0)
    elif kind == 3:
        count = int(random.integers(4, 10))
        mix = 0.35 + 0.3 * (((x * count).astype(int) + (y * count).astype(int)) % 2)
    else:
        mix = np.where(y < random.uniform(0.35, 0.65), 0.15 + 0.3 * y, 0.95 - 0.3 * y)
    pixels = first * mix[..., None] + second * (1 - mix[..., None])
    pixels = pixels + random.normal(0, random.uniform(0, 6), (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_scenes(
    folder: Path,
    *,
    sizes: Mapping[str, int] = DEFAULT_SIZES,
    side: int = 256,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Draw a data set of scenes and return its folder.

    Args:
        folder: for images/, annotations.jsonl (train, val, test, open), captions.jsonl (train, val, captions) and
            unlabeled.jsonl (captions: phrases without boxes).
        sizes: scenes per split.
        side: longer side of the images in pixels.
        seed: of all scenes.
        workers: processes that draw; 0 draws in this one. The images are the same.
        progress: called with (scenes drawn, all scenes).

    Raises:
        InputError: the folder contains something else, or cannot be written.
    """
    settings = {"version": VERSION, "sizes": dict(sizes), "side": side, "seed": seed}
    if _is_complete(folder, settings):
        return folder
    build_folder(folder, functools.partial(_write_all, settings=settings, workers=workers, progress=progress))
    _is_complete(folder, settings)  # another process may have drawn other scenes
    return folder


def _is_complete(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a folder contains the scenes of these settings."""
    marker = folder / "scenes.json"
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == settings:
        return True
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} contains something other than these scenes. Choose another folder or delete it.")
    return False


def _write_all(folder: Path, settings: Mapping[str, Any], workers: int, progress: Progress | None) -> None:
    """Draw all scenes into a new folder."""
    (folder / "images").mkdir()
    scenes = [(split, number) for split, count in settings["sizes"].items() for number in range(count)]
    draw = functools.partial(_write_scene, folder, settings["seed"], settings["side"])
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in TEXT_FILES}
    with contextlib.ExitStack() as stack:
        written: Iterable[dict[str, list[dict[str, Any]]]] = map(draw, scenes)
        if workers:
            context = multiprocessing.get_context("spawn")  # a fork is unsafe where the caller has threads
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
            written = pool.map(draw, scenes, chunksize=32)
        for done, lines in enumerate(written, 1):
            for name in lines:
                files[name] += lines[name]
            if progress:
                progress(done, len(scenes))
    for name, content in (files | {"scenes.json": [settings]}).items():
        text = "".join(json.dumps(line) + "\n" for line in content)
        (folder / name).write_text(text, encoding="utf-8")


def _write_scene(folder: Path, seed: int, side: int, place: tuple[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Draw scene (split, number) into a folder; return its lines of each text file."""
    split, number = place
    scene = draw_scene(split, number, seed=seed, side=side)
    stem = f"{split}-{number:05d}"
    name = f"images/{stem}.jpg"
    scene.image.save(folder / name, quality=90)
    lines: dict[str, list[dict[str, Any]]] = {}
    if scene.captions and split in ("train", "captions", "val"):
        captions_split = "val" if split == "val" else "train"
        lines["captions.jsonl"] = [{"image": name, "split": captions_split, "captions": scene.captions}]
    if split == "captions":
        phrases = [phrase.text for phrase in scene.phrases]
        return lines | ({"unlabeled.jsonl": [{"image": name, "phrases": phrases}]} if phrases else {})
    lines["annotations.jsonl"] = []
    for i, phrase in enumerate(scene.phrases):
        target = scene.objects[phrase.target]
        x0, y0, x1, y1 = target.box
        annotation: dict[str, Any] = {
            "image": name,
            "phrase": phrase.text,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "split": split,
        }
        annotation |= {"id": f"{stem}-{i}", "width": scene.image.width, "height": scene.image.height}
        lines["annotations.jsonl"].append(annotation | {"kind": phrase.kind, "name": target.name})
    return lines
