"""Stored features are those of the very backbone, images and settings that ask for them; the folder keeps its bound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from epmvg.core.types import InputError, Sample
from epmvg.data.registry import open_samples
from epmvg.models.factory import create_model
from epmvg.models.grounder import Grounder
from epmvg.training.feature_cache import _loader, stored_maps


def frozen(**visual: object) -> Grounder:
    torch.manual_seed(0)
    return create_model("tiny-resnet", visual_encoder={"frozen": ["all"]} | visual).eval()


def quiet(row: dict[str, object]) -> None:
    pass


@pytest.fixture
def records(squares: Path) -> list[Sample]:
    return open_samples(str(squares), split="train")


def test_features_are_those_of_the_backbone_that_asks(records: list[Sample], tmp_path: Path) -> None:
    """Same weights, other strides, mean or std: none gets what another one stored."""
    half = [0.5, 0.5, 0.5]
    ways = [frozen(strides=[16, 32]), frozen(strides=[32]), frozen(strides=[16, 32], mean=half, std=half)]
    for number, student in enumerate([*ways, ways[0]]):
        (maps,) = stored_maps(student, [records], tmp_path / "maps", 1, quiet)
        batch = next(iter(_loader(records, student).batches(0)))
        with torch.no_grad():
            fresh = student.visual_encoder.backbone_features(batch.images, batch.image_mask)
        torch.testing.assert_close(maps.float(), fresh, atol=0.02, rtol=0.01)
        assert len(list((tmp_path / "maps").iterdir())) == min(number + 1, 3)


def test_a_width_that_features_do_not_depend_on_shares_them(records: list[Sample], tmp_path: Path) -> None:
    for width in (32, 64):
        stored_maps(frozen(width=width), [records], tmp_path / "maps", 1, quiet)
    assert len(list((tmp_path / "maps").iterdir())) == 1


def test_other_pixels_under_the_same_name_are_stored_anew(records: list[Sample], tmp_path: Path) -> None:
    (before,) = stored_maps(frozen(), [records], tmp_path / "maps", 1, quiet)
    records[0].image.write_bytes(records[4].image.read_bytes())
    (after,) = stored_maps(frozen(), [records], tmp_path / "maps", 1, quiet)
    assert (
        torch.equal(after[0], before[1]) and not torch.equal(after[0], before[0]) and torch.equal(after[1:], before[1:])
    )


def test_what_ends_the_work_leaves_no_temporary_file(records: list[Sample], tmp_path: Path) -> None:
    def interrupted(row: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored_maps(frozen(), [records], tmp_path / "maps", 1, interrupted)
    assert list((tmp_path / "maps").iterdir()) == []


def test_the_folder_keeps_its_bound(records: list[Sample], tmp_path: Path) -> None:
    """What was used longest ago goes first; what one training needs at once must fit."""
    folder, student = tmp_path / "maps", frozen()
    parts = [[record for record in records if record.image.name == f"{number}.png"] for number in (0, 2, 4)]
    stored_maps(student, parts[:1], folder, 1, quiet)
    (first,) = folder.iterdir()
    size = first.stat().st_size
    two = 2.1 * size / 1e9
    stored_maps(student, parts[1:2], folder, two, quiet)
    os.utime(first, (1, 1))
    (folder / ".maps-killed.npy.part").write_bytes(bytes(9))
    os.utime(folder / ".maps-killed.npy.part", (1, 1))
    stored_maps(student, parts[2:], folder, two, quiet)
    assert not first.exists() and len(list(folder.iterdir())) == 2
    with pytest.raises(InputError, match=r"raise train\.store_gb=.* or set train\.store=false"):
        stored_maps(student, parts, folder, two, quiet)
    assert len(list(folder.iterdir())) == 2


def test_a_file_of_another_shape_is_refused(records: list[Sample], tmp_path: Path) -> None:
    stored_maps(frozen(), [records], tmp_path / "maps", 1, quiet)
    (file,) = (tmp_path / "maps").iterdir()
    values = np.load(file)
    np.save(file, values[1:])
    with pytest.raises(InputError, match=r"\.npy holds .* in place of .*: delete it"):
        stored_maps(frozen(), [records], tmp_path / "maps", 1, quiet)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"\.npy is damaged .*: delete it"):
        stored_maps(frozen(), [records], tmp_path / "maps", 1, quiet)
