"""Images: one image has the same pixels in whatever form it is given, and other files are named."""

from __future__ import annotations

import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from epmvg.core.images import MAX_PIXELS, ImageError, ImageFile, image_digest, image_suffixes, open_image
from epmvg.core.locate import locate
from epmvg.core.types import InputError
from epmvg.data.validation.images import inspect_image
from epmvg.inference.draw import draw_boxes
from epmvg.report.gallery import thumbnail

FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "jpeg.tif": {"compression": "jpeg"},
    "avif": {"quality": 95},
    "mpo": {},
}
UNDONE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera does to an upright image before it writes that orientation."""


def upright(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Four corners of different colors, so that every turn shows."""
    corners = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], np.uint8)
    return Image.fromarray(corners).resize(size, Image.Resampling.NEAREST)


def forms(file: Path) -> Iterator[tuple[str, Any]]:
    """Everything a file's image can be given as."""
    content = file.read_bytes()
    yield from {"path": file, "text": str(file), "bytes": content, "bytearray": bytearray(content)}.items()
    yield "BytesIO", BytesIO(content)
    with file.open("rb") as opened:
        yield "file", opened
    for name, change in {"PIL": lambda image: image, "decoded": _decoded, "copied": Image.Image.copy}.items():
        with Image.open(file) as image:
            yield name, change(image)


def _decoded(image: Image.Image) -> Image.Image:
    image.load()
    return image


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_orientation_is_upright_in_every_form(suffix: str, tmp_path: Path) -> None:
    for orientation, undone in UNDONE.items():
        stored = upright() if undone is None else upright().transpose(undone)
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.{suffix}"
        stored.save(file, exif=exif, **FORMATS[suffix])
        with ImageFile(file) as photo:
            assert photo.size == (48, 32)
            opened = photo.decode()
        assert opened.size == (48, 32)
        difference = np.asarray(opened).astype(int) - np.asarray(upright())
        assert np.abs(difference[4:12, 4:20]).max() < 25 and np.abs(difference[20:28, 28:44]).max() < 25
        for name, given in forms(file):
            same = open_image(given)
            assert same.size == (48, 32) and same.tobytes() == opened.tobytes(), (suffix, orientation, name)
            assert open_image(same).tobytes() == opened.tobytes()  # turned once, not twice
        with Image.open(file) as given:
            assert draw_boxes(given, []).tobytes() == opened.tobytes()
        seen, small = inspect_image(file), thumbnail(file)
        assert seen.size == (48, 32) == (small.width, small.height)
        assert seen.turned is (orientation >= 5)


def images() -> dict[str, Image.Image]:
    gray = upright().convert("L")
    half = upright().convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    palette = upright().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    return {
        "gray.png": gray,
        "half.png": half,
        "gray and alpha.png": half.convert("LA"),
        "palette.png": palette,
        "deep.png": deep,
        "deep.tif": deep,
        "ink.jpg": upright().convert("CMYK"),
        "ink.tif": upright().convert("CMYK"),
        "bits.png": gray.convert("1"),
        "luma.tif": upright().convert("YCbCr"),
    }


@pytest.mark.parametrize("name", images())
def test_every_mode_is_alike_in_every_form(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    keys: dict[str, Any] = {"transparency": 1} if name == "palette.png" else {}
    images()[name].save(file, **keys)
    opened = open_image(file)
    for form, given in forms(file):
        assert open_image(given).tobytes() == opened.tobytes(), form
    if name.startswith("deep"):
        assert np.array_equal(np.asarray(opened)[..., 0], np.asarray(upright().convert("L")))
    if name == "palette.png":
        assert (np.asarray(opened) == 255).all(-1).any()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_white_are_rejected(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8), 200).save(tmp_path / "x.tif")
    for _, given in forms(tmp_path / "x.tif"):
        with pytest.raises(InputError, match="whose white is not known"):
            open_image(given)
    assert inspect_image(tmp_path / "x.tif").error


def test_arrays_and_tensors_equal_the_image() -> None:
    image = upright()
    pixels = np.asarray(image)
    half = image.convert("RGBA")
    half.putalpha(90)
    assert open_image(pixels).tobytes() == image.tobytes()
    assert open_image(pixels[:, ::-1][:, ::-1]).tobytes() == image.tobytes()  # a view with other strides
    assert open_image(np.asarray(half)).tobytes() == open_image(half).tobytes() != image.tobytes()
    gray = image.convert("L")
    for array in (np.asarray(gray), np.asarray(gray)[..., None]):
        assert open_image(array).tobytes() == gray.convert("RGB").tobytes()
    assert open_image(torch.from_numpy(pixels.copy()).permute(2, 0, 1)).tobytes() == image.tobytes()  # type: ignore[arg-type]


