"""The teacher: training, loading, embeddings, freezing and fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from epmvg.core.types import InputError, TeacherEmbeddings
from epmvg.distill import pretrain
from epmvg.distill.pretrain import _Features, _recall, train_teacher
from epmvg.distill.teacher import ClipTeacher
from epmvg.training.teacher import write_description

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty plain pictures with their colour as caption, in two splits."""
    folder = tmp_path_factory.mktemp("captions")
    rows = []
    for number in range(40):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (48, 40), COLOURS[name]).save(folder / f"{number}.png")
        split = "train" if number < 32 else "val"
        rows.append({"image": f"{number}.png", "split": split, "captions": [f"a {name} wall", f"{name} all over"]})
    file = folder / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def folder(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "made"
    train_teacher(
        captions,
        out,
        image_encoder="resnet10t",
        text_encoder="tiny",
        image_size=32,
        width=16,
        epochs=60,
        batch_size=8,
        lr=1e-2,
    )
    return out


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    image_mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    image_mask[:, :16], image_mask[:, 48:] = True, True
    return image, image_mask


def vectors(answer: TeacherEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
    assert answer.image is not None and answer.text is not None
    return answer.image, answer.text


def test_embeddings_do_not_depend_on_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    here, there = ClipTeacher(folder), ClipTeacher(tmp_path / "moved")
    image, image_mask = batch()
    a, b = (vectors(teacher(image, ["a red wall", "blue"], image_mask)) for teacher in (here, there))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert a[0].shape == (3, 16) and a[1].shape == (2, 16) and here.width == 16
    assert here.fingerprint() == there.fingerprint()


def test_pretraining_learns_colours(captions: Path, folder: Path) -> None:
    """Each colour's caption is nearest to an image of that colour."""
    teacher = ClipTeacher(folder)
    image = torch.stack([torch.tensor(c).view(3, 1, 1).expand(3, 32, 32) / 255 for c in COLOURS.values()])
    seen, read = vectors(teacher(image, [f"a {name} wall" for name in COLOURS]))
    cosine = torch.nn.functional.cosine_similarity(read[:, None], seen[None], dim=-1)
    assert (cosine.argmax(1) == torch.arange(4)).sum() >= 3


def test_a_frozen_teacher_stays_frozen(folder: Path) -> None:
    teacher = ClipTeacher(folder).train()
    assert not any(module.training for module in teacher.modules())
    image, image_mask = batch()
    seen, read = vectors(teacher(image, ["red"], image_mask))
    assert not seen.requires_grad and not read.requires_grad


def test_an_unfrozen_teacher_learns(folder: Path) -> None:
    teacher = ClipTeacher(folder, frozen=False)
    image, image_mask = batch()
    seen, read = vectors(teacher(image, ["red"], image_mask))
    (seen.sum() + read.sum()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in teacher.parameters())


def test_pixels_under_padding_have_no_effect(folder: Path) -> None:
    teacher = ClipTeacher(folder)
    image, image_mask = batch()
    noisy = torch.where(image_mask[:, None], torch.rand_like(image), image)
    torch.testing.assert_close(teacher.image(image, image_mask), teacher.image(noisy, image_mask))


def test_embeddings_do_not_depend_on_the_batch(folder: Path) -> None:
    teacher = ClipTeacher(folder)
    image, _ = batch()
    phrases = ["red", "a long white wall all over", "blue"]
    together = vectors(teacher(image, phrases))
    for i in range(3):
        alone = vectors(teacher(image[i : i + 1], phrases[i : i + 1]))
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[i], part[0], atol=1e-5, rtol=1e-4)


def test_open_clip_configuration_with_random_weights(tmp_path: Path) -> None:
    """A tiny ViT with open_clip's own text transformer, from a configuration file and random weights."""
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "small.json").write_text(json.dumps(config))
    seen, read = vectors(ClipTeacher(tmp_path / "small.json", "random")(batch()[0], ["a cat", "word " * 50]))
    assert seen.shape == (3, 24) and read.shape == (2, 24)


def test_unknown_teachers_are_rejected_with_a_suggestion(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'ViT-B-32'"):
        ClipTeacher("ViT-B32")
    with pytest.raises(InputError, match=r"has no weights 'openia'.*openai"):
        ClipTeacher("ViT-B-32", "openia")
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn" / "open_clip_model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"torn.*cannot be read"):
        ClipTeacher(tmp_path / "torn")
    with pytest.raises(InputError, match=r"has no open_clip_config\.json"):
        ClipTeacher(tmp_path)


@pytest.mark.parametrize("content", ["", "{torn", '{"image": "a.png"}\n', "[]\n"])
def test_unusable_captions_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"captions\.jsonl"):
        train_teacher(tmp_path / "captions.jsonl", tmp_path / "out", text_encoder="tiny", image_encoder="resnet10t")
    assert not (tmp_path / "out").exists()


