"""Training and validation data of a recipe: samples, their checks and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import accelerate

from epmvg.config.settings import Recipe
from epmvg.core.images import ImageFile
from epmvg.core.types import InputError, Report, Sample
from epmvg.data.conventions import detect_convention
from epmvg.data.loader import GroundingLoader
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.files import cache_folder, is_file
from epmvg.data.registry import fraction_of, open_samples, open_unlabeled
from epmvg.data.samples import SampleDigest
from epmvg.data.validation.issues import KINDS
from epmvg.evaluation.evaluate import evaluation_loader
from epmvg.evaluation.samples import limit_to_images
from epmvg.models.grounder import Grounder
from epmvg.training.feature_cache import FeatureCache

_HEADERS = 200  # images whose header is read where the annotations do not state sizes
_THREADS = 8


def make_loaders(
    recipe: Recipe, model: Grounder, accelerator: accelerate.PartialState, report: Report, *, resume: bool = False
) -> tuple[GroundingLoader, GroundingLoader, dict[str, SampleDigest]]:
    """Make the training loader, with cached features where the recipe sets them, and the validation loader.

    Validation uses no cached features: they are in bfloat16, and its metrics are those of `evaluate`.

    Returns:
        Both, and digests of the splits "train" and "val".

    Raises:
        InputError: Unusable settings, samples or validation images. No other process is waited for.
    """
    data, settings = recipe.data, recipe.train
    shard = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    image_size = data.image_size or model.image_size
    _check_settings(recipe, model, image_size, shard["world_size"])
    val = open_samples(data.name, split=data.val_split, root=data.root, split_key=data.split_key)
    digests = {"val": SampleDigest.of(val)}
    if settings.eval_limit is not None and settings.eval_limit < len(val):
        val = limit_to_images(val, settings.eval_limit, seed=0)  # the same ones whatever train.seed is
    if not resume:  # a resumed run counts them as misses, so that it can be completed
        _check_images([sample.image for sample in val], **shard)
    samples = open_training_samples(recipe, report)
    unlabeled = open_unlabeled_samples(recipe, report)
    _check_boxes(samples, data.name)
    cached: dict[str, Any] = {}
    if settings.cache_features:
        file = cache_folder() / "features.sqlite"
        cache = FeatureCache(model, [*samples, *unlabeled], file, settings.feature_cache_gb, report)
        cached["backbone_features"] = cache
        samples, unlabeled = _with_features(samples, unlabeled, cache.unreadable, report)
    trained = [*samples, *unlabeled]
    digests["train"] = SampleDigest.of(trained)
    _report_truncated(trained, model, report)
    loader = GroundingLoader(
        samples,
        model.tokenize,
        image_size=image_size,
        unlabeled=unlabeled,
        unlabeled_ratio=recipe.unlabeled_ratio,
        batch_size=data.batch_size,
        phrases_per_image=data.phrases_per_image,
        augment=data.augment,
        shuffle=True,
        seed=settings.seed,
        num_workers=data.num_workers,
        skip_unreadable=True,
        cached=cached,
        cache_gb=data.cache_gb,
        pin_memory=accelerator.device.type == "cuda",
        **shard,
    )
    if len(samples) < shard["world_size"]:
        raise InputError(
            f"{data.name} has {len(samples)} training samples for {shard['world_size']} processes. Start fewer."
        )
    val_loader = evaluation_loader(model, val, batch_size=data.batch_size, skip_unreadable=True, **shard)
    return loader, val_loader, digests


def open_training_samples(recipe: Recipe, report: Report) -> list[Sample]:
    """Read the training samples whose images exist, and report those that are skipped.

    Raises:
        InputError: No image exists, or the annotations cannot be read.
    """
    data, skipped = recipe.data, Skipped()
    samples = open_samples(data.name, split=data.train_split, root=data.root, split_key=data.split_key, skipped=skipped)
    return fraction_of(_with_images(samples, "Check data.root.", skipped, report), data.fraction)


def open_unlabeled_samples(recipe: Recipe, report: Report) -> list[Sample]:
    """Read the images with phrases and no boxes that the teacher of a recipe uses, as `open_training_samples` does."""
    if recipe.unlabeled is None:
        return []
    samples = open_unlabeled(recipe.unlabeled, recipe.data.train_split)
    return _with_images(samples, "Check distill.unlabeled.", Skipped(), report)


def _with_images(samples: list[Sample], fix: str, skipped: Skipped, report: Report) -> list[Sample]:
    """Return the samples whose images exist, and report what is skipped."""
    exists = {image: is_file(image) for image in {sample.image for sample in samples}}
    if not any(exists.values()):
        raise InputError(f"None of the {len(exists)} images exists (first: {samples[0].image}). {fix}")
    for sample in samples:
        if not exists[sample.image]:
            skipped.add("the image is missing", str(sample.image))
    if skipped.counts:
        report({"event": "skipped", "rows": sum(skipped.counts.values()), "why": str(skipped)})
    return [sample for sample in samples if exists[sample.image]]


def _with_features(
    samples: list[Sample], unlabeled: list[Sample], unreadable: dict[Path, str], report: Report
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples whose images can be read, and report the others."""
    skipped = Skipped()
    for sample in (*samples, *unlabeled):
        if sample.image in unreadable:
            skipped.add("the image cannot be read", unreadable[sample.image].rstrip("."))
    if skipped.counts:
        report({"event": "skipped", "rows": skipped.counts.total(), "why": str(skipped)})
    samples, unlabeled = ([one for one in part if one.image not in unreadable] for part in (samples, unlabeled))
    if not samples:
        raise InputError(f"None of the training images can be read: {skipped}. Check data.root and the files.")
    return samples, unlabeled


