"""The teacher: embeddings, freezing, fingerprint and description."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clips import CONFIG, write_clip

from epmvg.core.types import InputError, TeacherEmbeddings
from epmvg.distill.teacher import ClipTeacher
from epmvg.training.teacher import write_description


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("teacher") / "clip")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    image_mask = torch.zeros(3, 64, 64, dtype=torch.bool)
    image_mask[:, :16], image_mask[:, 48:] = True, True
    return image, image_mask


def vectors(embeddings: TeacherEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
    assert embeddings.image is not None and embeddings.text is not None
    return embeddings.image, embeddings.text


def test_embeddings_do_not_depend_on_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    here, there = ClipTeacher(folder), ClipTeacher(tmp_path / "moved")
    image, image_mask = batch()
    a, b = (vectors(teacher(image, ["a red wall", "blue"], image_mask)) for teacher in (here, there))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert a[0].shape == (3, 24) and a[1].shape == (2, 24) and here.width == 24
    assert here.fingerprint() == there.fingerprint()


def test_a_frozen_teacher_stays_frozen(folder: Path) -> None:
    teacher = ClipTeacher(folder).train()
    assert not any(module.training for module in teacher.modules())
    image, image_mask = batch()
    image_embedding, text_embedding = vectors(teacher(image, ["red"], image_mask))
    assert not image_embedding.requires_grad and not text_embedding.requires_grad


def test_an_unfrozen_teacher_learns(folder: Path) -> None:
    teacher = ClipTeacher(folder, frozen=False)
    image, image_mask = batch()
    image_embedding, text_embedding = vectors(teacher(image, ["red"], image_mask))
    (image_embedding.sum() + text_embedding.sum()).backward()
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


def test_unknown_teachers_are_rejected_with_a_suggestion(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'ViT-B-32'"):
        ClipTeacher("ViT-B32")
    with pytest.raises(InputError, match=r"has no weights 'openia'.*openai"):
        ClipTeacher("ViT-B-32", "openia")
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn" / "open_clip_model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"torn.*cannot be read"):
        ClipTeacher(tmp_path / "torn")
    with pytest.raises(InputError, match=r"is not a teacher. Give a folder with open_clip_config\.json"):
        ClipTeacher(tmp_path)


def test_fingerprint_depends_on_everything_that_changes_embeddings(tmp_path: Path) -> None:
    """The same weights with another activation, number of heads, preprocessing, or context length."""
    plain, text, vision = CONFIG, CONFIG["text_cfg"], CONFIG["vision_cfg"]
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
        "tokenizer": plain | {"text_cfg": text | {"tokenizer_kwargs": {"clean": "canonicalize"}}},
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
    description = json.loads((tmp_path / "teacher.json").read_text())
    assert description["activation"] == "GELU" and description["preprocess"]["resize_mode"] == "shortest"
    assert description["tokenizer"]["context_length"] == 12
    assert description["fingerprint"] == ClipTeacher(folder).fingerprint()
    assert description["teacher"].startswith(str(folder))
