"""A cached teacher answers as the teacher does, asks it once, and loses nothing to crashes or second writers."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError
from epmvg.distill.pretrain import train_teacher
from epmvg.distill.target_cache import AnswerFile, CachedTeacher
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
        made / "captions.jsonl", out, image_tower="resnet10t", text_tower="tiny", side=32, width=16, epochs=1, batch=4
    )
    return out


class Counting(ClipTeacher):
    """A teacher that counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images = self.phrases = 0

    def image(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        self.images += len(image)
        return super().image(image, image_mask)

    def _read(self, phrase: list[str]) -> Tensor:
        self.phrases += len(phrase)
        return super()._read(phrase)


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_answers_are_found_again(tmp_path: Path) -> None:
    vectors = torch.randn(3, 8)
    AnswerFile(tmp_path / "a", "me", 8).add([key(1), key(2), key(3)], vectors)
    again = AnswerFile(tmp_path / "a", "me", 8)
    found = again.find([key(3), key(9), key(1)])
    assert found[1] is None and found[0] is not None and found[2] is not None
    torch.testing.assert_close(torch.stack([found[2], found[0]]), vectors[[0, 2]], atol=1e-3, rtol=1e-3)


def test_a_torn_record_is_cut_off(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a", "me", 8)
    file.add([key(1)], torch.ones(1, 8))
    with file.path.open("ab") as torn:
        torn.write(b"half a record")
    again = AnswerFile(tmp_path / "a", "me", 8)
    assert len(again) == 1
    again.add([key(2)], torch.full((1, 8), 2.0))
    third = AnswerFile(tmp_path / "a", "me", 8)
    assert [None if v is None else v[0].item() for v in third.find([key(1), key(2)])] == [1.0, 2.0]


@pytest.mark.parametrize(("image_index", "width"), [("you", 8), ("me", 9)])
def test_another_s_file_is_refused(tmp_path: Path, image_index: str, width: int) -> None:
    AnswerFile(tmp_path / "a", "me", 8)
    with pytest.raises(InputError, match="another teacher"):
        AnswerFile(tmp_path / "a", image_index, width)


def write_many(path: Path, start: int) -> None:
    file = AnswerFile(path, "me", 4)
    for number in range(start, start + 30):
        file.add([key(number)], torch.full((1, 4), float(number)))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(tmp_path / "a", start)) for start in (0, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = AnswerFile(tmp_path / "a", "me", 4).find([key(n) for n in range(60)])
    assert [int(v[0]) for v in found if v is not None] == list(range(60))


def test_a_cached_teacher_answers_alike_and_asks_once(folder: Path, tmp_path: Path) -> None:
    teacher = Counting(folder)
    image, image_mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    image_mask[0, :16] = True
    phrases = ["a dog", "the cat", "a dog"]
    expected = teacher(image, phrases, image_mask)
    cached = CachedTeacher(teacher, tmp_path)
    for _ in range(2):
        answer = cached(image, phrases, image_mask)
        torch.testing.assert_close(answer.image, expected.image, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(answer.text, expected.text, atol=2e-3, rtol=2e-3)
    assert teacher.images == 4 and (cached.asked, cached.known) == (10, 6)
    later = CachedTeacher(Counting(folder), tmp_path)
    later(image, phrases, image_mask)
    assert isinstance(later.teacher, Counting) and later.teacher.images == 0
    other_hole = image_mask.clone()
    other_hole[1, :8] = True
    later(image, phrases, other_hole)
    assert later.teacher.images == 1


def test_a_photo_is_known_by_its_content(folder: Path, tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    teacher = Counting(folder)
    cached = CachedTeacher(teacher, tmp_path / "answers")
    answers = cached.photos([tmp_path / f"{n}.png" for n in "abc"], [False] * 3)
    assert teacher.images == 2 and torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    Image.new("RGB", (40, 30), "green").save(tmp_path / "a.png")
    CachedTeacher(teacher, tmp_path / "answers").photos([tmp_path / "a.png"], [False])
    assert teacher.images == 3


def test_only_frozen_teachers_are_cached(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frozen"):
        CachedTeacher(ClipTeacher(folder, frozen=False), tmp_path)


def test_training_after_caching_asks_nothing_new(
    squares: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both spellings of every phrase and every photo are there beforehand; a second pass has nothing to do."""
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
        first["answers"] == second["answers"] == 2 * 6 + 4 + 1
    )  # photos and their mirror images, phrases, the swapped one
    train(recipe, tmp_path / "run")
    assert cache_teacher(recipe)["answers"] == first["answers"]


def test_vectors_are_float32_s_whoever_asks_first(folder: Path, tmp_path: Path) -> None:
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


def test_large_vectors_are_kept_and_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a", "me", 3)
    large = torch.tensor([[1e5, -3e20, 2.0], [0.0, 0.0, 0.0], [1e-9, 2e-9, 0.0]])
    file.add([key(1), key(2), key(3)], large)
    found = [vector for vector in file.find([key(1), key(2), key(3)]) if vector is not None]
    for vector, true in zip(found, large, strict=True):
        torch.testing.assert_close(vector, true, atol=1e-3 * true.abs().max().item(), rtol=0)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="NaN or Inf"):
            file.add([key(4), key(5)], torch.tensor([[1.0, 2.0, 3.0], [1.0, wrong, 2.0]]))
    assert len(AnswerFile(tmp_path / "a", "me", 3)) == 3


def test_a_phrase_whose_vector_is_not_finite_is_named_and_not_kept(folder: Path, tmp_path: Path) -> None:
    teacher = ClipTeacher(folder)
    cached = CachedTeacher(teacher, tmp_path)
    good = next(teacher.clip.text.parameters()).clone()
    with torch.no_grad():
        next(teacher.clip.text.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="'a dog' contains NaN"):
        cached.text(["a dog"])
    with torch.no_grad():
        next(teacher.clip.text.parameters()).copy_(good)
    assert len(cached.answers) == 0 and cached.text(["a dog"]).isfinite().all()


def test_a_mirrored_photo_is_kept_beside_the_plain_one(folder: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), "red")
    picture.paste("blue", (0, 0, 15, 30))
    picture.save(tmp_path / "a.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    teacher = Counting(folder)
    cached = CachedTeacher(teacher, tmp_path / "answers")
    for _ in range(2):
        plain, mirrored, other = cached.photos([tmp_path / f"{n}.png" for n in "aab"], [False, True, False])
    assert teacher.images == 3 and not torch.allclose(plain, mirrored, atol=1e-3)
    torch.testing.assert_close(mirrored, other, atol=2e-3, rtol=2e-3)


def test_an_unreadable_photo_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (40, 30), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes(b"torn")
    cached = CachedTeacher(ClipTeacher(folder), tmp_path / "answers")
    photos = [tmp_path / name for name in ("a.png", "torn.png", "no.png", "b.png")]
    built = cached.fill(["red"], photos, mirrored=True)
    assert built["answers"] == 1 + 2 * 2
    assert [Path(fault.split()[0]).name for fault in built["skipped"]] == ["torn.png", "no.png"]