def _check_settings(recipe: Recipe, model: Grounder, image_size: int, world_size: int) -> None:
    data, settings = recipe.data, recipe.train
    if image_size != model.image_size and (settings.cache_features or not model.sine_position):
        raise InputError(f"data.image_size={image_size} needs model.position=sine and train.cache_features=false.")
    if data.batch_size % world_size:
        raise InputError(
            f"data.batch_size={data.batch_size} is for all processes together and cannot be divided among {world_size}."
            f" Set a multiple of {world_size}."
        )
    if settings.cache_features and (data.augment is not None or not model.visual_encoder.frozen):
        raise InputError(
            "train.cache_features=true needs data.augment=null and a wholly frozen backbone (model.visual_encoder)."
        )


def _report_truncated(samples: list[Sample], model: Grounder, report: Report) -> None:
    tokens = model.phrase_tokenizer()([sample.phrase for sample in samples])
    for count, problem in (
        (
            tokens.truncated.sum(),
            f"are longer than {model.max_length} word pieces and are truncated (model.max_length)",
        ),
        (tokens.unknown.sum(), "contain no word of the vocabulary"),
    ):
        if count:
            report({"event": "message", "text": f"{count:,} of {len(samples):,} training phrases {problem}."})


def _check_images(images: Sequence[Path], rank: int = 0, world_size: int = 1) -> None:
    """Open this process's part of the validation images; a JPEG is not decoded to its end."""
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(_size_of, list(dict.fromkeys(images))[rank::world_size]))
    errors = [size for size in sizes if isinstance(size, InputError)]
    if errors:
        raise InputError(
            f"Images of the validation split that cannot be read: {len(errors)} (first: {str(errors[0]).rstrip('.')}). "
            "Fix them, check data.root, or remove their samples from the split."
        )


def _check_boxes(samples: Sequence[Sample], name: str) -> None:
    """Reject samples whose boxes follow another convention; sizes come from some images where no annotation has one."""
    images = list(dict.fromkeys(sample.image for sample in samples if sample.size is None))
    chosen = images[:: max(1, len(images) // _HEADERS)]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = dict(zip(chosen, pool.map(_size_of, chosen), strict=True))
    sizes = {image: size for image, size in read.items() if not isinstance(size, InputError)}
    detected = detect_convention((sample.box, sample.size or sizes.get(sample.image)) for sample in samples)
    if detected is not None:
        kind = KINDS["box-convention"]
        raise InputError(f"{name}: {kind.title} ({detected}). {kind.fix}")


def _size_of(image: Path) -> tuple[int, int] | InputError:
    try:
        with ImageFile(image) as opened:
            return opened.size
    except InputError as error:
        return error
