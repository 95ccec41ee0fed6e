"""Features of a frozen backbone, cached on disk by the content of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epmvg.core.cache import DiskCache, content_key
from epmvg.core.images import image_digest
from epmvg.core.progress import progress_rows
from epmvg.core.types import InputError, Report, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.models.grounder import Grounder

_VERSION = 3
"""Part of every key; raise it when the features or the evaluation transform have other values."""

_NOT_BACKBONE = ("width", "layers", "heads", "dim_feedforward", "dropout", "frozen")
"""Settings of a visual encoder that its backbone's features do not depend on."""


class FeatureCache:
    """Backbone features of images, computed in float32 and cached in bfloat16.

    Args:
        model: Its backbone must be frozen.
        samples: The features of their images are computed where the cache lacks them; unreadable ones have none.
        file: The cache, which several trainings may share.
        limit_gb: Bound of the file; the features used longest ago are removed for new ones.
        report: Called with rows of progress.

    Attributes:
        unreadable: Images that cannot be read, with the reason.

    Raises:
        InputError: The images alone need more than `limit_gb`.
    """

    def __init__(
        self,
        model: Grounder,
        samples: Sequence[Sample],
        file: Path,
        limit_gb: float,
        report: Report,
    ) -> None:
        self.limit_gb = limit_gb
        self.cache = DiskCache(file, int(limit_gb * 1e9))
        first = {sample.image: sample for sample in reversed(samples)}
        images = list(dict.fromkeys(sample.image for sample in samples))
        backbone = _backbone_key(model)
        keys: dict[Path, bytes] = {}
        self.unreadable: dict[Path, str] = {}
        for image in images:
            try:
                keys[image] = content_key(backbone, image_digest(image))
            except InputError as error:
                self.unreadable[image] = str(error)
        readable = list(keys)
        missing = [readable[i] for i in self.cache.missing(list(keys.values()))]
        loader = GroundingLoader(
            [first[image] for image in missing],
            model.tokenize,
            image_size=model.image_size,
            batch_size=32,
            skip_unreadable=True,
        )
        reasons: dict[bytes, str] = {}  # why images with these keys cannot be read
        done, progress = 0, progress_rows(report, "caching features")
        for batch in loader.batches(0):
            skipped = [image for image in missing[done : done + 32] if image not in batch.image_paths]
            reasons |= zip((keys[image] for image in skipped), batch.skipped, strict=True)
            done = min(done + 32, len(missing))
            if not batch.samples:
                continue
            features = _encode(model, batch.images, batch.image_mask)
            needed = features[0].nbytes * len(images)
            if needed > limit_gb * 1e9:
                raise InputError(
                    f"The features of this training's images take {needed / 1e9:.1f} GB. Raise "
                    f"train.feature_cache_gb={limit_gb:g} or set train.cache_features=false."
                )
            self.cache.put([keys[image] for image in batch.image_paths], list(features))
            progress(done, len(missing))
        self.unreadable |= {image: reasons[key] for image, key in keys.items() if key in reasons}
        self.keys = [key for key in keys.values() if key not in reasons]

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        """Return bfloat16 features [I, C, h, w] of readable images, by their order of appearance in the samples."""
        arrays = [array for array in self.cache.get([self.keys[i] for i in indices]) if array is not None]
        if len(arrays) < len(indices):
            raise InputError(
                f"{self.cache.path} lost features of this training to another one. Raise "
                f"train.feature_cache_gb={self.limit_gb:g}."
            )
        stacked = np.stack(arrays) if arrays else np.empty((0, 1, 1, 1), np.uint16)
        return torch.from_numpy(stacked).view(torch.bfloat16)


@torch.no_grad()
def _encode(model: Grounder, images: Tensor, image_mask: Tensor) -> Any:
    device = model.visual_encoder.mean.device
    features = model.visual_encoder.backbone_features(images.to(device), image_mask.to(device))
    return features.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy()


def _backbone_key(model: Grounder) -> bytes:
    """Digest everything but the image that features depend on."""
    visual = model.visual_encoder
    settings = {name: value for name, value in model.settings["visual_encoder"].items() if name not in _NOT_BACKBONE}
    weights = [part for item in visual.backbone.state_dict().items() for part in item]
    return content_key(_VERSION, model.image_size, settings, visual.strides, visual.mean, visual.std, *weights)
