"""The rows that a training learns from and is scored on."""

from __future__ import annotations

import accelerate
from torch import Tensor

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError, Sample
from epmvg.data.loader import GroundingLoader
from epmvg.data.readers.annotations import Skipped
from epmvg.data.readers.files import cache_folder, is_file
from epmvg.data.registry import fraction_of, open_samples
from epmvg.data.samples import SampleDigest
from epmvg.data.transforms import Augment
from epmvg.evaluation.evaluate import evaluation_loader
from epmvg.evaluation.samples import limit_to_images
from epmvg.models.grounder import Grounder
from epmvg.training.checks import check_boxes, check_images
from epmvg.training.feature_cache import stored_maps
from epmvg.training.run import Report


def loaders_of(
    recipe: Recipe, student: Grounder, accelerator: accelerate.PartialState, report: Report, *, resume: bool = False
) -> tuple[GroundingLoader, GroundingLoader, dict[str, SampleDigest]]:
    """Make the training loader, with stored answers where the recipe wants them, and the validation loader.

    Validation stores nothing: stored maps are in bfloat16, and a score is what `evaluate` gives.

    Returns:
        both, and all samples of the splits "train" and "val".

    Raises:
        InputError: unusable settings, rows or validation images. No other process is waited for.
    """
    data, settings = recipe.data, recipe.train
    val = open_samples(data.name, split=data.val_split, root=data.root, split_key=data.split_key)
    val_samples = SampleDigest.of(val)
    if settings.eval_limit is not None and settings.eval_limit < len(val):
        val = limit_to_images(val, settings.eval_limit, seed=0)  # the same ones whatever train.seed is
    image_size = data.image_size or student.image_size
    if image_size != student.image_size and (settings.cache_features or not student.sine_position):
        raise InputError(f"data.image_size={image_size} needs model.position=sine and train.cache_features=false.")
    world = accelerator.num_processes
    if data.batch_size % world:
        raise InputError(
            f"data.batch_size={data.batch_size} is for all processes together and cannot be divided among {world}: "
            f"set a multiple of {world}."
        )
    if not resume:  # then they count as misses, so that the run can come to its end
        check_images([record.image for record in val], accelerator.process_index, world)
    stored: dict[str, Tensor] = {}

    skipped = Skipped()
    records = open_samples(data.name, split=data.train_split, root=data.root, split_key=data.split_key, skipped=skipped)
    records = fraction_of(with_photo(records, skipped), data.fraction)
    check_boxes(records, data.name)
    _report_skipped(skipped, report)
    _report_unread(records, student, report)
    if settings.cache_features:
        if data.augment is not None or not student.visual_encoder.frozen:
            raise InputError(
                "train.cache_features=true needs data.augment=null and a wholly frozen backbone (model.visual_encoder)."
            )
        stored = {
            "maps": stored_maps(student, [records], cache_folder() / "maps", settings.feature_cache_gb, report)[0]
        }
    ranks = {"rank": accelerator.process_index, "world_size": world}
    loader = GroundingLoader(
        records,
        student.tokenize,
        image_size=image_size,
        batch_size=data.batch_size,
        phrases_per_image=data.phrases_per_image,
        augment=Augment(**data.augment.model_dump()) if data.augment else None,
        shuffle=True,
        seed=settings.seed,
        num_workers=data.num_workers,
        skip_unreadable=True,
        cached=stored,
        cache_gb=data.cache_gb,
        **ranks,
    )
    if len(records) < world:
        raise InputError(f"{data.name} has {len(records)} training samples for {world} processes: start fewer.")
    val_loader = evaluation_loader(student, val, batch_size=data.batch_size, skip_unreadable=True, **ranks)
    return loader, val_loader, {"train": SampleDigest.of(records), "val": val_samples}


def _report_skipped(skipped: Skipped, report: Report) -> None:
    if skipped.counts:
        report({"event": "skipped", "rows": sum(skipped.counts.values()), "why": str(skipped)})


def _report_unread(records: list[Sample], student: Grounder, report: Report) -> None:
    """Say how many phrases are longer than the student reads, or hold no word that it knows."""
    cut, unknown = student.phrase_tokenizer().count_truncated_and_unknown([record.phrase for record in records])
    for count, what in (
        (cut, f"are longer than {student.max_length} word pieces and are cut (model.max_length)"),
        (unknown, "hold no word of the vocabulary"),
    ):
        if count:
            report({"event": "say", "text": f"{count:,} of {len(records):,} training phrases {what}."})


def with_photo(records: list[Sample], skipped: Skipped) -> list[Sample]:
    """Leave out rows whose photo is not there."""
    there = {image: is_file(image) for image in {record.image for record in records}}
    for record in records:
        if not there[record.image]:
            skipped.add("the image is missing", str(record.image))
    kept = [record for record in records if there[record.image]]
    if not kept:
        raise InputError(f"None of the {len(there)} images exists (first: {records[0].image}): check data.root.")
    return kept