def test_a_given_image_is_not_changed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright().save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as given:
        first = open_image(given)
        assert given.size == (48, 32) and given.getexif()[0x0112] == 6
        assert open_image(given).tobytes() == first.tobytes() and first.size == (32, 48)


def test_broken_metadata_is_tolerated(tmp_path: Path) -> None:
    """Orientation 6 and a resolution that is text; then EXIF that is nothing at all."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entries + struct.pack("<I", 0)
    for number, exif in enumerate((b"Exif\0\0" + tiff, b"Exif\0\0" + b"nothing")):
        file = tmp_path / f"{number}.jpg"
        upright().save(file, exif=exif)
        for _, given in forms(file):
            assert open_image(given).size == ((32, 48) if number == 0 else (48, 32))
    upright().save(tmp_path / "xmp.png", xmp=b'<x tiff:Orientation="9" />')
    assert open_image(tmp_path / "xmp.png").size == (48, 32)


OTHER_FILES = {
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer: run `git lfs pull`"),
    "x.html": (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
    "x.txt": (b"hello", "no image that can be read here"),
    "nothing.jpg": (b"", "is empty"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_kinds_of_files_are_named(name: str, tmp_path: Path) -> None:
    content, message = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is .*{message.removeprefix('is ')}"):
        open_image(tmp_path / name)
    with pytest.raises(InputError, match=f"^The image is .*{message.removeprefix('is ')}"):
        open_image(content)


def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    upright().save(tmp_path / "x.heic", quality=95)
    Image.init()
    Image.ID.remove("HEIF")  # as before anybody queries for it
    opened = open_image(tmp_path / "x.heic")
    assert opened.size == (48, 32) and ".heic" in image_suffixes()
    for _, given in forms(tmp_path / "x.heic"):
        assert open_image(given).tobytes() == opened.tobytes()


def test_heic_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"is a HEIC image: pip install 'epmvg\[heic\]'"):
        open_image(head)


def test_wrong_types_and_paths_are_rejected(tmp_path: Path) -> None:
    for wrong in (None, 42, {"image": 1}, [upright()], object()):
        with pytest.raises(TypeError, match=r"^An image must be a path, .*, not \w+\.$"):
            open_image(wrong)  # type: ignore[arg-type]
    (tmp_path / "t.txt").write_text("x")
    with (tmp_path / "t.txt").open() as text, pytest.raises(TypeError, match="binary mode"):
        open_image(text)  # type: ignore[arg-type]
    for wrong_value, message in (
        ("", "empty string"),
        ("https://example.org/a.jpg", "is a URL"),
        ("data:image/png;base64,AAAA", "is a URL"),
        (tmp_path, "cannot be read"),
        (np.zeros((0, 0, 3), np.uint8), r"with pixels; this one is uint8 \[0, 0, 3\]"),
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((3, 4, 4), np.uint16), "uint8"),
        (torch.zeros(3, 4, 4), "torchvision"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
        (tmp_path / "none.jpg", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            open_image(wrong_value)  # type: ignore[arg-type]


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    upright().save(tmp_path / "x.png")
    assert open_image("~/x.png").size == open_image(Path("~/x.png")).size == (48, 32)


def test_a_file_name_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    upright().save("~nobody.png")
    assert open_image("~nobody.png").size == (48, 32) and image_digest("~nobody.png")
    with pytest.raises(InputError, match=r"~none\.png does not exist"):
        open_image("~none.png")
    with pytest.raises(InputError, match="There is no run ~none"):
        locate("~none")


def test_max_pixels_applies_to_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    large = Image.new("1", (10_000, MAX_PIXELS // 10_000 + 1))
    with pytest.raises(ImageError, match=f"give one of 1 to {MAX_PIXELS:,}"):
        open_image(large)
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS  # beyond, Pillow warns


def test_threads_do_not_change_the_warning_filters(tmp_path: Path) -> None:
    upright().save(tmp_path / "x.png")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(tmp_path / "x.png") for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_a_tiff_s_tag_is_read_before_and_after_decoding(tmp_path: Path) -> None:
    """Pillow tells a TIFF's size upright at once, but its tag until it is decoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright().save(tmp_path / "x.tif", exif=exif)
    with Image.open(tmp_path / "x.tif") as image:
        assert image.size == (32, 48)
        for _ in range(2):
            assert ImageFile(image).size == (32, 48)
            image.load()
