"""Fenced blocks of README and docs, and small files with which they run.

HTML comments in a page, which are not rendered, declare what a block needs:

- `<!-- given: runs/mine street.jpg -->` lists files that a page assumes; the test puts small ones there.
- `<!-- not run: why -->` comes before a block that no test runs.

A `sh` block runs line by line, a `python` block in the namespace of the page's earlier ones, and a block with
`title="my.jsonl"` is written to that file.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from clips import write_clip

import epmvg
from epmvg.cli import main
from epmvg.core.calibration import Calibration
from epmvg.data.synthetic.scenes import write_scenes
from epmvg.models.factory import create_model, save

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r'^```(?P<language>[\w-]*)(?: title="(?P<title>[^"]+)")?$')
NOT_RUN = re.compile(r"^<!-- not run: (?P<why>\S.*) -->$")
GIVEN = re.compile(r"^<!-- given: (?P<names>.+) -->$", re.MULTILINE)
SNIPPET = re.compile(r'^--8<-- "(?P<file>[^"]+)"$', re.MULTILINE)

SIZES = {"train": 6, "val": 3, "test": 3, "open": 2, "captions": 8}
STUDENT: dict[str, Any] = {"dense_head": True, "similarity": True, "iou_head": True}
TRAINING = [
    *("model=tiny-resnet", "model.pretrained=false", *(f"model.{part}=true" for part in STUDENT)),
    *("data.image_size=null", "train.epochs=1", "train.warmup_steps=0", "train.cache_features=false"),
]
"""Inserted before a command's own settings, so that training takes a second."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str | None
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command of a `sh` block; a backslash joins lines."""
        if self.language != "sh":
            return []
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks_of(page: Path) -> list[Block]:
    """Read the blocks of a page in order, with their snippets inserted."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if start is None:
            start = number if line.startswith("```") else None
        elif line == "```":
            fence = FENCE.match(lines[start])
            assert fence, f"{page.name}:{start + 1}: {lines[start]!r} is not the first line of a block"
            reason = NOT_RUN.match(lines[start - 1])
            code = "".join(f"{each}\n" for each in lines[start + 1 : number])
            code = SNIPPET.sub(lambda match: (ROOT / match["file"]).read_text(encoding="utf-8").rstrip("\n"), code)
            name = str(page.relative_to(ROOT))
            found.append(Block(name, start + 1, fence["language"], fence["title"], code, reason and reason["why"]))
            start = None
    assert start is None, f"{page.name}:{start}: a block does not end"
    return found


def given(page: Path) -> list[str]:
    """Return the names of the files and folders that a page assumes."""
    return [name for match in GIVEN.finditer(page.read_text(encoding="utf-8")) for name in match["names"].split()]


def make_inputs(folder: Path) -> None:
    """Make one of each kind of input that a page can assume, with paths relative to `folder`, the current one."""
    write_scenes(folder / "scenes", sizes=SIZES)
    rows = [json.loads(line) for line in (folder / "scenes" / "annotations.jsonl").read_text().splitlines()]
    for row in rows:
        row["image"] = f"scenes/{row['image']}"
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] != "open"))
    captions = (folder / "scenes" / "captions.jsonl").read_text().replace('"images/', '"scenes/images/')
    (folder / "captions.jsonl").write_text(captions)
    write_clip(folder / "teacher")
    torch.manual_seed(0)
    model = create_model("tiny-resnet", **STUDENT)
    model.calibration = Calibration("beta", 1.5, 1.5, -0.5, 0.25, 0.1, {"data": "my", "split": "val"})
    model.calibration.fitted.update(coverage=0.5)  # type: ignore[union-attr]
    save(model, folder / "run")
    recipe = epmvg.Recipe.load("flickr-mini", "data.name=my.jsonl", *TRAINING)
    (folder / "run" / "config.yaml").write_text(recipe.dump())
    epmvg.evaluate(folder / "run")


def provide(name: str, inputs: Path, folder: Path) -> None:
    """Copy one input that a page assumes to where the page expects it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    photos = sorted((inputs / "scenes" / "images").glob("train-*"))
    if path.suffix in (".jpg", ".png"):
        shutil.copyfile(photos[0], path)
    elif name.endswith("photos"):
        path.mkdir()
        for photo in photos[:3]:
            shutil.copyfile(photo, path / photo.name)
    elif path.suffix == ".jsonl":
        shutil.copyfile(inputs / ("captions.jsonl" if path.name == "captions.jsonl" else "my.jsonl"), path)
        shutil.copytree(inputs / "scenes", path.parent / "scenes", dirs_exist_ok=True)
    else:
        kind = path.name if path.name == "scenes" else "teacher" if path.parent.name == "teachers" else "run"
        shutil.copytree(inputs / kind, path)


def run_block(block: Block, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block in the current folder; `names` is the page's Python namespace."""
    if block.title is not None:
        Path(block.title).write_text(block.code, encoding="utf-8")
    match block.language:
        case "python":
            exec(compile("\n" * block.line + block.code, block.page, "exec"), names)
        case "sh":
            for words in block.commands:
                run_command(words, f"{block}: {shlex.join(words)}", monkeypatch)
        case "json":
            for line in block.code.splitlines():
                json.loads(line)
        case "yaml":
            yaml.safe_load(block.code)
        case "xml":
            ElementTree.fromstring(block.code)
        case language:
            assert language == "text", f"{block} is neither run nor marked as not run"


def run_command(words: list[str], shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line: `epmvg ...`, or a Python file of this repository."""
    if words[0] == "epmvg":
        with pytest.raises(SystemExit) as ended:
            main(with_small_settings(words[1:]))
        assert not ended.value.code, shown
        return
    assert words[0] == "python" and (ROOT / words[1]).is_file(), f"{shown} is neither run nor marked as not run"
    monkeypatch.setattr(sys, "argv", words[1:])
    runpy.run_path(str(ROOT / words[1]), run_name="__main__")


def with_small_settings(words: list[str]) -> list[str]:
    """Insert the settings of a small training before the others of a command that trains."""
    if words[0] == "train":
        return [*words[:2], *TRAINING, *words[2:]]
    if words[:2] == ["teacher", "cache"]:
        return [*words[:3], *TRAINING, *words[3:]]
    return words
