"""Dense distillation: patch embeddings are in the text space, and aligned with the student's input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from epmvg.config.settings import AugmentSettings
from epmvg.core.types import Batch, GroundingOutput, InputError, Sample, SimilarityMap
from epmvg.data.loader import GroundingLoader
from epmvg.distill import teacher as teacher_module
from epmvg.distill.losses import dense_loss, resample, tokens_within
from epmvg.distill.target_cache import CachedTeacher
from epmvg.distill.targets import DistillationTargets
from epmvg.distill.teacher import ClipTeacher
from epmvg.models.factory import create_model

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
ENCODERS = {
    "class token": VIT,
    "fine": VIT | {"patch_size": 4},
    "average": VIT | {"pool_type": "avg"},
    "norm last": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
    "timm map": {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "timm transformer": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
}


def teacher_of(
    encoder: str,
    folder: Path,
    *,
    kind: type[ClipTeacher] = ClipTeacher,
    mode: str = "shortest",
) -> ClipTeacher:
    torch.manual_seed(0)
    config = {"embed_dim": 24, "vision_cfg": ENCODERS[encoder], "text_cfg": TEXT}
    config |= {"preprocess_cfg": {"resize_mode": mode, "fill_color": 128}}
    (folder / "teacher.json").write_text(json.dumps(config))
    return kind(folder / "teacher.json", "random")


@pytest.mark.parametrize("encoder", ["class token", "average", "timm map"])
def test_patches_are_projected_as_the_whole_is(encoder: str, tmp_path: Path) -> None:
    """Averages of patches are the average's vector; beside a class token they are what open_clip calls its tokens."""
    teacher = teacher_of(encoder, tmp_path)
    image = torch.rand(2, 3, 64, 64)
    tokens = teacher.tokens(image)
    rows, columns = teacher.grid
    assert tokens.shape == (2, 1 + rows * columns, teacher.width) == (2, 1 + rows * columns, 24)
    torch.testing.assert_close(tokens[:, 0], teacher.image(image), atol=1e-5, rtol=1e-4)
    if encoder == "class token":
        teacher.clip.visual.output_tokens = True
        _, patches = teacher.clip.visual((image - teacher.mean) / teacher.std)
        torch.testing.assert_close(tokens[:, 1:], patches @ teacher.clip.visual.proj, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(tokens[:, 1:].mean(1), tokens[:, 0], atol=1e-5, rtol=1e-4)


def test_norm_after_pooling_is_applied_to_each_patch(tmp_path: Path) -> None:
    """An image of equal patches, without positions, equals each of its patches."""
    teacher = teacher_of("norm last", tmp_path)
    with torch.no_grad():
        teacher.clip.visual.positional_embedding.zero_()
    tokens = teacher.tokens(torch.rand(1, 3, 16, 16).repeat(1, 1, 4, 4))
    torch.testing.assert_close(tokens[:, 1:], tokens[:, :1].expand(-1, 16, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["resnet", "timm transformer"])
def test_encoder_without_such_patches_is_rejected(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set distill\.dense_weight=0"):
        DistillationTargets(teacher_of(encoder, tmp_path), dense=True)


PHRASES = ["the red thing on the left", "green"]
MIRRORED = ["the red thing on the right", "green"]


class ColorTeacher(ClipTeacher):
    """A teacher whose patch embeddings are the colors of the patches, and whose text embeddings are red or green."""

    embedded: tuple[str, ...] = ()

    def text(self, phrases: list[str]) -> Tensor:
        self.embedded += tuple(phrases)
        return torch.stack([F.one_hot(torch.tensor(2 * ("green" in phrase)), 24).float() for phrase in phrases])


def color_embeddings(clip: object, pixels: Tensor, *, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 whose cosines with the two text embeddings are red and green, over the root of 2."""
    color = F.avg_pool2d(pixels * std + mean, 4)[:, :2]  # [I, 2, h, w]
    parts = torch.stack([color, (1 - color.square()).clamp(min=0).sqrt()], 2).flatten(1, 2) / 2**0.5
    vectors = F.pad(parts.permute(0, 2, 3, 1), (0, 20))
    return vectors.mean((1, 2)), vectors


def batches(photo: Path, views: int) -> list[Batch]:
    """Training inputs of a wide image: flipped, cropped, scaled and moved."""
    student = create_model("tiny-resnet")
    rows = [Sample(photo, phrase, (60.0, 30.0, 100.0, 60.0)) for phrase in PHRASES]
    augment = AugmentSettings(
        horizontal_flip=0.5, crop=0.7, min_crop=0.5, min_visible=0.1, scale=0.8, translate=1.0, color_jitter=0
    )
    loader = GroundingLoader(rows, student.tokenize, image_size=128, augment=augment, seed=3)
    return [next(loader.batches(epoch)) for epoch in range(views)]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("teacher_input", ["image", "letterboxed"])
def test_map_is_aligned_with_the_input_of_the_student(
    teacher_input: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The colors of the image encode positions: the map at a token is the color of the student's input there.

    Where the student's input is mirrored, so are the teacher's image and phrases.
    """
    x, y = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 90))
    photo = tmp_path / "photo.png"
    Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8)).save(photo)
    teacher = teacher_of("fine", tmp_path, kind=ColorTeacher, mode=mode)
    assert isinstance(teacher, ColorTeacher)

    def patch_embeddings(clip: object, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return color_embeddings(clip, pixels, mean=teacher.mean, std=teacher.std)

    monkeypatch.setattr(teacher_module, "patch_embeddings", patch_embeddings)
    from_files = teacher_input == "image"
    targets = DistillationTargets(
        CachedTeacher(teacher, tmp_path) if from_files else teacher, from_files=from_files, embeddings=(), dense=True
    )
    flips = 0
    for batch in batches(photo, 8):
        embeddings = targets(batch)
        similarity = embeddings.similarity
        assert embeddings.image is None and embeddings.text is None and similarity is not None
        resampled = resample(similarity, (16, 16)).view(2, 16, 16) / teacher.scale * 2**0.5
        shown = F.avg_pool2d(batch.images, 8)[0, :2]
        content = F.avg_pool2d((~batch.image_mask).float(), 8)[0] == 1
        content &= tokens_within(similarity.grid_box, (16, 16))[0].view(16, 16)
        assert content.any()
        # At an edge nothing is interpolated: half a patch of an image that is some 6 patches high.
        assert (resampled - shown).abs()[:, content].max() < 0.13
        assert (resampled - shown).abs()[:, content].mean() < 0.03
        flips += batch.letterboxes[0].flip
    assert 0 < flips < 8
    assert set(teacher.embedded) == set(PHRASES + MIRRORED)


def test_area_outside_the_teacher_s_crop_has_no_target() -> None:
    """Tokens outside the grid box change nothing, and a phrase whose grid box is outside the input has no term."""
    grid_box = torch.tensor([[0.25, 0.0, 0.75, 1.0], [1.5, 0.0, 2.0, 1.0]])
    teacher = SimilarityMap(torch.randn(2, 4, 4), torch.ones(2, 4, 4), grid_box)

    def loss_of(similarity: Tensor, count: int) -> Tensor:
        part = SimilarityMap(teacher.logits[:count], teacher.content[:count], grid_box[:count])
        none = torch.zeros(count, 4)
        output = GroundingOutput(none, none, none, torch.arange(count), similarity=similarity[:count], grid=(4, 4))
        return dense_loss(output, part)

    logits = torch.randn(2, 16, requires_grad=True)
    other = logits.detach().clone().view(2, 4, 4)
    other[:, :, [0, 3]] = 9.0
    assert loss_of(logits, 1) > 0
    torch.testing.assert_close(loss_of(other.flatten(1), 1), loss_of(logits, 1))
    torch.testing.assert_close(loss_of(logits, 2), loss_of(logits, 1))
    loss_of(logits, 2).backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[1].abs().sum() == 0
