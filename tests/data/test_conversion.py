"""`data convert` of every format, there and back, and never over what it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import MALFORMED_FILES
from strategies import TARGETS
from typer.testing import CliRunner

from epmvg.cli import app, main
from epmvg.core.types import InputError
from epmvg.data.convert import convert_data
from epmvg.data.readers.annotations import MALFORMED
from epmvg.data.registry import open_samples


@pytest.mark.parametrize("kind", TARGETS)
def test_there_and_back(tmp_path: Path, squares: Path, kind: str) -> None:
    there, back = tmp_path / "other" / TARGETS[kind], tmp_path / "back.jsonl"
    result = CliRunner().invoke(app, ["data", "convert", str(squares), "--to", str(there), "--json"])
    done = json.loads(result.stdout)
    assert (done["samples"], done["images"], done["format"]) == (48, 12, kind)
    root = done["root"]
    assert CliRunner().invoke(app, ["data", "convert", str(there), "--root", root, "--to", str(back)]).exit_code == 0
    assert open_samples(str(squares), split=None) == open_samples(str(back), split=None)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_split_of_another_key_stays(tmp_path: Path, squares: Path, kind: str) -> None:
    lines = [json.loads(line) for line in squares.read_text().splitlines()]
    own = [{"mini_split": "val" if number % 3 else "", "split": "train"} for number in range(len(lines))]
    file = squares.with_name("mini.jsonl")
    file.write_text("".join(json.dumps(line | two) + "\n" for line, two in zip(lines, own, strict=True)))
    target = tmp_path / TARGETS[kind]
    root = convert_data(str(file), target, split_key="mini_split")["root"]
    samples = open_samples(str(target), split=None, root=root)
    assert {(sample.id, sample.split) for sample in samples} == {
        (str(line["id"]), two["mini_split"]) for line, two in zip(lines, own, strict=True)
    }
    assert {sample.extra["attributes.split"] for sample in samples} == {"train"}


@pytest.mark.parametrize("verb", [["stats"], ["convert", "--to", "t.jsonl"]])
def test_unusable_data_is_one_sentence(tmp_path: Path, verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("refcoc", "Did you mean 'refcoco'?"), (str(tmp_path / "no.json"), "Check the path")):
        with pytest.raises(SystemExit, match="2"):
            main(["data", *verb, name])
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and "Traceback" not in error


def everything(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_no_conversion_overwrites_what_it_reads(tmp_path: Path, squares: Path) -> None:
    source = tmp_path / "set"
    source.mkdir()
    convert_data(str(squares), source / "rows.jsonl")
    (source / "hub").mkdir()
    (source / "hub" / "metadata.jsonl").write_text("{}")
    convert_data(str(squares), source / "s-00000.tar")
    (source / "link.jsonl").symlink_to(source / "rows.jsonl")
    (source / "refcoco").mkdir()
    (source / "refcoco" / "instances.json").write_text("{}")
    before = everything(source)
    for name, target in (
        ("rows.jsonl", "rows.jsonl"),
        ("link.jsonl", "rows.jsonl"),
        ("rows.jsonl", "link.jsonl"),
        ("hub", "hub/metadata.jsonl"),
        ("s-00000.tar", "s-00000.tar"),
    ):
        with pytest.raises(InputError, match="would overwrite"):
            convert_data(str(source / name), source / target)
        assert everything(source) == before, (name, target)
    with pytest.raises(InputError, match="would overwrite"):
        convert_data("refcoco", source / "refcoco" / "instances.json", root=source)


def test_stats_and_convert_continue_after_a_malformed_annotation(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(MALFORMED_FILES["truncated.jsonl"]())
    for verb in (["stats"], ["convert", "--to", str(tmp_path / "out.json")]):
        done = CliRunner().invoke(app, ["data", *verb, str(file), "--json"])
        assert done.exit_code == 0 and json.loads(done.stdout)["skipped"] == {MALFORMED: 1}
