"""Round trips through every format lose nothing; foreign files of each kind read as they mean."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from epmvg.cli import app, main
from epmvg.core.types import InputError, Sample
from epmvg.data.convert import convert_data
from epmvg.data.readers.fields import length
from epmvg.data.readers.formats import write_file
from epmvg.data.readers.jsonl import read_jsonl, write_jsonl
from epmvg.data.registry import open_samples

TARGETS = {"jsonl": "t.jsonl", "coco": "t.json", "odvg": "t.odvg.jsonl", "parquet": "t.parquet"}

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
numbers = st.floats(0, 5000, allow_nan=False) | st.integers(0, 5000)
facts = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
OWN = {"image", "phrase", "bbox", "width", "height", "id", "split", "source_id"}


@st.composite
def records(draw: st.DrawFn) -> Sample:
    x, y, w, h = draw(numbers), draw(numbers), draw(st.floats(0.01, 900)), draw(st.integers(1, 900))
    return Sample(
        image=Path(draw(st.sampled_from(["a.jpg", "b/c.png", "b/ü x.jpg", "b/c.jpg"]))),
        phrase=draw(texts.filter(str.strip)),
        box=(float(x), float(y), float(x + w), float(y + h)),
        split=draw(st.sampled_from(["", "train", "testA"])),
        id=draw(texts | st.just("")),
        size=draw(st.none() | st.just((6000, 6000))),
        extra=draw(st.dictionaries(texts.filter(lambda key: key not in OWN), facts, max_size=3)),
    )


def under(root: Path, rows: Sequence[Sample]) -> list[Sample]:
    return [replace(row, image=root / row.image) for row in rows]


@settings(max_examples=40, deadline=None)
@given(st.lists(records(), min_size=1, max_size=8))
@pytest.mark.parametrize("kind", TARGETS)
def test_a_round_trip_loses_nothing(tmp_path_factory: pytest.TempPathFactory, kind: str, rows: list[Sample]) -> None:
    folder = tmp_path_factory.getbasetemp() / kind
    rows = under(folder, rows)
    target = folder / TARGETS[kind]
    assert write_file(target, rows, folder) == folder
    assert open_samples(str(target), split=None) == rows


@settings(max_examples=40, deadline=None)
@given(st.lists(records(), min_size=1, max_size=8))
def test_an_image_folder_loses_nothing(tmp_path_factory: pytest.TempPathFactory, rows: list[Sample]) -> None:
    source, target = tmp_path_factory.getbasetemp() / "pictures", tmp_path_factory.getbasetemp() / "folder"
    sizes: dict[Path, tuple[int, int] | None] = {}  # a picture has one
    rows = [replace(row, size=sizes.setdefault(row.image, row.size)) for row in rows]
    for row in rows:
        (source / row.image).parent.mkdir(parents=True, exist_ok=True)
        (source / row.image).write_bytes(row.image.name.encode())
    write_file(target, under(source, rows), source)
    read = open_samples(str(target), split=None)
    written = under(target, rows)
    for image in sizes:  # the samples of an image follow each other
        assert [one for one in read if one.image == target / image] == [r for r in written if r.image == target / image]
    assert len(read) == len(written)
    assert all(record.image.read_bytes() == record.image.name.encode() for record in read)


@given(numbers, numbers)
def test_a_length_leads_from_start_to_end(start: float, more: float) -> None:
    assert start + length(start, start + more) == start + more


@pytest.mark.parametrize("kind", [*TARGETS, "folder"])
def test_the_command_line_converts_there_and_back(tmp_path: Path, squares: Path, kind: str) -> None:
    there, back = tmp_path / "other" / TARGETS.get(kind, "folder"), tmp_path / "back.jsonl"
    result = CliRunner().invoke(app, ["data", "convert", str(squares), "--to", str(there), "--json"])
    done = json.loads(result.stdout)
    assert (done["samples"], done["images"], done["format"]) == (48, 12, kind)
    root = done["root"]
    assert CliRunner().invoke(app, ["data", "convert", str(there), "--root", root, "--to", str(back)]).exit_code == 0
    ours, theirs = read_jsonl(squares), read_jsonl(back)
    if kind == "folder":
        theirs = under(tmp_path, [replace(row, image=Path(row.image.name)) for row in theirs])
    assert ours == theirs


def test_stats_of_every_format_are_one_object(tmp_path: Path, squares: Path) -> None:
    for target in (*TARGETS.values(), "folder"):
        convert_data(str(squares), tmp_path / target)
        result = CliRunner().invoke(app, ["data", "stats", str(tmp_path / target), "--json"])
        counts = json.loads(result.stdout)
        assert counts["splits"]["val"] | {"images": 6, "phrases": 24, "boxes": 24} == counts["splits"]["val"]
        assert open_samples(str(tmp_path / target), split="train")[0].split == "train"


def test_the_excerpts_survive_every_format(tmp_path: Path, shared: Path) -> None:
    for name, root in (
        ("refcoco", "."),
        ("flickr30k", "flickr30k"),
        ("referit", "referitgame"),
        ("transvg-unc", "transvg_index"),
    ):
        source = (shared / "formats" / root).resolve()
        rows = open_samples(name, split=None, root=source)
        for target in TARGETS.values():
            done = convert_data(name, tmp_path / target, root=source)
            assert done["samples"] == len(rows) and done["root"] == str(source)
            assert open_samples(str(tmp_path / target), split=None, root=source) == rows


COCO = {
    "images": [{"id": 3, "file_name": "p/a.jpg", "width": 50, "height": 40}],
    "categories": [{"id": 9, "name": "cup"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "phrase": "red cup", "split": "val"}
    ],
}
TWO = [{"id": 1, "image_id": 3, "bbox": [1, 2, 3, 4], "tokens_positive": [[0, 8]]}]
TWO += [{"id": 2, "image_id": 3, "bbox": [10, 2, 3, 4], "tokens_positive": [[0, 8]]}]
TWO += [{"id": 3, "image_id": 3, "bbox": [0, 0, 50, 40], "tokens_positive": [[12, 13], [14, 19]]}]
MDETR = {
    "images": [{**COCO["images"][0], "caption": "two cups on a table", "dataset_name": "flickr"}],
    "annotations": TWO,
}
REFEXP = {"images": [{**MDETR["images"][0], "dataset_name": "refcoco"}], "annotations": TWO[2:]}
REGION = {"phrase": "cups", "bbox": [[1, 2, 4, 6], [10, 2, 13, 6]], "tokens_positive": [[4, 8]]}
ODVG = {"filename": "p/a.jpg", "height": 40, "width": 50, "grounding": {"caption": "two cups", "regions": [REGION]}}
SENTENCES = [{"img_id": "a_70", "sents": "red cup", "bbox": [1, 2, 3, 4], "width": 50, "height": 40}]


@pytest.mark.parametrize(
    ("content", "phrases", "first"),
    [
        (COCO, ["red cup"], (1, 2, 4, 6)),
        (MDETR, ["two cups", "a table"], (1, 2, 13, 6)),
        (REFEXP, ["two cups on a table"], (0, 0, 50, 40)),
        (ODVG, ["cups"], (1, 2, 13, 6)),
        (SENTENCES, ["red cup"], (1, 2, 4, 6)),
    ],
)
def test_foreign_json_reads_as_it_means(
    tmp_path: Path, content: Any, phrases: list[str], first: tuple[int, ...]
) -> None:
    (tmp_path / "rows_val.json").write_text(json.dumps(content))
    rows = open_samples(str(tmp_path / "rows_val.json"), split=None)
    assert [row.phrase for row in rows] == phrases
    assert rows[0].box == first and rows[0].size == (50, 40) and rows[0].image.name == "a.jpg"


def test_what_the_source_knows_is_kept(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(COCO))
    (row,) = open_samples(str(tmp_path / "rows.json"), split="val", root=tmp_path / "photos")
    assert row.extra == {"ann_id": 1, "category": "cup"} and row.image == tmp_path / "photos" / "p" / "a.jpg"


def test_odvg_lines_are_told_from_our_rows(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text(f"{json.dumps(ODVG)}\n{json.dumps(ODVG)}\n")
    assert len(open_samples(str(tmp_path / "o.jsonl"), split=None)) == 2
    (tmp_path / "o.jsonl").rename(tmp_path / "o.json")
    assert len(open_samples(str(tmp_path / "o.json"), split=None)) == 2


def test_plain_metadata_lines_and_split_folders_are_read(tmp_path: Path) -> None:
    for split, name in (("train", "a.jpg"), ("validation", "b.jpg")):
        (tmp_path / split).mkdir()
        line = {"file_name": name, "phrase": "a cup", "bbox": [1, 2, 3, 4]}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    (row,) = open_samples(str(tmp_path), split="val")
    assert row.image == tmp_path / "validation" / "b.jpg" and row.box == (1, 2, 4, 6)


def test_hugging_face_loads_what_we_write(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    convert_data(str(squares), tmp_path / "hub")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "hub"), cache_dir=str(tmp_path / "c"))[
        "train"
    ]
    assert len(loaded) == 12 and loaded[0]["image"].size == (80, 60)
    assert sum(len(row["objects"]["phrase"]) for row in loaded) == 48
    convert_data(str(squares), tmp_path / "t.parquet")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "c"))
    assert table["train"][0]["phrase"] == read_jsonl(squares)[0].phrase


def test_a_missing_pyarrow_is_one_sentence(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'epmvg\[parquet\]'"):
        convert_data(str(squares), tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("target", "words"),
    [("t.xml", "means no format"), ("t.csv", "end it in .odvg.jsonl, .jsonl")],
)
def test_an_unknown_format_is_named(tmp_path: Path, squares: Path, target: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        convert_data(str(squares), tmp_path / target)
    (tmp_path / target).write_text("x")
    with pytest.raises(InputError, match="is a file of no known format"):
        open_samples(str(tmp_path / target), split=None)


@pytest.mark.parametrize("verb", [["stats"], ["convert", "--to", "t.jsonl"]])
def test_unusable_data_is_one_sentence_on_the_command_line(
    tmp_path: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("refcoc", "did you mean 'refcoco'?"), (str(tmp_path / "no.json"), "check the path")):
        with pytest.raises(SystemExit, match="2"):
            main(["data", *verb, name])
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize("image", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "", "a\0b", 7])
def test_images_stay_in_the_root(tmp_path: Path, image: object) -> None:
    row = {"image": image, "phrase": "a cup", "bbox": [1, 2, 3, 4]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"leads out of|not the path of a file"):
        open_samples(str(tmp_path / "t.jsonl"), split=None)


def test_paths_may_wander_inside_the_root(tmp_path: Path) -> None:
    rows = [
        {"image": str(image), "phrase": "a cup", "bbox": [1, 2, 3, 4]} for image in ("a/../b.jpg", tmp_path / "b.jpg")
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {record.image for record in open_samples(str(tmp_path / "t.jsonl"), split=None)} == {tmp_path / "b.jpg"}


def test_a_root_serves_rows_that_lie_elsewhere(tmp_path: Path, squares: Path) -> None:
    (tmp_path / "far").mkdir()
    rows = read_jsonl(squares)
    write_jsonl(tmp_path / "far" / "rows.jsonl", rows, root=squares.parent)
    assert read_jsonl(tmp_path / "far" / "rows.jsonl", root=squares.parent) == rows


def test_tables_that_are_no_rows_are_refused_in_one_sentence(tmp_path: Path) -> None:
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


def test_no_conversion_overwrites_what_it_reads(tmp_path: Path, squares: Path) -> None:
    source = tmp_path / "set"
    source.mkdir()
    convert_data(str(squares), source / "rows.jsonl")
    convert_data(str(squares), source / "hub")
    convert_data(str(squares), source / "s-00000.tar")
    (source / "link.jsonl").symlink_to(source / "rows.jsonl")
    (source / "refcoco").mkdir()
    (source / "refcoco" / "instances.json").write_text("{}")
    before = everything(source)
    for name, target in (
        ("rows.jsonl", "rows.jsonl"),
        ("link.jsonl", "rows.jsonl"),
        ("rows.jsonl", "link.jsonl"),
        ("hub", "hub"),
        ("hub", "hub/metadata.jsonl"),
        ("s-00000.tar", "s-00000.tar"),
    ):
        with pytest.raises(InputError, match="would overwrite"):
            convert_data(str(source / name), source / target)
        assert everything(source) == before, (name, target)
    with pytest.raises(InputError, match="would overwrite"):
        convert_data("refcoco", source / "refcoco" / "instances.json", root=source)


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
    name = read_jsonl(squares)[-1].image.name
    (target / name).write_bytes(b"another picture")
    before = everything(target)
    with pytest.raises(InputError, match=rf"{name} is another file than .*: choose another folder"):
        convert_data(str(squares), target)
    assert everything(target) == before
    read_jsonl(squares)[-1].image.unlink()
    with pytest.raises(InputError, match="does not exist"):
        convert_data(str(squares), tmp_path / "new")
    assert not everything(tmp_path / "new")
