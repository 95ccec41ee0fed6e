"""Drawn scenes: objects with plain names on varied backgrounds, phrases that are true by construction, captions.

For the demo, the tests and the first lesson, where no data set can be downloaded. Every scene is a pure function of
(seed, split, number), so asking for more scenes never changes the earlier ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from epmvg.core.files import disk_errors, temporary_path
from epmvg.core.types import Box, InputError, Progress
from epmvg.data.synthetic.phrases import Phrase, Thing, captions_of, phrases_of
from epmvg.data.synthetic.sprite_library import Sprite, load_sprites, sprite_picture

DEFAULT_SIZES = {"train": 4000, "val": 250, "test": 400, "open": 300, "captions": 1500}
"""Scenes a split. `open` asks for names that only captions have shown; `captions` scenes carry no phrases."""

HELD_OUT_SHARE = 0.12
"""Of the names: known to a teacher through captions, never grounded in train, val or test."""

VERSION = 1
PHRASES = 6  # asked of one scene at most, two of one object
SIZES = (0.14, 0.40)  # an object's longer side, as a share of the picture's
OVERLAP = 0.12  # of the smaller of two objects at most: everything stays recognisable


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture with its objects, what is asked about them, and two captions."""

    image: Image.Image
    things: list[Thing]
    phrases: list[Phrase]
    captions: list[str]


def held_out_names(seed: int = 0) -> set[str]:
    """Return the names that no grounding scene but `open` shows, for a seed."""
    names = sorted(load_sprites())
    random = np.random.default_rng([seed, 1])
    return set(random.choice(names, round(HELD_OUT_SHARE * len(names)), replace=False).tolist())


def draw_scene(split: str, number: int, *, seed: int = 0, side: int = 256) -> Scene:
    """Draw scene `number` of a split; the longer side of the picture is `side` pixels."""
    random = np.random.default_rng([seed, zlib.crc32(split.encode()), number])
    size = (side, int(side * random.uniform(0.72, 1.0)))
    if random.random() < 0.3:
        size = size[::-1]
    image = _background(size, random)
    things: list[Thing] = []
    for sprite, colour in _cast(split, seed, random):
        thing = _place(image, sprite, colour, things, random)
        if thing is not None:
            things.append(thing)
    phrases = _choose(phrases_of(things, size), random)
    if split == "open":
        secret = held_out_names(seed)
        phrases = [phrase for phrase in phrases if things[phrase.target].name in secret]
    order = random.permutation(len(things)).tolist()
    return Scene(image, things, phrases, captions_of(things, size, order) if len(things) > 1 else [])


def sample_scene(seed: int = 0) -> Image.Image:
    """Draw one scene, for a picture in a document."""
    return draw_scene("sample", 0, seed=seed, side=512).image


def _cast(split: str, seed: int, random: np.random.Generator) -> list[tuple[Sprite, str | None]]:
    """Choose what a scene shows: often two or three of one kind, and no two kinds that look alike."""
    sprites = load_sprites()
    secret = held_out_names(seed)
    everyone = sorted(sprites)
    pool = everyone if split == "captions" else [name for name in everyone if name not in secret]
    names = [str(name) for name in random.permutation(pool)[:8]]
    if split == "open":
        names.insert(0, str(random.choice(sorted(secret))))
    kinds: list[Sprite] = []
    for name in names:
        sprite = sprites[name]
        if not any(_alike(sprite, other) for other in kinds):
            kinds.append(sprite)
    counts = [1] * int(random.integers(2, 5))
    if random.random() < 0.75:
        counts[0] = 2 + int(random.random() < 0.25)
    members = [sprite for sprite, count in zip(kinds, counts, strict=False) for _ in range(count)]
    return [(sprite, _colour(sprite, random)) for sprite in members]


def _alike(a: Sprite, b: Sprite) -> bool:
    """Kinds that people might confuse, by look or by name, share no scene."""
    return bool({a.name, a.alike} & {b.name, b.alike} - {None}) or a.name in b.name or b.name in a.name


def _colour(sprite: Sprite, random: np.random.Generator) -> str | None:
    """Keep a sprite's own colour or turn it to one of its tints."""
    return str(random.choice(sprite.tints)) if sprite.tints and random.random() < 0.6 else None


