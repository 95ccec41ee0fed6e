"""A cached teacher returns the teacher's embeddings and computes each of them once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.distill.pretrain import train_teacher
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.teacher import ClipTeacher
from epmvg.training import cache_teacher, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 32 px, hardly trained."""
    made = tmp_path_factory.mktemp("teacher")
    for number in range(10):
        Image.new("RGB", (40, 30), (25 * number, 0, 0)).save(made / f"{number}.png")
    rows = [{"image": f"{n}.png", "split": "val" if n > 7 else "train", "captions": [f"red {n}"]} for n in range(10)]
    (made / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = made / "out"
    train_teacher(
        made / "captions.jsonl",
        out,
        image_encoder="resnet10t",
        text_encoder="tiny",
        image_size=32,
        width=16,
        epochs=1,
        batch_size=4,
    )
    return out


class Counting(ClipTeacher):
    """A teacher that counts what it encodes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images = self.phrases = 0

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        self.images += len(image)
        return super().image(image, image_mask)

    def _encode_text(self, phrase: list[str]) -> Tensor:
        self.phrases += len(phrase)
        return super()._encode_text(phrase)


def test_cached_teacher_returns_equal_embeddings_and_computes_once(folder: Path, tmp_path: Path) -> None:
    teacher = Counting(folder)
    image, image_mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    image_mask[0, :16] = True
    phrases = ["a dog", "the cat", "a dog"]
    expected = teacher(image, phrases, image_mask)
    cached = CachedTeacher(teacher, tmp_path)
    for _ in range(2):
        answer = cached(image, phrases, image_mask)
        torch.testing.assert_close(answer.image, expected.image, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(answer.text, expected.text, atol=2e-3, rtol=2e-3)
    assert teacher.images == 4
    later = CachedTeacher(Counting(folder), tmp_path)
    later(image, phrases, image_mask)
    assert isinstance(later.teacher, Counting) and later.teacher.images == 0
    other_hole = image_mask.clone()
    other_hole[1, :8] = True
    later(image, phrases, other_hole)
    assert later.teacher.images == 1


def test_image_file_is_found_by_its_content(folder: Path, tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    teacher = Counting(folder)
    cached = CachedTeacher(teacher, tmp_path / "cache")
    answers = cached.image_files([tmp_path / f"{n}.png" for n in "abc"], [False] * 3)
    assert teacher.images == 2 and torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    Image.new("RGB", (40, 30), "green").save(tmp_path / "a.png")
    CachedTeacher(teacher, tmp_path / "cache").image_files([tmp_path / "a.png"], [False])
    assert teacher.images == 3


def test_only_frozen_teachers_are_cached(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frozen"):
        CachedTeacher(ClipTeacher(folder, frozen=False), tmp_path)


def test_training_after_caching_computes_nothing_new(
    squares: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phrases with and without swapped sides and all images are cached; a second pass computes nothing."""
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    rows = squares.read_text().replace("the red square", "the red square on the left")
    squares.write_text(rows)
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
    assert (
        first["embeddings"] == second["embeddings"] == 2 * 6 + 4 + 1
    )  # photos and their mirror images, phrases, the swapped one
    train(recipe, tmp_path / "run")
    assert cache_teacher(recipe)["embeddings"] == first["embeddings"]


def test_embeddings_are_float32_under_autocast(folder: Path, tmp_path: Path) -> None:
    """Autocast around a frozen teacher changes nothing, so what is kept does not depend on the run that kept it."""
    image, phrases = torch.rand(2, 3, 32, 32), ["a dog", "red 3"]
    expected = ClipTeacher(folder)(image, phrases)
    cached = CachedTeacher(ClipTeacher(folder), tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        inside = cached(image, phrases), ClipTeacher(folder)(image, phrases)
    for answer in (*inside, cached(image, phrases)):
        for own, true in ((answer.image, expected.image), (answer.text, expected.text)):
            assert own is not None and true is not None and own.dtype == torch.float32
            torch.testing.assert_close(own, true, atol=1e-3 * true.abs().max().item(), rtol=0)


def test_phrase_with_nan_embedding_is_named_and_not_cached(folder: Path, tmp_path: Path) -> None:
    teacher = ClipTeacher(folder)
    cached = CachedTeacher(teacher, tmp_path)
    good = next(teacher.clip.text.parameters()).clone()
    with torch.no_grad():
        next(teacher.clip.text.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="'a dog' contains NaN"):
        cached.text(["a dog"])
    with torch.no_grad():
        next(teacher.clip.text.parameters()).copy_(good)
    assert len(cached.cache) == 0 and cached.text(["a dog"]).isfinite().all()


def test_mirrored_image_is_cached_separately(folder: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (0, 0, 15, 30))
    picture.save(tmp_path / "a.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
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
    photos = [tmp_path / name for name in ("a.png", "torn.png", "no.png", "b.png")]
    built = cached.precompute(["red"], photos, mirrored=True)
    assert built["embeddings"] == 1 + 2 * 2
    assert [Path(fault.split()[0]).name for fault in built["skipped"]] == ["torn.png", "no.png"]
