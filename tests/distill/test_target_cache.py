"""A cached teacher returns the teacher's embeddings and computes each of them once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from clips import write_clip
from PIL import Image
from torch import Tensor

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.targets import DistillationTargets
from epmvg.distill.teacher import ClipTeacher
from epmvg.training import cache_teacher, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("teacher") / "clip")


class Counting(ClipTeacher):
    """A teacher that counts what it encodes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images = self.phrases = 0

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        self.images += len(image)
        return super().image(image, image_mask)

    def text(self, phrases: list[str]) -> Tensor:
        self.phrases += len(phrases)
        return super().text(phrases)


def test_phrases_are_embedded_once(folder: Path, tmp_path: Path) -> None:
    teacher, phrases = Counting(folder), ["a dog", "the cat", "a dog"]
    expected = ClipTeacher(folder).text(phrases)
    for _ in range(2):
        torch.testing.assert_close(CachedTeacher(teacher, tmp_path).text(phrases), expected)
    assert teacher.phrases == 2


def test_image_file_is_found_by_its_content(folder: Path, tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{name}.png")
    teacher = Counting(folder)
    cached = CachedTeacher(teacher, tmp_path / "cache")
    embeddings = cached.image_files([tmp_path / f"{n}.png" for n in "abc"], [False] * 3)
    assert teacher.images == 2 and torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])
    Image.new("RGB", (40, 30), "green").save(tmp_path / "a.png")
    CachedTeacher(teacher, tmp_path / "cache").image_files([tmp_path / "a.png"], [False])
    assert teacher.images == 3


def test_training_after_caching_computes_nothing_new(
    squares: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phrases with and without swapped sides and all images are cached; a second pass computes nothing."""
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    squares.write_text(squares.read_text().replace("the red square", "the red square on the left"))
    recipe = Recipe.load(
        "scenes",
        f"data.name={squares}",
        "model=tiny-resnet",
        "model.pretrained=false",
        "data.augment={horizontal_flip: 0.5}",
        "train.cache_features=false",
        "train.epochs=2",
        "train.warmup_steps=0",
        f"distill={folder}",
        "distill.dense_weight=0",
    )
    first, second = cache_teacher(recipe), cache_teacher(recipe)
    # images and their mirror images, phrases, the swapped one
    assert first["embeddings"] == second["embeddings"] == 2 * 6 + 4 + 1
    train(recipe, tmp_path / "run")
    assert cache_teacher(recipe)["embeddings"] == first["embeddings"]


def test_embeddings_do_not_depend_on_autocast(folder: Path, tmp_path: Path) -> None:
    image, phrases = torch.rand(2, 3, 32, 32), ["a dog", "red 3"]
    expected = ClipTeacher(folder)(image, phrases)
    assert expected.image is not None and expected.text is not None
    with torch.autocast("cpu", torch.bfloat16):
        computed = ClipTeacher(folder)(image, phrases)
        cached = CachedTeacher(ClipTeacher(folder), tmp_path).text(phrases)
    torch.testing.assert_close(computed.image, expected.image)
    for text in (computed.text, cached):
        torch.testing.assert_close(text, expected.text)


def test_phrase_with_nan_embedding_is_named_and_not_cached(folder: Path, tmp_path: Path) -> None:
    teacher = ClipTeacher(folder)
    cached = CachedTeacher(teacher, tmp_path)
    weights = teacher.clip.token_embedding.weight.clone()
    with torch.no_grad():
        teacher.clip.token_embedding.weight.fill_(torch.nan)
        with pytest.raises(InputError, match="'a dog' contains NaN"):
            cached.text(["a dog"])
        teacher.clip.token_embedding.weight.copy_(weights)
    assert len(cached.cache) == 0 and cached.text(["a dog"]).isfinite().all()


def test_mirrored_image_is_cached_separately(folder: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), "red")
    image.paste("blue", (0, 0, 15, 40))
    image.save(tmp_path / "a.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    teacher = Counting(folder)
    cached = CachedTeacher(teacher, tmp_path / "cache")
    for _ in range(2):
        plain, mirrored, other = cached.image_files([tmp_path / f"{n}.png" for n in "aab"], [False, True, False])
    assert teacher.images == 3 and not torch.allclose(plain, mirrored, atol=1e-3)
    torch.testing.assert_close(mirrored, other, atol=2e-3, rtol=2e-3)


def test_unreadable_image_is_skipped_and_named(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (40, 30), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    cached = CachedTeacher(ClipTeacher(folder), tmp_path / "cache")
    images = [tmp_path / name for name in ("a.png", "torn.png", "no.png", "b.png")]
    skipped = cached.precompute(["red"], images, mirrored=True)
    assert len(cached.cache) == 1 + 2 * 2
    assert [Path(error.split()[0]).name for error in skipped] == ["torn.png", "no.png"]


def test_a_letterboxed_input_is_the_students_and_has_its_phrases(folder: Path) -> None:
    """x0 of sec. 3.2: the image as the student sees it, cropped and flipped, and the phrase with swapped sides."""
    teacher = ClipTeacher(folder)
    images, padding = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    padding[:, :, 50:] = True
    batch = SimpleNamespace(images=images, image_mask=padding, phrases=["the left dog", "a cat"])
    targets = DistillationTargets(CachedTeacher(teacher, folder.parent / "cache"))(cast(Any, batch))
    assert targets.image is not None and targets.text is not None
    torch.testing.assert_close(targets.image, teacher.image(images, padding))
    torch.testing.assert_close(targets.text, teacher.text(batch.phrases))
