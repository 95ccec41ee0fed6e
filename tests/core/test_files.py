"""Files appear whole under any name, keep what they were, and never replace an input."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from epmvg.core.files import atomic_write, check_not_input, disk_errors, to_json, write_json, write_rows, write_text
from epmvg.core.types import InputError


@pytest.fixture(params=[0o022, 0o027])
def umask(request: pytest.FixtureRequest) -> int:
    mask = int(request.param)
    before = os.umask(mask)
    request.addfinalizer(lambda: os.umask(before))
    return mask


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_new_files_have_the_umask_s_mode_and_old_ones_keep_theirs(umask: int, tmp_path: Path) -> None:
    with atomic_write(tmp_path / "weights") as temporary:
        safetensors.torch.save_file({"a": torch.zeros(2)}, temporary)
    assert mode(tmp_path / "weights") == 0o666 & ~umask
    (tmp_path / "weights").chmod(0o600)
    write_text(tmp_path / "weights", "again")
    assert mode(tmp_path / "weights") == 0o600


def test_links_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "after")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "after"
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join()
    assert (tmp_path / "pipe").is_fifo() and read == ["through"]
    write_text(Path(os.devnull), "nothing")
    assert Path(os.devnull).is_char_device()


def test_several_writers_of_one_file_do_not_collide(tmp_path: Path) -> None:
    file = tmp_path / "same.txt"
    with atomic_write(file) as first, atomic_write(file) as second:
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first" and list(tmp_path.iterdir()) == [file]


def test_the_longest_file_name_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 120 + "b" * 15)
    write_text(file, "x")
    assert file.read_text() == "x"


def test_file_names_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.json")
    write_json(tmp_path / name, {"name": name, "café": 1})
    assert json.loads((tmp_path / name).read_bytes()) == {"name": name, "café": 1}
    assert "café" in to_json({"café": 1})


def test_other_errors_are_not_reported_as_disk_errors(tmp_path: Path) -> None:
    def fails_for_a_reason_of_its_own() -> None:
        try:
            (tmp_path / "missing").read_text()
        except OSError:
            raise KeyError("a programming error") from None

    with pytest.raises(KeyError), disk_errors(tmp_path / "out"):
        fails_for_a_reason_of_its_own()


def test_an_output_is_never_an_input_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "rows.jsonl"
    source.write_text("{}")
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "folder").mkdir()
    for out in (source, Path("rows.jsonl"), Path("folder/../rows.jsonl"), Path("soft"), Path("hard")):
        with pytest.raises(InputError, match="would overwrite the input"):
            check_not_input(out, None, source)
    check_not_input("other.jsonl", source, None, "not/there", "x" * 300, "nul\0")


def test_disk_errors_name_the_file_and_the_advice(tmp_path: Path) -> None:
    for error in (OSError(28, "full"), RuntimeError("cannot serialize (os error 28)")):
        with pytest.raises(InputError, match=r"out could not be written .*Free some space"), disk_errors(Path("out")):
            raise error
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "x")


def test_results_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"score": 0.12345678, "id": "a"}])
    assert (tmp_path / "rows.jsonl").read_text() == '{"score": 0.123457, "id": "a"}\n'
    with pytest.raises(InputError, match="NaN or Inf"):
        write_json(tmp_path / "bad.json", {"x": float("nan")})
    with pytest.raises(InputError, match="NaN or Inf"):
        write_rows(tmp_path / "bad.json", [{"x": float("inf")}])
    assert not (tmp_path / "bad.json").exists()
