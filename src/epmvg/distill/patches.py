"""Embeddings of an image's patches in the space of a CLIP's sentences.

A patch is projected exactly as the pooled vector is, so that its cosine with a sentence is meaningful.
"""

from __future__ import annotations

from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from epmvg.core.types import InputError
from epmvg.distill.transformers_clip import TransformersClip


def patch_embeddings(clip: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode normalized pixels [I, 3, H, W] once.

    Args:
        clip: An open_clip model whose image encoder is a vision transformer, or a timm network whose feature map
            [I, C, h, w] is pooled; or transformers' CLIPModel.
        pixels: The images.

    Returns:
        The embedding of the image [I, E] and of each patch [I, h, w, E].

    Raises:
        InputError: The patches of this encoder are not projected as its pooled vector is.
    """
    if isinstance(clip, TransformersClip):
        embeddings = clip.patches(pixels)
        if embeddings is not None:
            return embeddings
    encoder = getattr(clip, "visual", None)
    if isinstance(encoder, VisionTransformer) and encoder.attn_pool is None:
        return _of_vision_transformer(encoder, pixels)
    if isinstance(encoder, TimmModel) and not hasattr(encoder.head, "pool"):
        features = encoder.trunk.forward_features(pixels)
        if features.ndim == 4 and features.shape[1] == encoder.trunk.num_features:
            return _of_feature_map(encoder, features)
    raise InputError(
        "This teacher's image encoder has no patch embeddings in the space of its sentences, as distill.dense_weight "
        "needs. Use a CLIP with a ViT or a teacher of `epmvg teacher train`, or set distill.dense_weight=0."
    )


def _of_vision_transformer(encoder: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    output = encoder.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
    patches = output["image_intermediates"][0] @ encoder.proj  # [I, h * w, E]
    return output["image_features"], patches.unflatten(1, encoder.grid_size)


def _of_feature_map(encoder: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the whole map, and each of its positions as a map of one position."""
    images, _, rows, columns = features.shape

    def project(part: Tensor) -> Tensor:
        projected: Tensor = encoder.head(encoder.trunk.forward_head(part))
        return projected

    positions = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]  # [I * h * w, C, 1, 1]
    return project(features), project(positions).view(images, rows, columns, -1)
