"""Image folders and Parquet tables: ours, those of `datasets`, and malformed ones."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from strategies import samples, under

from epmvg.core.types import InputError, Sample
from epmvg.data.convert import convert_data
from epmvg.data.readers.formats import write_file
from epmvg.data.registry import open_samples


@settings(max_examples=40, deadline=None)
@given(st.lists(samples(), min_size=1, max_size=8))
def test_an_image_folder_loses_nothing(tmp_path_factory: pytest.TempPathFactory, rows: list[Sample]) -> None:
    source, target = tmp_path_factory.getbasetemp() / "images", tmp_path_factory.getbasetemp() / "folder"
    sizes: dict[Path, tuple[int, int] | None] = {}  # a image has one
    rows = [replace(sample, size=sizes.setdefault(sample.image, sample.size)) for sample in rows]
    for sample in rows:
        (source / sample.image).parent.mkdir(parents=True, exist_ok=True)
        (source / sample.image).write_bytes(sample.image.name.encode())
    write_file(target, under(source, rows), source)
    read = open_samples(str(target), split=None)
    written = under(target, rows)
    for image in sizes:  # the samples of an image follow each other
        assert [one for one in read if one.image == target / image] == [r for r in written if r.image == target / image]
    assert len(read) == len(written)
    assert all(sample.image.read_bytes() == sample.image.name.encode() for sample in read)


def test_plain_metadata_lines_and_split_folders_are_read(tmp_path: Path) -> None:
    for split, name in (("train", "a.jpg"), ("validation", "b.jpg")):
        (tmp_path / split).mkdir()
        line = {"file_name": name, "phrase": "a cup", "bbox": [1, 2, 3, 4]}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    (sample,) = open_samples(str(tmp_path), split="val")
    assert sample.image == tmp_path / "validation" / "b.jpg" and sample.box == (1, 2, 4, 6)


def test_datasets_loads_what_we_write(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    convert_data(str(squares), tmp_path / "hub")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "hub"), cache_dir=str(tmp_path / "c"))[
        "train"
    ]
    assert len(loaded) == 12 and loaded[0]["image"].size == (80, 60)
    assert sum(len(row["objects"]["phrase"]) for row in loaded) == 48
    convert_data(str(squares), tmp_path / "t.parquet")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "c"))
    assert table["train"][0]["phrase"] == open_samples(str(squares), split=None)[0].phrase


def test_a_missing_pyarrow_is_one_sentence(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'epmvg\[parquet\]'"):
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
        with pytest.raises(InputError, match=words) as refused:
            open_samples(str(tmp_path / "t.parquet"), split=None)
        assert "\n" not in str(refused.value), case
    with pytest.raises(InputError, match=r"none\.parquet cannot be opened"):
        open_samples(str(tmp_path / "none.parquet"), split=None)


def everything(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_images_inside_parquet_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    encoded = []
    for colour in ("red", "blue"):
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), colour).save(stream, "PNG")
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


def test_an_image_folder_never_replaces_other_images(tmp_path: Path, squares: Path) -> None:
    target = tmp_path / "hub"
    convert_data(str(squares), target)
    convert_data(str(squares), target)  # the same images are no others
    name = open_samples(str(squares), split=None)[-1].image.name
    (target / name).write_bytes(b"another image")
    before = everything(target)
    with pytest.raises(InputError, match=rf"{name} is another file than .*: choose another folder"):
        convert_data(str(squares), target)
    assert everything(target) == before
    open_samples(str(squares), split=None)[-1].image.unlink()
    with pytest.raises(InputError, match="does not exist"):
        convert_data(str(squares), tmp_path / "new")
    assert not everything(tmp_path / "new")


def test_image_folders_with_several_metadata_files_and_split_names(tmp_path: Path) -> None:
    places = {".": "", "train": "train", "valid": "val", "data/dev": "val", "data/testing": "test", "testA": "testA"}
    for number, place in enumerate(places):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        line = {"file_name": f"{number}.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4]}
        (tmp_path / place / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    rows = open_samples(str(tmp_path), split=None)
    assert {sample.image.relative_to(tmp_path).parent.as_posix(): sample.split for sample in rows} == places
