"""Checks of samples before the first step: images that can be read, boxes in the convention they are read in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from epmvg.core.images import ImageFile
from epmvg.core.types import InputError, Sample
from epmvg.data.conventions import BoxConvention
from epmvg.data.validation.issues import KINDS

_OPENED = 200  # images whose header is read where the rows do not state sizes
_THREADS = 8


def check_images(images: Sequence[Path], rank: int = 0, world: int = 1) -> None:
    """Open this process's part of the validation images; a JPEG is not decoded, so its end is not checked.

    Raises:
        InputError: some are missing or no images; all of them are counted.
    """
    own = list(dict.fromkeys(images))[rank::world]
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = [fault for fault in pool.map(_fault_of, own) if fault is not None]
    if faults:
        raise InputError(
            f"Images of the validation split that cannot be read: {len(faults)} (first: {faults[0].rstrip('.')}): fix "
            "them, check data.root, or remove their rows from the split."
        )


def _fault_of(image: Path) -> str | None:
    try:
        ImageFile(image).close()
    except InputError as error:
        return str(error)
    return None


def check_boxes(records: Sequence[Sample], name: str) -> None:
    """Refuse samples whose boxes are in another convention than the one they are read in.

    Sizes that the rows do not state are read from the headers of some images.

    Raises:
        InputError: the data check calls it an error.
    """
    images = list(dict.fromkeys(record.image for record in records if record.size is None))
    with ThreadPoolExecutor(_THREADS) as pool:
        chosen = images[:: max(1, len(images) // _OPENED)]
        sizes = dict(zip(chosen, pool.map(_size_of, chosen), strict=True))
    convention = BoxConvention()
    for record in records:
        convention.add(record.box, record.size or sizes.get(record.image))
    verdict = convention.detect()
    if verdict is not None:
        kind, why = verdict
        raise InputError(f"{name}: {KINDS[kind].title} ({why}): {KINDS[kind].fix} `epmvg data check` says more.")


def _size_of(image: Path) -> tuple[int, int] | None:
    try:
        with ImageFile(image) as photo:
            return photo.size
    except InputError:
        return None