def _place(
    image: Image.Image, sprite: Sprite, colour: str | None, things: Sequence[Thing], random: np.random.Generator
) -> Thing | None:
    """Paste a sprite where it hides little; None if there is no room."""
    picture = sprite_picture(sprite.name, colour)
    for _ in range(12):
        length = max(image.size) * random.uniform(*SIZES)
        scale = length / max(picture.size)
        width, height = (max(8, round(edge * scale)) for edge in picture.size)
        if width >= image.width or height >= image.height:
            continue
        x, y = int(random.integers(0, image.width - width)), int(random.integers(0, image.height - height))
        box = (float(x), float(y), float(x + width), float(y + height))
        if all(_overlap(box, other.box) <= OVERLAP for other in things):
            laid = picture.resize((width, height), Image.Resampling.BILINEAR)
            image.paste(laid, (x, y), laid)
            return Thing(sprite.name, colour or sprite.colour, box)
    return None


def _overlap(a: Box, b: Box) -> float:
    """Share of the smaller box that the other covers."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0.0, across) * max(0.0, down) / smaller


def _choose(phrases: Sequence[Phrase], random: np.random.Generator) -> list[Phrase]:
    """Pick what is asked: at most two phrases an object, the rarer kinds first."""
    rarity = {"size": 0, "colour": 1, "place": 2, "relation": 3, "name": 4}
    rank = [rarity[phrase.kind] + 3 * random.random() for phrase in phrases]
    chosen: list[Phrase] = []
    for number in np.argsort(rank):
        phrase = phrases[int(number)]
        if sum(other.target == phrase.target for other in chosen) < 2 and len(chosen) < PHRASES:
            chosen.append(phrase)
    return chosen


def _background(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Paint a quiet background: a gradient, soft noise, stripes, tiles or a floor under a sky."""
    one, two = (random.uniform(90, 245, 3) for _ in range(2))
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
    pixels = (
        one * mix[..., None] + two * (1 - mix[..., None]) + random.normal(0, random.uniform(0, 6), (height, width, 1))
    )
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
        folder: gets images/, annotations.jsonl (train, val, test, open) and captions.jsonl (train, val).
        sizes: scenes a split; side: of the pictures, pixels; seed: of everything.
        workers: processes that draw; 0 draws here. The pictures are the same.
        progress: called with (scenes drawn, all of them).

    Raises:
        InputError: the folder holds something else.
    """
    settings = {"version": VERSION, "sizes": dict(sizes), "side": side, "seed": seed}
    if _holds(folder, settings):
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if _holds(folder, settings):  # another process has drawn them meanwhile
                return folder
            temporary = temporary_path(folder)
            try:
                _draw_all(temporary, settings, workers, progress)
                if folder.exists():
                    folder.rmdir()
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _holds(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Say whether a folder holds the scenes of these settings.

    Raises:
        InputError: it holds something else.
    """
    marker = folder / "scenes.json"
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == settings:
        return True
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} holds something other than these scenes: choose another folder or delete it.")
    return False


def _draw_all(folder: Path, settings: Mapping[str, Any], workers: int, progress: Progress | None) -> None:
    """Draw all scenes and write their files into a new folder."""
    (folder / "images").mkdir(parents=True)
    asked = [(split, number) for split, count in settings["sizes"].items() for number in range(count)]
    draw = functools.partial(_draw_to, folder, settings["seed"], settings["side"])
    rows: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        drawn: Iterable[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = map(draw, asked)
        if workers:
            context = multiprocessing.get_context("spawn")  # the caller may hold threads, which a fork would tear
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
            drawn = pool.map(draw, asked, chunksize=32)
        for done, (own_rows, own_captions) in enumerate(drawn, 1):
            rows += own_rows
            captions += own_captions
            if progress:
                progress(done, len(asked))
    for file, content in (("annotations.jsonl", rows), ("captions.jsonl", captions)):
        with (folder / file).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in content)
    (folder / "scenes.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def _draw_to(
    folder: Path, seed: int, side: int, asked: tuple[str, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draw one scene into a folder; return its rows and its captions."""
    split, number = asked
    scene = draw_scene(split, number, seed=seed, side=side)
    name = f"images/{split}-{number:05d}.jpg"
    scene.image.save(folder / name, quality=90)
    captions = []
    if scene.captions and split in ("train", "captions", "val"):
        captions = [{"image": name, "split": "val" if split == "val" else "train", "captions": scene.captions}]
    return [] if split == "captions" else _rows(scene, name, split), captions


def _rows(scene: Scene, name: str, split: str) -> list[dict[str, Any]]:
    rows = []
    for number, phrase in enumerate(scene.phrases):
        thing = scene.things[phrase.target]
        x0, y0, x1, y1 = thing.box
        rows.append(
            {
                "image": name,
                "phrase": phrase.text,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "split": split,
                "id": f"{Path(name).stem}-{number}",
                "width": scene.image.width,
                "height": scene.image.height,
                "kind": phrase.kind,
                "name": thing.name,
            }
        )
    return rows