def test_a_finished_teacher_is_not_overwritten(captions: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        train_teacher(captions, folder)


def test_fingerprint_depends_on_everything_that_changes_embeddings(tmp_path: Path) -> None:
    """The same weights with another activation, number of heads, preprocessing, or context length."""
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    plain = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    weights = tmp_path / "w.pt"
    torch.save(open_clip.CLIP(**plain).state_dict(), weights)
    variants: dict[str, dict[str, Any]] = {
        "plain": plain,
        "quick": plain | {"quick_gelu": True},
        "heads of images": plain | {"vision_cfg": vision | {"head_width": 8}},
        "heads of texts": plain | {"text_cfg": text | {"heads": 4}},
        "pooling": plain | {"vision_cfg": vision | {"pool_type": "avg"}},
        "mean": plain | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}},
        "interpolation": plain | {"preprocess_cfg": {"interpolation": "bilinear"}},
        "mode": plain | {"preprocess_cfg": {"resize_mode": "squash"}},
        "words": plain | {"text_cfg": text | {"tokenizer_kwargs": {"clean": "canonicalize"}}},
    }
    found = {}
    for name, config in variants.items():
        (tmp_path / "c.json").write_text(json.dumps(config))
        found[name] = ClipTeacher(tmp_path / "c.json", weights).fingerprint()
    (tmp_path / "c.json").write_text(json.dumps(plain))
    assert len(set(found.values())) == len(found)
    changed = ClipTeacher(tmp_path / "c.json", weights)
    assert changed.fingerprint() == found["plain"]
    before = changed.text(["a dog"]).clone()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(2)
    assert changed.fingerprint() != found["plain"] and not torch.equal(changed.text(["a dog"]), before)


def test_run_folder_names_its_teacher(folder: Path, tmp_path: Path) -> None:
    write_description(ClipTeacher(folder), tmp_path)
    said = json.loads((tmp_path / "teacher.json").read_text())
    assert said["activation"] == "GELU" and said["preprocess"]["resize_mode"] == "longest"
    assert said["preprocess"]["mean"] == [0.5] * 3 and said["tokenizer"]["context_length"] == 64
    assert said["fingerprint"] == ClipTeacher(folder).fingerprint() and said["teacher"].startswith(str(folder))


def rows_of(folder: Path, count: int, **more: Any) -> Path:
    rows = []
    for number in range(count):
        Image.new("RGB", (20, 16), (20 * number, 0, 90)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "split": "val" if number % 2 else "train", "captions": [f"no {number}"]})
    rows += [more] if more else []
    file = folder / "c.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


SMALL: dict[str, Any] = {
    "image_encoder": "resnet10t",
    "text_encoder": "tiny",
    "image_size": 32,
    "width": 8,
    "epochs": 1,
    "batch_size": 2,
}


def test_unreadable_image_is_skipped_and_counted(tmp_path: Path) -> None:
    """And a caption may hold any character; the caller's random numbers stay as they were."""
    file = rows_of(tmp_path, 6, image="gone.png", split="train", captions=["a\u2028b\x85c"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    metrics = train_teacher(file, tmp_path / "out", **SMALL)
    assert torch.equal(torch.rand(3), expected)
    assert (metrics.images, metrics.captions, metrics.skipped) == (3, 3, 1)
    assert "gone.png" in json.loads((tmp_path / "out" / "teacher.json").read_text())["skipped"][0]
    assert ClipTeacher(tmp_path / "out").width == 8
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert len(set(modes.values())) == 1, modes  # weights are readable by whoever may read the rest


def test_failed_pretraining_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rows_of(tmp_path, 6)
    for number in (2, 4):
        (tmp_path / f"{number}.png").write_bytes(b"torn")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"1 captioned images of split 'train'.*2\.png"):
        train_teacher(file, tmp_path / "out", **SMALL)
    monkeypatch.setattr(pretrain, "_encode_images", lambda _, image_size: torch.full((len(image_size), 512), torch.nan))
    with pytest.raises(InputError, match=r"became NaN or Inf in epoch 1: lower lr=0\.001"):
        train_teacher(rows_of(tmp_path, 6), tmp_path / "out", **SMALL)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("fill", [float("nan"), 0.0])
def test_constant_or_nan_embeddings_have_no_recall(fill: float) -> None:
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    heads = nn.ModuleList(layers)
    table = _Features(torch.rand(50, 4), torch.rand(50, 4), [[number] for number in range(50)])
    for head in layers:
        nn.init.eye_(head.weight)
        nn.init.zeros_(head.bias)
    same = _Features(table.images, table.images, table.captions)
    assert _recall(heads, same)[0] > 0.9
    with torch.no_grad():
        for head in layers:
            head.weight.fill_(fill)
            head.bias.fill_(1.0)
    assert _recall(heads, table) == (0.0, 0.0)
