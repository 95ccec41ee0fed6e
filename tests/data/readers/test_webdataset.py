"""WebDataset's tar layout: round trips lose nothing, foreign tars are read, and nothing is unpacked elsewhere."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from epmvg.core.types import InputError
from epmvg.data.convert import convert_data
from epmvg.data.readers.files import cache_folder
from epmvg.data.readers.webdataset import _ANNOTATIONS
from epmvg.data.registry import open_samples

ANNOTATION = {"phrase": "it", "bbox": [0, 0, 1, 1], "split": "train"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(file: Path, members: dict[str, object]) -> Path:
    """Write bytes as they are, a `TarInfo` as a member without content, and anything else as JSON."""
    with tarfile.open(file, "w") as tar:
        for name, given in members.items():
            if isinstance(given, tarfile.TarInfo):
                tar.addfile(given)
                continue
            content = given if isinstance(given, bytes) else json.dumps(given).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def names_in(file: Path) -> list[str]:
    with tarfile.open(file) as tar:
        return tar.getnames()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def test_a_round_trip_loses_nothing(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for split in ("train", "val"):
        convert_data(str(squares), tmp_path / "out" / f"{split}.tar", split=split)
    files = sorted((tmp_path / "out").iterdir())
    assert [len(names_in(file)) for file in files] == [12, 12]
    before, after = (open_samples(str(name), split=None) for name in (squares, tmp_path / "out" / "*.tar"))
    assert len(before) == len(after)
    for a, b in zip(sorted(before, key=lambda one: one.id), sorted(after, key=lambda one: one.id), strict=True):
        assert (a.phrase, a.box, a.split, a.id, a.size, a.extra) == (b.phrase, b.box, b.split, b.id, b.size, b.extra)
        assert a.image.read_bytes() == b.image.read_bytes()
    written = files[0].read_bytes()
    convert_data(str(squares), files[0], split="train")
    assert files[0].read_bytes() == written


def test_a_tar_that_tar_wrote_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("000", "deep/001.x"):
        (folder / f"{name}.png").write_bytes(png())
    (folder / "000.json").write_text(json.dumps(ANNOTATION))
    (folder / "deep" / "001.json").write_text(json.dumps([ANNOTATION, ANNOTATION | {"phrase": "that", "split": "val"}]))
    for name in ("000.txt", "000.cls", "._000.png", "alone.jpg", "README"):
        (folder / name).write_text("ignored")
    subprocess.run(["tar", "cf", str(tmp_path / "x.tar"), "-C", str(folder), "."], check=True)
    samples = open_samples(str(tmp_path / "x.tar"), split=None)
    assert sorted(sample.phrase for sample in samples) == ["it", "it", "that"]
    assert {sample.image.name for sample in samples} == {"000.png", "001.x.png"}
    assert all(sample.image.read_bytes() == png() for sample in samples)
    assert len(open_samples(str(tmp_path / "x.tar"), split="val")) == 1
    assert not list(cache_folder().rglob("alone.jpg"))


def test_names_with_dots_are_of_the_sample_before_the_first(tmp_path: Path) -> None:
    members: dict[str, object] = {
        "a.v1.png": png(),
        "a.v1.json": ANNOTATION,
        "b.png": png(),
        "b.json": ANNOTATION,
        "b.meta.json": {"x": 1},
    }
    samples = open_samples(str(write_tar(tmp_path / "dots.tar", members)), split=None)
    assert [sample.image.name for sample in samples] == ["a.v1.png", "b.png"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"../0.png": b"x", "../0.json": ANNOTATION}, r"bad\.tar, '\.\./0\.png' is outside the target folder"),
        ({"a/../../0.png": b"x", "a/../../0.json": ANNOTATION}, "is outside the target folder"),
        ({"/0.png": b"x", "/0.json": ANNOTATION}, "is outside the target folder"),
        *(
            ({"0.png": link("0.png", kind), "0.json": ANNOTATION}, r"bad\.tar, '0\.png' is not a regular file")
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)
        ),
        ({"0.left.png": b"x", "0.jpg": b"x", "0.json": ANNOTATION}, r"'0\.jpg' and '0\.left\.png' are of one sample"),
        ({"0.png": b"x", "./0.png": b"y", "0.json": ANNOTATION}, "are of one sample"),
        (
            {"0.1.png": b"x", "0.1.json": ANNOTATION, "0.2.json": ANNOTATION},
            r"'0\.2\.json' and '0\.1\.json' are of one",
        ),
        ({"0.png": b"x", "0.json": b"{"}, r"'0\.json' is not JSON"),
        ({"0.png": b"x", "0.json": [3]}, "not a JSON object"),
        ({"0.png": b"x", "0.json": {"phrase": "it"}}, r"bad\.tar, '0\.json': .bbox. is None"),
        ({"0.png": b"x"}, "no usable annotations"),
        ({"a\nb/../0.png": b"x"}, r"a\\nb"),
    ],
)
def test_a_hostile_or_unusable_tar_is_named_and_leaves_nothing(
    tmp_path: Path, cache: Path, members: dict[str, object], words: str
) -> None:
    archive = write_tar(tmp_path / "bad.tar", members)
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            open_samples(str(archive), split=None)
    assert not list(cache.rglob("*.part")) and not list(tmp_path.rglob("0.jpg"))
    assert all(cache in file.parents for file in tmp_path.rglob("*.png"))


def test_files_that_are_not_an_uncompressed_tar_are_named(tmp_path: Path, cache: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {"0.png": png() * 99, "0.json": ANNOTATION}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    (tmp_path / "text.tar").write_text("text")
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "text.tar")
    (tmp_path / "folder.tar").mkdir()
    for name in ("cut", "text", "empty", "packed"):
        with pytest.raises(InputError, match=rf"{name}\.tar is not an uncompressed tar"):
            open_samples(str(tmp_path / f"{name}.tar"), split=None)
    for name in ("none.tar", "x-*.tar", "fold*.tar"):
        with pytest.raises(InputError, match="cannot be opened"):
            open_samples(str(tmp_path / name), split=None)
    assert not [file for file in cache.rglob("*") if file.suffix != ".lock" and file.name != "webdataset"]


def test_processes_that_unpack_at_once_and_one_that_was_killed_agree(
    squares: Path, tmp_path: Path, cache: Path
) -> None:
    convert_data(str(squares), tmp_path / "x.tar")
    program = (
        "import sys; from epmvg.data.registry import open_samples; print(len(open_samples(sys.argv[1], split=None)))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.tar")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["48\n", "48\n"]
    (folder,) = (entry for entry in (cache / "webdataset").iterdir() if entry.is_dir())
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    open_samples(str(tmp_path / "x.tar"), split=None)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times  # not unpacked again
    part = folder.rename(folder.with_name(f".{folder.name}.part"))  # as a killed process leaves it
    (part / _ANNOTATIONS).write_text('{"truncated')
    assert len(open_samples(str(tmp_path / "x.tar"), split=None)) == 48


def test_a_changed_tar_is_unpacked_anew(tmp_path: Path) -> None:
    for phrase in ("it", "that one"):
        write_tar(
            tmp_path / "x.tar", {"0.png": png(), "0.json": ANNOTATION | {"phrase": phrase}, "1.txt": bytes(len(phrase))}
        )
        assert [sample.phrase for sample in open_samples(str(tmp_path / "x.tar"), split=None)] == [phrase]


def test_an_image_that_is_missing_leaves_the_old_tar(squares: Path, tmp_path: Path) -> None:
    convert_data(str(squares), tmp_path / "x.tar")
    before = (tmp_path / "x.tar").read_bytes()
    open_samples(str(squares), split=None)[-1].image.unlink()
    with pytest.raises(InputError, match=r"11\.png is missing"):
        convert_data(str(squares), tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == before and not list(tmp_path.glob(".*"))
