"""What a teacher's image tower sees place by place, in the space of its sentence vectors.

A patch is projected exactly as the pooled vector is, so its cosine with a sentence says how much the sentence is there.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from epmvg.core.types import InputError
from epmvg.distill.transformers_clip import TransformersClip


def patch_vectors(clip: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode normalised pixels [I, 3, H, W] once.

    Args:
        clip: an open_clip model whose image tower is a vision transformer, or a timm network whose feature map
            [I, C, h, w] is pooled; or transformers' CLIPModel.

    Returns:
        The pooled vector [I, E] and that of each patch [I, h, w, E].

    Raises:
        InputError: this tower's patches are not projected as its pooled vector is.
    """
    if isinstance(clip, TransformersClip):
        found = clip.patches(pixels)
        if found is not None:
            return found
    tower = getattr(clip, "visual", None)
    if isinstance(tower, VisionTransformer) and tower.attn_pool is None:
        return _of_transformer(tower, pixels)
    if isinstance(tower, TimmModel) and not hasattr(tower.head, "pool"):
        maps = tower.trunk.forward_features(pixels)
        if maps.ndim == 4 and maps.shape[1] == tower.trunk.num_features:
            return _of_map(tower, maps)
    raise InputError(
        "distill.dense_weight: this teacher's image tower has no patch vectors in the space of its sentences: "
        "take a CLIP with a ViT or a teacher that `epmvg teacher train` wrote, or set distill.dense_weight=0."
    )


def _of_transformer(tower: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    seen = tower.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
    patches = seen["image_intermediates"][0] @ tower.proj  # [I, h * w, E]
    return seen["image_features"], patches.unflatten(1, tower.grid_size)


def _of_map(tower: Any, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Let the trunk pool the whole map, and each place of it as a map of one place."""
    images, _, rows, columns = maps.shape

    def project(part: Tensor) -> Tensor:
        projected: Tensor = tower.head(tower.trunk.forward_head(part))
        return projected

    places = maps.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]  # [I * h * w, C, 1, 1]
    return project(maps), project(places).view(images, rows, columns, -1)


def patch_grid(clip: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of a model's patches on images of `size`, height and width in pixels.

    Raises:
        InputError: as `patch_vectors`.
    """
    training = clip.training
    clip.eval()  # this must leave nothing in batch norms
    with torch.no_grad():
        device = next(clip.parameters()).device
        rows, columns = patch_vectors(clip, torch.zeros(1, 3, *size, device=device))[1].shape[1:3]
    clip.train(training)
    return rows, columns
