"""The doctor finds each planted fault, and that fault only; a clean set stays clean."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from epmvg.cli import app, main
from epmvg.core.types import InputError
from epmvg.data.convert import convert_data
from epmvg.data.validation import check
from epmvg.data.validation.findings import legible
from epmvg.data.validation.phrases import side_of

WIDTH, HEIGHT = 120, 90
NOUNS = ("cup", "dog", "tree", "car", "boat", "lamp", "chair", "kite", "clock", "bird", "shoe", "fence")
PLACES = ((4, 6, 50, 40), (60, 10, 40, 60), (30, 50, 60, 36), (80, 5, 36, 30))
Rows = list[dict[str, Any] | bytes]
Planter = Callable[[Path, Rows], None]


def picture(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A picture unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """A clean set: 36 photos in three splits, four phrases each."""
    (tmp_path / "images").mkdir()
    made: Rows = []
    for number in range(36):
        picture(number).save(tmp_path / f"images/{number}.jpg")
        split = "train" if number < 24 else "val" if number < 30 else "test"
        for place, box in enumerate(PLACES):
            phrase = f"the {NOUNS[(number + place) % 12]} {('in front', 'behind', 'below', 'above')[place]}"
            row = {"image": f"images/{number}.jpg", "phrase": phrase, "bbox": list(box), "split": split}
            made.append(row | {"id": f"{number}-{place}", "width": WIDTH, "height": HEIGHT})
    return made


def write(folder: Path, rows: Rows) -> Path:
    file = folder / "annotations.jsonl"
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return file


def put(**values: Any) -> Planter:
    """Plant values in one row."""

    def plant(folder: Path, rows: Rows) -> None:
        rows[7] = at(rows, 7) | values

    return plant


def at(rows: Rows, number: int) -> dict[str, Any]:
    row = rows[number]
    assert isinstance(row, dict)
    return row


def rename(old: str, new: str) -> Planter:
    def plant(folder: Path, rows: Rows) -> None:
        rows[:] = [{new if key == old else key: value for key, value in at(rows, i).items()} for i in range(len(rows))]

    return plant


def line(text: bytes) -> Planter:
    def plant(folder: Path, rows: Rows) -> None:
        rows[7] = text

    return plant


def boxes(turn: Callable[[float, float, float, float], tuple[float, ...]]) -> Planter:
    """Write every box of the file in another convention."""

    def plant(folder: Path, rows: Rows) -> None:
        for i in range(len(rows)):
            at(rows, i)["bbox"] = list(turn(*at(rows, i)["bbox"]))

    return plant


def photo(data: bytes | None) -> Planter:
    def plant(folder: Path, rows: Rows) -> None:
        file = folder / at(rows, 7)["image"]
        file.unlink()
        if data is not None:
            file.write_bytes(data)

    return plant


def torn(folder: Path, rows: Rows) -> None:
    file = folder / at(rows, 7)["image"]
    file.write_bytes(file.read_bytes()[:-400])


def bomb(folder: Path, rows: Rows) -> None:
    """A PNG of a few bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    file = folder / at(rows, 7)["image"]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def turned(folder: Path, rows: Rows) -> None:
    """The stored pixels lie on their side, and the boxes with them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(folder / "images/1.jpg", exif=exif)
    for i in range(4, 8):
        del at(rows, i)["width"], at(rows, i)["height"]


def mirrored(folder: Path, rows: Rows) -> None:
    rows[7] = at(rows, 7) | {"phrase": "the leftmost bird", "bbox": [90, 10, 28, 30]}


def copied(folder: Path, rows: Rows) -> None:
    rows.append(at(rows, 7))


def answered_twice(folder: Path, rows: Rows) -> None:
    rows.append(at(rows, 7) | {"bbox": [10, 10, 20, 20], "id": "again"})


def asked_in_two_splits(folder: Path, rows: Rows) -> None:
    rows[7] = at(rows, 7) | {"split": "test"}


def saved_anew(folder: Path, rows: Rows) -> None:
    """A photo of train stands in test too, smaller and under another name."""
    picture(3).resize((96, 72)).save(folder / "images/new.jpg", quality=60)
    rows.append({"image": "images/new.jpg", "phrase": "a kite", "bbox": [5, 5, 40, 40], "split": "test"})


def photoless(folder: Path, rows: Rows) -> None:
    for i in range(len(rows)):
        if at(rows, i)["split"] == "val":
            (folder / at(rows, i)["image"]).unlink(missing_ok=True)


def all_gone(folder: Path, rows: Rows) -> None:
    rows.clear()


def copied_under_another_id(folder: Path, rows: Rows) -> None:
    rows.append(at(rows, 7) | {"id": "copy"})


def one_id_for_two(folder: Path, rows: Rows) -> None:
    rows[7] = at(rows, 7) | {"id": at(rows, 6)["id"]}


def split_called(old: str, new: str) -> Planter:
    def plant(folder: Path, rows: Rows) -> None:
        for i in range(len(rows)):
            if at(rows, i)["split"] == old:
                at(rows, i)["split"] = new

    return plant


def no_split_at_all(folder: Path, rows: Rows) -> None:
    for i in range(len(rows)):
        del at(rows, i)["split"]


def backslashes(folder: Path, rows: Rows) -> None:
    for i in range(28, 32):
        at(rows, i)["image"] = at(rows, i)["image"].replace("/", "\\")


def animated(folder: Path, rows: Rows) -> None:
    picture(1).save(folder / "images/1.gif", save_all=True, append_images=[picture(40)])
    for i in range(4, 8):
        at(rows, i)["image"] = "images/1.gif"


def unsplit(folder: Path, rows: Rows) -> None:
    del at(rows, 7)["split"]


def nothing_there(key: str) -> Planter:
    def plant(folder: Path, rows: Rows) -> None:
        del at(rows, 7)[key]

    return plant


LONG = "the very small dog that is lying on the old brown rug beside the tall lamp and under the open window"

FAULTS: dict[str, tuple[str, Planter]] = {
    "not UTF-8": ("line-encoding", line(b'{"image": "images/1.jpg", "phrase": "caf\xe9", "bbox": [1, 2, 30, 40]}')),
    "broken JSON": ("line-json", line(b'{"image": "images/1.jpg", "phrase": "a cup", "bbox": [1, 2,')),
    "a list": ("line-json", line(b'["images/1.jpg", "a cup", [1, 2, 30, 40]]')),
    "nested too deep": ("line-json", line(b"[" * 100_000)),
    "no phrase": ("key-missing", nothing_there("phrase")),
    "no box": ("key-missing", nothing_there("bbox")),
    "box for bbox": ("key-renamed", rename("bbox", "box")),
    "sentence for phrase": ("key-renamed", rename("phrase", "sentence")),
    "file_name for image": ("key-renamed", rename("image", "file_name")),
    "phrase is a number": ("value-type", put(phrase=7)),
    "box of truths": ("value-type", put(bbox=[True, 2, 30, 40])),
    "box of three": ("value-type", put(bbox=[1, 2, 30])),
    "width is a word": ("value-type", put(width="wide")),
    "split is a list": ("value-type", put(split=["train"])),
    "NaN": ("box-number", put(bbox=[1, 2, float("nan"), 4])),
    "infinity": ("box-number", put(bbox=[1, 2, float("inf"), 4])),
    "outside": ("box-outside", put(bbox=[90, 10, 60, 20])),
    "left of the image": ("box-outside", put(bbox=[-20, 10, 60, 20])),
    "no width": ("box-empty", put(bbox=[10, 10, 0, 20])),
    "inverted": ("box-inverted", put(bbox=[60, 10, -40, 20])),
    "a pixel wide": ("box-thin", put(bbox=[60, 10, 1, 20])),
    "corners": ("box-corners", boxes(lambda x, y, w, h: (x, y, x + w, y + h))),
    "centres": ("box-centre", boxes(lambda x, y, w, h: (x + w / 2, y + h / 2, w, h))),
    "converted twice": ("box-sizes", boxes(lambda x, y, w, h: (x, y, w - x, h - y))),
    "0..1": ("box-0-1", boxes(lambda x, y, w, h: (x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT))),
    "0..1000": (
        "box-0-1000",
        boxes(lambda x, y, w, h: (1000 * x / WIDTH, 1000 * y / HEIGHT, 1000 * w / WIDTH, 1000 * h / HEIGHT)),
    ),
    "empty phrase": ("phrase-empty", put(phrase="  ")),
    "long phrase": ("phrase-long", put(phrase=LONG)),
    "emoji": ("phrase-unknown", put(phrase="\N{DOG FACE}")),
    "control character": ("phrase-control", put(phrase="a red\x07 cup")),
    "zero-width space": ("phrase-control", put(phrase="a red\u200b cup")),
    "HTML": ("phrase-markup", put(phrase="a <b>red</b> cup")),
    "HTML entity": ("phrase-markup", put(phrase="salt &amp; pepper")),
    "not normalised": ("phrase-unicode", put(phrase="a cafe\u0301 sign")),
    "read as Latin-1": ("phrase-unicode", put(phrase="a caf\u00c3\u00a9 sign")),
    "half a letter": ("phrase-unicode", put(phrase="a \ud83d cup")),
    "wrong side": ("side-word", mirrored),
    "a copy": ("row-twice", copied),
    "a copy with another id": ("row-twice", copied_under_another_id),
    "an id twice": ("id-twice", one_id_for_two),
    "no val": ("split-missing", split_called("val", "test")),
    "val by another name": ("split-missing", split_called("val", "valid")),
    "no split at all": ("split-missing", no_split_at_all),
    "backslashes": ("image-spelling", backslashes),
    "an animation": ("image-animated", animated),
    "a Git LFS pointer": ("image-foreign", photo(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")),
    "a line of 11 MB": ("line-json", line(b'{"image": "' + b"x" * 11_000_000 + b'"}')),
    "two answers": ("phrase-two-boxes", answered_twice),
    "out of the root": ("image-path", put(image="../../secret.jpg")),
    "an absolute path": ("image-path", put(image="/etc/hostname")),
    "no photo": ("image-missing", photo(None)),
    "zero bytes": ("image-empty", photo(b"")),
    "truncated": ("image-torn", torn),
    "a web page": ("image-foreign", photo(b"<!DOCTYPE html><title>404</title>")),
    "decompression bomb": ("image-bomb", bomb),
    "another size": ("size-stated", put(width=240, height=180)),
    "EXIF": ("image-turned", turned),
    "two splits": ("split-same-image", asked_in_two_splits),
    "two splits, saved anew": ("split-same-look", saved_anew),
    "a row without split": ("split-unnamed", unsplit),
    "no rows": ("split-empty", all_gone),
    "a split without photos": ("split-no-photos", photoless),
}


def test_a_clean_set_stays_clean(tmp_path: Path, rows: Rows) -> None:
    diagnosis = check(str(write(tmp_path, rows)))
    assert diagnosis.findings == [] and diagnosis.clean
    assert diagnosis.splits["train"] == {"images": 24, "phrases": 96}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_alone(fault: str, tmp_path: Path, rows: Rows) -> None:
    kind, plant = FAULTS[fault]
    plant(tmp_path, rows)
    diagnosis = check(str(write(tmp_path, rows)))
    assert [one.name for one in diagnosis.findings] == [kind]
    assert diagnosis.findings[0].count > 0 and diagnosis.findings[0].examples
    json.dumps(diagnosis.as_dict())
    "".join("".join(row.values()) for row in diagnosis.table()).encode()


@pytest.mark.parametrize("line", ["images/33.jpg", "33", "0000000033.jpg"])
def test_a_list_is_compared_with_evaluation_splits_only(line: str, tmp_path: Path, rows: Rows) -> None:
    for number in (3, 33):  # one of train, one of test
        name = f"images/COCO_{number:012d}.jpg" if line.startswith("000") or line == "33" else f"images/{number}.jpg"
        (tmp_path / f"images/{number}.jpg").rename(tmp_path / name)
        for place in range(4 * number, 4 * number + 4):
            at(rows, place)["image"] = name
    listed = tmp_path / "list.txt"
    listed.write_text(f"{line}\n{line.replace('33', '3')}\nother.jpg\n")
    (found,) = check(str(write(tmp_path, rows)), against=listed).findings
    assert (found.name, found.count) == ("list-same-image", 1)


def test_photos_of_a_list_are_compared_by_look(tmp_path: Path, rows: Rows) -> None:
    picture(33).resize((60, 45)).save(tmp_path / "seen-in-training.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text("seen-in-training.jpg\n")
    (found,) = check(str(write(tmp_path, rows)), against=listed).findings
    assert (found.name, found.count) == ("list-same-look", 1)


def test_a_named_set_lacks_a_split(tmp_path: Path, rows: Rows) -> None:
    kept: Rows = [at(rows, i) | {"mini_split": at(rows, i)["split"]} for i in range(96)]
    write(tmp_path, kept)
    diagnosis = check("flickr-mini", root=tmp_path)
    assert [(one.name, one.count) for one in diagnosis.findings] == [("split-empty", 2)]


def test_what_a_reader_refuses_is_counted(tmp_path: Path, rows: Rows) -> None:
    at(rows, 7)["bbox"] = [10, 10, 0, 20]
    (tmp_path / "metadata.jsonl").write_bytes(write(tmp_path, rows).read_bytes().replace(b'"image"', b'"file_name"'))
    assert [one.name for one in check(str(tmp_path)).findings] == ["row-refused"]


def test_real_photos_raise_no_alarm_that_is_not_explained(shared: Path) -> None:
    diagnosis = check("flickr-mini", root=shared / "real_grounding")
    counts = {one.name: one.count for one in diagnosis.findings}
    assert counts == {
        "row-twice": 20_782,
        "phrase-two-boxes": 708,
        "phrase-long": 22,
    }  # docs/doctor.md says what they are


@pytest.mark.parametrize(
    ("phrase", "side"),
    [
        ("left", "left"),
        ("far right", "right"),
        ("Leftmost cup", "left"),
        ("the man on the right", "right"),
        ("woman on left side of the picture", "left"),
        ("the right-hand side", "right"),
        ("his left hand", None),
        ("right hand", None),
        ("the left arm", None),
        ("man looking at the left", None),
        ("the left of the two cups", None),
        ("the cup right next to the one on the left", None),
        ("the dog left behind", None),
        ("a bright cup", None),
        ("between the left and the right", None),
    ],
)
def test_only_absolute_phrases_name_a_side(phrase: str, side: str | None) -> None:
    assert side_of(phrase) == side


@pytest.mark.parametrize(("fault", "status"), [({}, 0), ({"phrase": ""}, 3), (None, 2)])
def test_the_command_says_by_its_status(
    fault: dict[str, Any] | None, status: int, tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    put(**(fault or {}))(tmp_path, rows)
    file = write(tmp_path, rows) if fault is not None else tmp_path / "absent.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(file), "--json"])
    assert ended.value.code == status
    said = capsys.readouterr()
    if status == 2:
        assert "absent.jsonl" in said.err and len(said.err.splitlines()) == 1
    else:
        found = json.loads(said.out)
        assert found["clean"] == (status == 0) and found["rows"] == len(rows)


def test_warnings_fail_only_if_asked_and_only_evaluation_needs_no_training_splits(tmp_path: Path, rows: Rows) -> None:
    copied(tmp_path, rows)
    file = write(tmp_path, rows)
    assert CliRunner().invoke(app, ["data", "check", str(file)]).exit_code == 0
    assert check(str(write(tmp_path, [row for row in rows if b"test" in json.dumps(row).encode()]))).usable


def test_every_bad_row_is_listed_and_the_rest_can_be_written(tmp_path: Path, rows: Rows) -> None:
    for number in range(0, 40, 4):
        at(rows, number)["phrase"] = " "
    rows[50] = b"{torn"
    at(rows, 60)["bbox"] = [1, 2, -3, 4]
    copied(tmp_path, rows)
    (tmp_path / at(rows, 100)["image"]).unlink()
    file, clean = write(tmp_path, rows), tmp_path / "clean.jsonl"
    run = CliRunner().invoke(app, ["data", "check", str(file), "--json", "--write-clean", str(clean)])
    told = json.loads(run.stdout)
    of_kind = {one["kind"]: one["rows"] for one in told["findings"]}
    assert of_kind["phrase-empty"] == [f"line {number + 1}" for number in range(0, 40, 4)]
    assert of_kind["line-json"] == ["line 51"] and of_kind["row-twice"] == ["line 145"]
    assert run.exit_code == 3 and told["written"] == 144 - 10 - 1 - 1 - 4
    again = check(str(clean))
    assert again.rows == told["written"] and again.findings == []


def test_clean_rows_of_other_formats_are_written_too(tmp_path: Path, rows: Rows) -> None:
    at(rows, 7)["bbox"] = [100, 10, 60, 20]
    at(rows, 9)["bbox"] = [1, 2, 0, 4]
    convert_data(str(write(tmp_path, rows)), tmp_path / "rows.json")
    diagnosis = check(str(tmp_path / "rows.json"), clean=tmp_path / "clean.odvg.jsonl")
    assert diagnosis.written == 142 and check(str(tmp_path / "clean.odvg.jsonl")).findings == []


def test_no_output_of_the_check_is_an_input(tmp_path: Path, rows: Rows) -> None:
    file = write(tmp_path, rows)
    before = file.read_bytes()
    run = CliRunner().invoke(app, ["data", "check", str(file), "--write-clean", str(file)])
    assert isinstance(run.exception, InputError) and "would overwrite" in str(run.exception)
    assert file.read_bytes() == before
    boxes(lambda x, y, w, h: (x, y, x + w, y + h))(tmp_path, rows)
    with pytest.raises(InputError, match="was not written: bbox looks like corners"):
        check(str(write(tmp_path, rows)), clean=tmp_path / "clean.jsonl")
    assert not (tmp_path / "clean.jsonl").exists()


def test_a_list_with_a_line_that_is_no_name_is_read(tmp_path: Path, rows: Rows) -> None:
    (tmp_path / "list.txt").write_text("x" * 5000 + "\nimages/33.jpg\n")
    (found,) = check(str(write(tmp_path, rows)), against=tmp_path / "list.txt").findings
    assert found.name == "list-same-image"


def test_words_for_what_cannot_be_read(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        check(str(tmp_path / "nowhere.jsonl"))
    file = write(tmp_path, rows)
    with pytest.raises(InputError, match="list"):
        check(str(file), against=tmp_path / "list.txt")


def test_legible() -> None:
    assert legible("caf\u00e9 \x1b[31m\ud83d") == "caf\u00e9 \\x1b[31m\\ud83d"
    assert len(legible("x" * 500)) == 120
