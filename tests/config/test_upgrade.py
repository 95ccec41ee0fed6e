"""Tests of `epmvg config upgrade`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from epmvg.cli import main
from epmvg.config.renamed import REMOVED, RENAMED
from epmvg.config.settings import Recipe, setting_fields
from epmvg.config.upgrade import upgrade_file, upgrade_values
from epmvg.core.types import InputError

OLD = """\
# my recipe
model: {preset: mini, canvas: 192}  # small
data:
  name: scenes
  # a small GPU
  images: 5   # per batch
  phrases: 10
  augment: {flip: 0.5, style: free, as_published: true}
distill: {teacher: null, view: photo, dense: 1.0}
train:
  tensorboard: true   # curves
  clip: 1.0
"""
NEW = """\
model: {name: mini, image_size: 192}
data: {name: scenes, batch_size: 50, phrases_per_image: 10, augment: {horizontal_flip: 0.5, recipe: default}}
distill: {teacher: null, input: image, dense_weight: 1.0}
train: {max_grad_norm: 1.0}
"""


def test_upgrade_renames_keys_and_reports_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    with pytest.raises(SystemExit) as ended:
        main(["config", "upgrade", str(tmp_path / "old.yaml"), "--out", str(tmp_path / "new.yaml")])
    assert ended.value.code == 0
    assert yaml.safe_load((tmp_path / "new.yaml").read_text()) == yaml.safe_load(NEW)
    printed = capsys.readouterr().out
    assert "warning: data.batch_size counts image-phrase pairs. 5 images of up to 10 phrases were at most 50" in printed
    assert "train.clip is now train.max_grad_norm" in printed and "train.tensorboard is removed: metrics" in printed
    assert upgrade_values(yaml.safe_load(NEW)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data: {phrases: 4, val: x}", "data: {batch_size: 64, phrases_per_image: 4, val_split: x}"),
        ("data: {images: 4}", "data: {batch_size: 32}"),
        ("distill: {view: canvas}", "distill: {input: letterboxed}"),
        ("model: {overrides: {normalize: true}}", "model: {overrides: {pre_fusion_norm: true}}"),
        ("data: scenes", "data: scenes"),
    ],
)
def test_upgrade_converts_values(old: str, new: str) -> None:
    values = yaml.safe_load(old)
    upgrade_values(values)
    assert values == yaml.safe_load(new)


def test_a_run_with_old_settings_is_upgraded_in_place(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    values = yaml.safe_load(Recipe.load("scenes").dump())
    values["train"]["drop"] = values["train"].pop("lr_drop")
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"`train\.drop` is now `train\.lr_drop`\. Rename it, or run `epmvg config"):
        Recipe.load(file)
    assert upgrade_file(file, file) == ["train.drop is now train.lr_drop"]
    assert Recipe.load(file) == Recipe.load("scenes")


@pytest.mark.parametrize("text", ["train: {clip: [}", "- a list", "train: {epoch: 3}"])
def test_invalid_files_are_rejected_and_not_written(text: str, tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"old\.yaml"):
        upgrade_file(file, tmp_path / "new.yaml")
    assert not (tmp_path / "new.yaml").exists()


def test_old_and_new_keys_are_disjoint() -> None:
    keys = {name for name, _ in setting_fields(Recipe)}
    assert not keys & (RENAMED.keys() | REMOVED.keys())
    assert {new for new in RENAMED.values() if not new.startswith("model.")} <= keys
