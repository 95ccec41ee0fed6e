"""Perturbations of phrases and images: typing, wording, cameras and compression."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from zlib import crc32

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from epmvg.data.misspell import NEIGHBORS
from epmvg.data.side_words import cased_like, swap_sides
from epmvg.data.synthetic.sprite_library import CLOSE_COLORS

# A perturbation is pure; it returns None, or its input, where there is nothing to change.
PhrasePerturbation = Callable[[str, np.random.Generator], str | None]
ImagePerturbation = Callable[[Image.Image, np.random.Generator], Image.Image | None]


def generator(seed: int, name: str, subject: str) -> np.random.Generator:
    """Return the random generator of one perturbation of one phrase or image, independent of all others."""
    return np.random.default_rng([seed, crc32(name.encode()), crc32(subject.encode("utf-8", "replace"))])


_WORD = re.compile(r"[^\W\d_]{3,}")  # a typo in "a" or "of" would leave nothing of the word
_PALETTE = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
_COLOR = re.compile(rf"\b({'|'.join(_PALETTE)}|gray)\b", re.IGNORECASE)
_ARTICLE = re.compile(r"(a|an|the|this|that|his|her|its|their|one|two|three|another|some)\b", re.IGNORECASE)


def typo(phrase: str, random: np.random.Generator) -> str | None:
    """Make one typo in one word: a neighboring key, a missing letter or a doubled one."""
    words = list(_WORD.finditer(phrase))
    if not words:
        return None
    word = words[int(random.integers(len(words)))]
    place = word.start() + int(random.integers(len(word.group())))
    letter = phrase[place]
    beside = NEIGHBORS.get(letter.lower(), letter)
    typed = [cased_like(letter, beside[int(random.integers(len(beside)))]), "", 2 * letter]
    return phrase[:place] + typed[int(random.integers(len(typed)))] + phrase[place + 1 :]


def shuffle_words(phrase: str, random: np.random.Generator) -> str | None:
    """Put the words into another order."""
    words = phrase.split()
    if len(set(words)) < 2:
        return None
    while True:
        shuffled = [words[i] for i in random.permutation(len(words))]
        if shuffled != words:
            return " ".join(shuffled)


def swap_colors(phrase: str, random: np.random.Generator) -> str:
    """Replace each basic color by another, one that nobody would call by the same word."""

    def other(match: re.Match[str]) -> str:
        own = match.group().lower().replace("gray", "grey")
        apart = [color for color in _PALETTE if color != own and frozenset((color, own)) not in CLOSE_COLORS]
        return cased_like(match.group(), apart[int(random.integers(len(apart)))])

    return _COLOR.sub(other, phrase)


def negate(phrase: str, _: np.random.Generator) -> str:
    """Prefix the phrase with "not"."""
    return f"not {phrase}" if _ARTICLE.match(phrase) else f"not the {phrase}"


def add_noise(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a standard deviation of 60 gray levels."""
    pixels = np.asarray(image, np.float32)
    noise = random.standard_normal(pixels.shape, np.float32) * 60
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def compress(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Save as JPEG with quality 5."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=5)
    return Image.open(file).convert("RGB")


def shrink(image: Image.Image, _: np.random.Generator) -> Image.Image | None:
    """Resize the longer side to 64 pixels; None for an image that is no larger."""
    scale = 64 / max(image.size)
    if scale >= 1:
        return None
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


PHRASE_PERTURBATIONS: dict[str, PhrasePerturbation] = {
    "typo": typo,
    "long prefix": lambda phrase, _: f"what can be seen in this picture here is {phrase}",
    "words shuffled": shuffle_words,
    "colors swapped": swap_colors,
    "sides swapped": lambda phrase, _: swap_sides(phrase),
    "negated": negate,
}
IMAGE_PERTURBATIONS: dict[str, ImagePerturbation] = {
    "blur": lambda image, _: image.filter(ImageFilter.GaussianBlur(0.02 * max(image.size))),
    "noise": add_noise,
    "JPEG": compress,
    "dark": lambda image, _: ImageEnhance.Brightness(image).enhance(0.1),
    "grayscale": lambda image, _: image.convert("L").convert("RGB"),
    "small": shrink,
}
OTHER_BOX = frozenset({"colors swapped", "sides swapped", "negated"})
"""Perturbations after which a phrase means another box."""
