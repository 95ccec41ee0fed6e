"""Image folders and Parquet tables: ours, those of `datasets`, and malformed ones."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from epmvg.core.types import InputError
from epmvg.data.convert import convert_data
from epmvg.data.registry import open_samples


def test_plain_metadata_lines_and_split_folders_are_read(tmp_path: Path) -> None:
    for split, name in (("train", "a.jpg"), ("validation", "b.jpg")):
        (tmp_path / split).mkdir()
        line = {"file_name": name, "phrase": "a cup", "bbox": [1, 2, 3, 4]}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    (sample,) = open_samples(str(tmp_path), split="val")
    assert sample.image == tmp_path / "validation" / "b.jpg" and sample.box == (1, 2, 4, 6)


def test_datasets_loads_what_we_write(tmp_path: Path, squares: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    convert_data(str(squares), tmp_path / "t.parquet")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "c"))
    assert table["train"][0]["phrase"] == open_samples(str(squares), split=None)[0].phrase


def test_columns_of_objects_are_read(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "phrase": ["a cup", "it"],
        "bbox": [[1, 2, 3, 4]] * 2,
        "id": ["", "7"],
        "note": [None, 5],
    }
    columns["attributes"] = ['{"split": 3}', None]
    line = {"file_name": "a.jpg", "width": 9, "height": 8, "objects": columns}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    first, second = open_samples(str(tmp_path), split=None)
    assert (first.phrase, first.box, first.id, first.size, first.split) == ("a cup", (1, 2, 4, 6), "", (9, 8), "3")
    assert second.id == "7" and second.extra == {"note": 5} and second.image == tmp_path / "a.jpg"
    columns["bbox"].pop()
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=r'"objects.bbox" must be a list as long as "objects.phrase"'):
        open_samples(str(tmp_path), split=None)


def test_a_missing_pyarrow_is_one_sentence(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow\. Run pip install 'epmvg\[parquet\]'"):
        convert_data(str(squares), tmp_path / "t.parquet")


def test_malformed_tables_are_rejected_in_one_sentence(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"image": "a.jpg", "phrase": "it", "bbox": [1.0, 2.0, 3.0, 4.0]}
    tables = {
        "an image without bytes": (row | {"image": {"path": "a.jpg"}}, r'row 0: "bytes" is None'),
        "a list of attributes": (row | {"attributes": "[1]"}, "row 0: `attributes` must be a JSON object"),
        "attributes that are no JSON": (row | {"attributes": "{"}, "row 0: `attributes` is not JSON"),
    }
    for case, (line, words) in tables.items():
        parquet.write_table(arrow.Table.from_pylist([line]), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=words) as caught:
            open_samples(str(tmp_path / "t.parquet"), split=None)
        assert "\n" not in str(caught.value), case
    with pytest.raises(InputError, match=r"none\.parquet cannot be opened"):
        open_samples(str(tmp_path / "none.parquet"), split=None)


def test_images_inside_parquet_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    encoded = []
    for color in ("red", "blue"):
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), color).save(stream, "PNG")
        encoded.append(stream.getvalue())
    row = {"phrase": "a cup", "bbox": [1.0, 2.0, 3.0, 4.0], "split": "val", "note": 7}
    images: list[Any] = [{"bytes": one, "path": name} for one, name in zip(encoded, ("../a.png", None), strict=True)]
    for name, column in (("struct", [*images, images[0]]), ("bytes", [*encoded, encoded[0]])):
        lines = [row | {"image": image, "phrase": f"cup {number}"} for number, image in enumerate(column)]
        parquet.write_table(arrow.Table.from_pylist(lines), tmp_path / f"{name}.parquet")
        for _ in range(2):
            samples = open_samples(str(tmp_path / f"{name}.parquet"), split="val")
            assert [sample.phrase for sample in samples] == ["cup 0", "cup 1", "cup 2"]
            assert [sample.image.read_bytes() for sample in samples] == [*encoded, encoded[0]]
            assert samples[0].image == samples[2].image and samples[0].extra == {"note": 7}
    assert len([file for file in (tmp_path / "cache").rglob("*") if file.suffix in (".png", "")]) == 2 + 2 + 2 + 1


def test_image_folders_with_several_metadata_files_and_split_names(tmp_path: Path) -> None:
    places = {".": "", "train": "train", "valid": "val", "data/dev": "val", "data/test": "test", "testA": "testA"}
    for number, place in enumerate(places):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        line = {"file_name": f"{number}.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4]}
        (tmp_path / place / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    rows = open_samples(str(tmp_path), split=None)
    assert {sample.image.relative_to(tmp_path).parent.as_posix(): sample.split for sample in rows} == places
