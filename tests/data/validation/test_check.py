"""The data check finds each planted fault, and that fault only; a correct data set has no issue."""

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
from epmvg.data.validation.issues import printable

WIDTH, HEIGHT = 120, 90
NOUNS = ("cup", "dog", "tree", "car", "boat", "lamp", "chair", "kite", "clock", "bird", "shoe", "fence")
PLACES = ((4, 6, 50, 40), (60, 10, 40, 60), (30, 50, 60, 36), (80, 5, 36, 30))
Lines = list[dict[str, Any] | bytes]
Planter = Callable[[Path, Lines], None]


def draw_image(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Draw an image that differs from those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """A correct data set: 36 images in three splits, four phrases each."""
    (tmp_path / "images").mkdir()
    made: Lines = []
    for number in range(36):
        draw_image(number).save(tmp_path / f"images/{number}.jpg")
        split = "train" if number < 24 else "val" if number < 30 else "test"
        for place, box in enumerate(PLACES):
            phrase = f"the {NOUNS[(number + place) % 12]} {('in front', 'behind', 'below', 'above')[place]}"
            annotation = {"image": f"images/{number}.jpg", "phrase": phrase, "bbox": list(box), "split": split}
            made.append(annotation | {"id": f"{number}-{place}", "width": WIDTH, "height": HEIGHT})
    return made


def write(folder: Path, lines: Lines) -> Path:
    file = folder / "annotations.jsonl"
    file.write_bytes(
        b"".join(
            (annotation if isinstance(annotation, bytes) else json.dumps(annotation).encode()) + b"\n"
            for annotation in lines
        )
    )
    return file


def put(**values: Any) -> Planter:
    """Change values of one annotation."""

    def plant(folder: Path, lines: Lines) -> None:
        lines[7] = at(lines, 7) | values

    return plant


def at(lines: Lines, number: int) -> dict[str, Any]:
    annotation = lines[number]
    assert isinstance(annotation, dict)
    return annotation


def line(text: bytes) -> Planter:
    def plant(folder: Path, lines: Lines) -> None:
        lines[7] = text

    return plant


def boxes(turn: Callable[[float, float, float, float], tuple[float, ...]]) -> Planter:
    """Write every box of the file in another convention."""

    def plant(folder: Path, lines: Lines) -> None:
        for i in range(len(lines)):
            at(lines, i)["bbox"] = list(turn(*at(lines, i)["bbox"]))

    return plant


def image_file(data: bytes | None) -> Planter:
    def plant(folder: Path, lines: Lines) -> None:
        file = folder / at(lines, 7)["image"]
        file.unlink()
        if data is not None:
            file.write_bytes(data)

    return plant


def truncated(folder: Path, lines: Lines) -> None:
    file = folder / at(lines, 7)["image"]
    file.write_bytes(file.read_bytes()[:-400])


def bomb(folder: Path, lines: Lines) -> None:
    """A PNG of a few bytes whose header states 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    file = folder / at(lines, 7)["image"]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def turned(folder: Path, lines: Lines) -> None:
    """The stored pixels are turned by EXIF, and the boxes are those of the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_image(1).save(folder / "images/1.jpg", exif=exif)
    for i in range(4, 8):
        del at(lines, i)["width"], at(lines, i)["height"]


def copied(folder: Path, lines: Lines) -> None:
    lines.append(at(lines, 7))


def two_boxes(folder: Path, lines: Lines) -> None:
    lines.append(at(lines, 7) | {"bbox": [10, 10, 20, 20], "id": "other"})


def in_two_splits(folder: Path, lines: Lines) -> None:
    lines[7] = at(lines, 7) | {"split": "test"}


def saved_again(folder: Path, lines: Lines) -> None:
    """An image of train is in test too, smaller and under another name."""
    draw_image(3).resize((96, 72)).save(folder / "images/new.jpg", quality=60)
    lines.append({"image": "images/new.jpg", "phrase": "a kite", "bbox": [5, 5, 40, 40], "split": "test"})


def empty(folder: Path, lines: Lines) -> None:
    lines.clear()


def copied_under_another_id(folder: Path, lines: Lines) -> None:
    lines.append(at(lines, 7) | {"id": "copy"})


def one_id_for_two(folder: Path, lines: Lines) -> None:
    lines[7] = at(lines, 7) | {"id": at(lines, 6)["id"]}


def split_called(old: str, new: str) -> Planter:
    def plant(folder: Path, lines: Lines) -> None:
        for i in range(len(lines)):
            if at(lines, i)["split"] == old:
                at(lines, i)["split"] = new

    return plant


def no_split_at_all(folder: Path, lines: Lines) -> None:
    for i in range(len(lines)):
        del at(lines, i)["split"]


def without(key: str) -> Planter:
    def plant(folder: Path, lines: Lines) -> None:
        del at(lines, 7)[key]

    return plant


LONG = "the very small dog that is lying on the old brown rug beside the tall lamp and under the open window"

FAULTS: dict[str, tuple[str, str, Planter]] = {
    "not UTF-8": (
        "sample-malformed",
        "not UTF-8",
        line(b'{"image": "images/1.jpg", "phrase": "caf\xe9", "bbox": [1, 2, 30, 40]}'),
    ),
    "broken JSON": (
        "sample-malformed",
        "not JSON",
        line(b'{"image": "images/1.jpg", "phrase": "a cup", "bbox": [1, 2,'),
    ),
    "a list": ("sample-malformed", "not a JSON object", line(b'["images/1.jpg", "a cup", [1, 2, 30, 40]]')),
    "nested too deep": ("sample-malformed", "recursion", line(b"[" * 100_000)),
    "a line of 11 MB": ("sample-malformed", "", line(b'{"image": "' + b"x" * 11_000_000 + b'"}')),
    "no phrase": ("sample-malformed", '"phrase"', without("phrase")),
    "no box": ("sample-malformed", '"bbox"', without("bbox")),
    "phrase is a number": ("sample-malformed", '"phrase" is 7', put(phrase=7)),
    "box of truths": ("sample-malformed", "[True, 2, 30, 40]", put(bbox=[True, 2, 30, 40])),
    "box of three": ("sample-malformed", "[1, 2, 30]", put(bbox=[1, 2, 30])),
    "width is a word": ("sample-malformed", "'wide'", put(width="wide")),
    "split is a list": ("sample-malformed", "['train']", put(split=["train"])),
    "out of the root": ("sample-malformed", "--root", put(image="../../secret.jpg")),
    "an absolute path": ("sample-malformed", "--root", put(image="/etc/hostname")),
    "NaN": ("box-invalid", "nan", put(bbox=[1, 2, float("nan"), 4])),
    "infinity": ("box-invalid", "inf", put(bbox=[1, 2, float("inf"), 4])),
    "no width": ("box-invalid", "0 x 20", put(bbox=[10, 10, 0, 20])),
    "inverted": ("box-invalid", "-40 x 20", put(bbox=[60, 10, -40, 20])),
    "outside": ("box-outside", "30 px outside of 120 x 90", put(bbox=[90, 10, 60, 20])),
    "left of the image": ("box-outside", "20 px outside", put(bbox=[-20, 10, 60, 20])),
    "a pixel wide": ("box-thin", "1 x 20", put(bbox=[60, 10, 1, 20])),
    "corners": ("box-convention", "as corners, 144", boxes(lambda x, y, w, h: (x, y, x + w, y + h))),
    "centers": ("box-convention", "as center x", boxes(lambda x, y, w, h: (x + w / 2, y + h / 2, w, h))),
    "0..1": (
        "box-convention",
        "as fractions of the sides, 144",
        boxes(lambda x, y, w, h: (x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT)),
    ),
    "0..1000": (
        "box-convention",
        "as thousandths",
        boxes(lambda x, y, w, h: (1000 * x / WIDTH, 1000 * y / HEIGHT, 1000 * w / WIDTH, 1000 * h / HEIGHT)),
    ),
    "empty phrase": ("phrase-unusable", "empty", put(phrase="  ")),
    "half a letter": ("phrase-unusable", "", put(phrase="a \ud83d cup")),
    "a document": ("phrase-unusable", "words", put(phrase="word " * 200)),
    "long phrase": ("phrase-long", "tokens", put(phrase=LONG)),
    "emoji": ("phrase-unknown", "", put(phrase="\N{DOG FACE}")),
    "control character": ("phrase-characters", "", put(phrase="a red\x07 cup")),
    "zero-width space": ("phrase-characters", "", put(phrase="a red\u200b cup")),
    "not normalized": ("phrase-characters", "", put(phrase="a cafe\u0301 sign")),
    "read as Latin-1": ("phrase-characters", "", put(phrase="a caf\u00c3\u00a9 sign")),
    "a copy": ("sample-duplicate", "", copied),
    "a copy with another id": ("sample-duplicate", "", copied_under_another_id),
    "an id twice": ("id-duplicate", "id 1-2", one_id_for_two),
    "two boxes": ("phrase-two-boxes", "line 8", two_boxes),
    "no image": ("image-missing", "exist", image_file(None)),
    "zero bytes": ("image-unreadable", "empty", image_file(b"")),
    "truncated": ("image-unreadable", "decoded", truncated),
    "a web page": ("image-unreadable", "", image_file(b"<!DOCTYPE html><title>404</title>")),
    "a Git LFS pointer": (
        "image-unreadable",
        "",
        image_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"),
    ),
    "decompression bomb": ("image-unreadable", "pixels", bomb),
    "another size": ("image-size", "(240, 180)", put(width=240, height=180)),
    "EXIF": ("image-turned", "4 of 4", turned),
    "two splits": ("split-same-image", "train and test", in_two_splits),
    "two splits, saved again": ("split-similar-image", "new.jpg", saved_again),
    "a sample without split": ("split-unnamed", "", without("split")),
    "no val": ("split-missing", "val", split_called("val", "test")),
    "val by another name": ("split-missing", "there are test, train, valid", split_called("val", "valid")),
    "no split at all": ("split-missing", "no sample names a split", no_split_at_all),
    "no samples": ("split-missing", "no samples", empty),
}


def test_a_correct_data_set_has_no_issues(tmp_path: Path, lines: Lines) -> None:
    report = check(str(write(tmp_path, lines)))
    assert report.issues == {} and report.clean
    assert report.splits["train"] == {"images": 24, "phrases": 96}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_alone(fault: str, tmp_path: Path, lines: Lines) -> None:
    kind, note, plant = FAULTS[fault]
    plant(tmp_path, lines)
    report = check(str(write(tmp_path, lines)))
    assert list(report.issues) == [kind]
    assert note in report.issues[kind][0].note
    json.dumps(report.as_dict())
    "".join("".join(annotation.values()) for annotation in report.table()).encode()


@pytest.mark.parametrize("line", ["images/33.jpg", "33", "0000000033.jpg"])
def test_a_list_is_compared_with_evaluation_splits_only(line: str, tmp_path: Path, lines: Lines) -> None:
    for number in (3, 33):  # one of train, one of test
        name = f"images/COCO_{number:012d}.jpg" if line.startswith("000") or line == "33" else f"images/{number}.jpg"
        (tmp_path / f"images/{number}.jpg").rename(tmp_path / name)
        for place in range(4 * number, 4 * number + 4):
            at(lines, place)["image"] = name
    listed = tmp_path / "list.txt"
    listed.write_text(f"{line}\n{line.replace('33', '3')}\nother.jpg\n")
    issues = check(str(write(tmp_path, lines)), against=listed).issues
    assert {kind: len(found) for kind, found in issues.items()} == {"list-same-image": 1}


def test_a_named_data_set_lacks_splits(tmp_path: Path, lines: Lines) -> None:
    kept: Lines = [at(lines, i) | {"mini_split": at(lines, i)["split"]} for i in range(96)]
    write(tmp_path, kept)
    issues = check("flickr-mini", root=tmp_path).issues
    assert [issue.note.split()[0] for issue in issues.pop("split-missing")] == ["val", "test"] and not issues


def test_other_formats_keep_samples_with_unusable_boxes(tmp_path: Path, lines: Lines) -> None:
    at(lines, 7)["bbox"] = [10, 10, 0, 20]
    (tmp_path / "metadata.jsonl").write_bytes(write(tmp_path, lines).read_bytes().replace(b'"image"', b'"file_name"'))
    report = check(str(tmp_path))
    assert list(report.issues) == ["box-invalid"] and report.samples == len(lines)


@pytest.mark.slow
def test_issues_of_real_photos_are_known(shared: Path) -> None:
    report = check("flickr-mini", root=shared / "real_grounding")
    counts = {kind: len(found) for kind, found in report.issues.items()}
    assert counts == {"sample-duplicate": 20_782, "phrase-two-boxes": 708, "phrase-long": 22}  # docs/data.md


@pytest.mark.parametrize(("fault", "status"), [({}, 0), ({"phrase": ""}, 3), (None, 2)])
def test_exit_status_of_the_command(
    fault: dict[str, Any] | None,
    status: int,
    tmp_path: Path,
    lines: Lines,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(**(fault or {}))(tmp_path, lines)
    file = write(tmp_path, lines) if fault is not None else tmp_path / "absent.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(file), "--json"])
    assert ended.value.code == status
    printed = capsys.readouterr()
    if status == 2:
        assert "absent.jsonl" in printed.err and len(printed.err.splitlines()) == 1
    else:
        found = json.loads(printed.out)
        assert found["clean"] == (status == 0) and found["samples"] == len(lines)


def test_warnings_pass_and_evaluation_alone_needs_no_training_splits(tmp_path: Path, lines: Lines) -> None:
    copied(tmp_path, lines)
    file = write(tmp_path, lines)
    assert CliRunner().invoke(app, ["data", "check", str(file)]).exit_code == 0
    assert check(
        str(write(tmp_path, [annotation for annotation in lines if b"test" in json.dumps(annotation).encode()]))
    ).usable


def test_every_sample_with_an_error_is_listed_and_the_rest_is_written(tmp_path: Path, lines: Lines) -> None:
    for number in range(0, 40, 4):
        at(lines, number)["phrase"] = " "
    lines[50] = b"{truncated"
    at(lines, 60)["bbox"] = [1, 2, -3, 4]
    copied(tmp_path, lines)
    copied_under_another_id(tmp_path, lines)  # stays: two annotators may agree
    (tmp_path / at(lines, 100)["image"]).unlink()
    file, clean = write(tmp_path, lines), tmp_path / "clean.jsonl"
    run = CliRunner().invoke(app, ["data", "check", str(file), "--json", "--write-clean", str(clean)])
    printed = json.loads(run.stdout)
    samples = {issue["kind"]: issue["samples"] for issue in printed["issues"]}
    assert samples["phrase-unusable"] == [f"line {number + 1}" for number in range(0, 40, 4)]
    assert samples["sample-malformed"] == ["line 51"] and samples["sample-duplicate"] == ["line 145", "line 146"]
    assert run.exit_code == 3 and printed["written"] == 144 - 10 - 1 - 1 - 4 + 1
    again = check(str(clean))
    assert again.samples == printed["written"] and list(again.issues) == ["sample-duplicate"]


def test_clean_samples_of_other_formats_are_written_too(tmp_path: Path, lines: Lines) -> None:
    at(lines, 7)["bbox"] = [100, 10, 60, 20]
    at(lines, 9)["bbox"] = [1, 2, 0, 4]
    convert_data(str(write(tmp_path, lines)), tmp_path / "coco.json")
    report = check(str(tmp_path / "coco.json"), clean=tmp_path / "clean.odvg.jsonl")
    assert report.written == 142 and check(str(tmp_path / "clean.odvg.jsonl")).clean


def test_no_output_of_the_check_is_an_input(tmp_path: Path, lines: Lines) -> None:
    file = write(tmp_path, lines)
    before = file.read_bytes()
    run = CliRunner().invoke(app, ["data", "check", str(file), "--write-clean", str(file)])
    assert isinstance(run.exception, InputError) and "would overwrite" in str(run.exception)
    assert file.read_bytes() == before
    boxes(lambda x, y, w, h: (x, y, x + w, y + h))(tmp_path, lines)
    with pytest.raises(InputError, match=r"was not written: bbox of all samples"):
        check(str(write(tmp_path, lines)), clean=tmp_path / "clean.jsonl")
    for i in range(len(lines)):
        at(lines, i)["phrase"] = ""
    with pytest.raises(InputError, match="was not written: all samples have errors"):
        check(str(write(tmp_path, lines[:4])), clean=tmp_path / "clean.jsonl")
    assert not (tmp_path / "clean.jsonl").exists()


def test_a_list_with_a_line_that_is_no_file_name_is_read(tmp_path: Path, lines: Lines) -> None:
    (tmp_path / "list.txt").write_text("x" * 5000 + "\nimages/33.jpg\n")
    issues = check(str(write(tmp_path, lines)), against=tmp_path / "list.txt").issues
    assert list(issues) == ["list-same-image"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path, lines: Lines) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        check(str(tmp_path / "nowhere.jsonl"))
    file = write(tmp_path, lines)
    with pytest.raises(InputError, match="list"):
        check(str(file), against=tmp_path / "list.txt")


def test_texts_in_reports_are_printable() -> None:
    assert printable("caf\u00e9 \x1b[31m\ud83d") == "caf\u00e9 \\x1b[31m\\ud83d"
    assert len(printable("x" * 500)) == 200
