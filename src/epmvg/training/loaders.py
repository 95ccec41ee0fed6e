"""The rows that a training learns from and is scored on."""

from __future__ import annotations

import accelerate
from torch import Tensor

from epmvg.config.settings import Recipe
from epmvg.core.types import InputError, Record
from epmvg.data.loader import GroundingLoader
from epmvg.data.readers.files import is_file
from epmvg.data.readers.jsonl import Skipped
from epmvg.data.registry import cache_folder, open_records, share_of
from epmvg.data.samples import Samples
from epmvg.data.transforms import Augment
from epmvg.evaluation.evaluate import evaluation_loader
from epmvg.evaluation.samples import of_some_images
from epmvg.models.grounder import Grounder
from epmvg.training.checks import check_boxes, check_images
from epmvg.training.feature_cache import stored_maps
from epmvg.training.run import Report


def loaders_of(
    recipe: Recipe, student: Grounder, accelerator: accelerate.PartialState, report: Report, *, resume: bool = False
) -> tuple[GroundingLoader, GroundingLoader, dict[str, Samples]]:
    """Make the training loader, with stored answers where the recipe wants them, and the validation loader.

    Validation stores nothing: stored maps are in bfloat16, and a score is what `evaluate` gives.

    Returns:
        both, and all samples of the splits "train" and "val".

    Raises:
        InputError: unusable settings, rows or validation images. No other process is waited for.
    """
    data, settings = recipe.data, recipe.train
    val = open_records(data.name, split=data.val, root=data.root, split_key=data.split_key)
    val_samples = Samples.of(val)
    if settings.evaluate_limit is not None and settings.evaluate_limit < len(val):
        val = of_some_images(val, settings.evaluate_limit, seed=0)  # the same ones whatever train.seed is
    canvas = data.canvas or student.canvas
    if canvas != student.canvas and (settings.store or not student.sine):
        raise InputError(f"data.canvas={canvas} needs model.position=sine and train.store=false.")
    world = accelerator.num_processes
    if data.images % world:
        raise InputError(
            f"data.images={data.images} is the batch of all processes and cannot be divided among {world}: "
            f"give a multiple of {world}."
        )
    share = {"rank": accelerator.process_index, "world": world}
    if not resume:  # then they count as misses, so that the run can come to its end
        check_images([record.image for record in val], **share)
    stored: dict[str, Tensor] = {}

    skipped = Skipped()
    records = open_records(data.name, split=data.train, root=data.root, split_key=data.split_key, skipped=skipped)
    records = share_of(with_photo(records, skipped), data.share)
    check_boxes(records, data.name)
    _report_skipped(skipped, report)
    _report_unread(records, student, report)
    if settings.store:
        if data.augment is not None or not student.visual.frozen:
            raise InputError("train.store=true needs data.augment=null and a wholly frozen backbone (model.visual).")
        stored = {"maps": stored_maps(student, [records], cache_folder() / "maps", settings.store_gb, report)[0]}
    loader = GroundingLoader(
        records,
        student.tokenize,
        canvas=canvas,
        images=data.images,
        phrases=data.phrases,
        augment=Augment(**data.augment.model_dump()) if data.augment else None,
        shuffle=True,
        seed=settings.seed,
        workers=data.workers,
        tolerant=True,
        stored=stored,
        cache_gb=data.cache_gb,
        **share,
    )
    if loader.groups < world:
        raise InputError(
            f"{data.name} {data.train} makes {loader.groups} image(s) with at most data.phrases={data.phrases} phrases "
            f"an epoch, which {world} processes cannot share: start fewer, or lower data.phrases."
        )
    val_loader = evaluation_loader(student, val, images=data.images, tolerant=True, **share)
    return loader, val_loader, {"train": Samples.of(records), "val": val_samples}


def _report_skipped(skipped: Skipped, report: Report) -> None:
    if skipped.counts:
        report({"event": "skipped", "rows": sum(skipped.counts.values()), "why": str(skipped)})


def _report_unread(records: list[Record], student: Grounder, report: Report) -> None:
    """Say how many phrases are longer than the student reads, or hold no word that it knows."""
    cut, unknown = student.phrase_tokenizer().count_cut_and_unknown([record.phrase for record in records])
    for count, what in (
        (cut, f"are longer than {student.length} word pieces and are cut (model.length)"),
        (unknown, "hold no word of the vocabulary"),
    ):
        if count:
            report({"event": "say", "text": f"{count:,} of {len(records):,} training phrases {what}."})


def with_photo(records: list[Record], skipped: Skipped) -> list[Record]:
    """Leave out rows whose photo is not there."""
    there = {image: is_file(image) for image in {record.image for record in records}}
    for record in records:
        if not there[record.image]:
            skipped.add("the image is missing", str(record.image))
    kept = [record for record in records if there[record.image]]
    if not kept:
        raise InputError(f"None of the {len(there)} images exists (first: {records[0].image}): check data.root.")
    return kept
