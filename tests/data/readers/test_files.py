"""Files that cannot be read are named, and paths stay in their root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epmvg.core.types import InputError
from epmvg.data.readers.files import exists, is_file, read_bytes
from epmvg.data.readers.formats import write_file
from epmvg.data.registry import open_samples


@pytest.mark.parametrize("image", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "", "a\0b", 7])
def test_images_stay_in_the_root(tmp_path: Path, image: object) -> None:
    row = {"image": image, "phrase": "a cup", "bbox": [1, 2, 3, 4]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"is outside of|not the path of a file"):
        open_samples(str(tmp_path / "t.jsonl"), split=None)


def test_paths_may_go_up_and_down_inside_the_root(tmp_path: Path) -> None:
    rows = [
        {"image": str(image), "phrase": "a cup", "bbox": [1, 2, 3, 4]} for image in ("a/../b.jpg", tmp_path / "b.jpg")
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {sample.image for sample in open_samples(str(tmp_path / "t.jsonl"), split=None)} == {tmp_path / "b.jpg"}


def test_a_root_for_annotations_in_another_folder(tmp_path: Path, squares: Path) -> None:
    (tmp_path / "far").mkdir()
    rows = open_samples(str(squares), split=None)
    write_file(tmp_path / "far" / "rows.jsonl", rows, squares.parent)
    assert open_samples(str(tmp_path / "far" / "rows.jsonl"), split=None, root=squares.parent) == rows


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a/" * 3000])
def test_names_that_no_file_can_have_do_not_exist(tmp_path: Path, name: str) -> None:
    assert not exists(tmp_path / name) and not is_file(tmp_path / name)
    with pytest.raises(InputError, match="cannot be opened"):
        read_bytes(tmp_path / name)
    with pytest.raises(InputError):
        open_samples(f"{name}.jsonl", split=None)


ANNOTATION = {"image": "a.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4], "split": "val"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_git_lfs_pointers_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(InputError, match=r"is a Git LFS pointer.*git lfs pull"):
        open_samples(str(tmp_path / name), split=None)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ANNOTATION) + "\n", encoding="utf-16")
    with pytest.raises(InputError, match="Save the file as UTF-8"):
        open_samples(str(tmp_path / "rows.jsonl"), split=None)
