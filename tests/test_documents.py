"""README and docs keep their word: what they show runs, what they name exists, and they make a site.

`pages.py` says how a page marks what its blocks need, and what no test runs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import PAGES, ROOT, SIZES, Block, blocks_of, given, lay, make_world, run_block
from typer.main import get_command

import epmvg
from epmvg.cli import app
from epmvg.config import Recipe
from epmvg.data.scenes import write_scenes
from epmvg.distill.losses import GroundingLoss
from epmvg.types import Embeddings

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(block.excuse is None for block in blocks_of(page))]
COMMANDS = [(block, words) for block in BLOCKS for words in block.commands]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world(folder)
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and drawn scenes so few that the set named `scenes` costs nothing."""
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    lay("cache/scenes", world, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, here: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in given(page):
        lay(name, world, here)
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if block.excuse is None:
            run_block(block, names, monkeypatch)


def test_every_excuse_stands_before_a_block() -> None:
    said = sum(page.read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert said == sum(block.excuse is not None for block in BLOCKS)


def test_commands_parse() -> None:
    """Every epmvg line, run or not, names a verb and options that exist, and its recipe and settings are valid."""
    said = [(block, words[words.index("epmvg") + 1 :]) for block, words in COMMANDS if "epmvg" in words]
    assert len(said) >= 50
    for block, words in said:
        verb: Any = get_command(app)
        while hasattr(verb, "commands"):
            assert words[0] in verb.commands, f"{block}: {shlex.join(words)}"
            verb, words = verb.commands[words[0]], words[1:]
        params = verb.make_context(verb.name, list(words)).params
        if "recipe" in params:
            Recipe.load(params["recipe"], *(params["settings"] or []))


def test_files_and_targets_that_commands_name_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block, words in COMMANDS:
        tool = next(at for at, word in enumerate(words) if "=" not in word)  # after its environment
        if words[tool] == "make":
            assert set(words[tool + 1 :]) <= targets, block
        if words[tool] in ("python", "bash") and not words[tool + 1].startswith("-"):
            assert (ROOT / words[tool + 1]).is_file(), block


def test_the_paper_s_table_points_at_code() -> None:
    source = ROOT / "src" / "epmvg"
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    pointers = re.findall(r"`([\w/]+\.py): ([\w.]+)`", text)
    assert len(pointers) > 15
    for file, symbol in pointers:
        code = (source / file).read_text(encoding="utf-8")
        for name in symbol.split("."):
            assert re.search(rf"(def|class) {name}\b", code), f"{file}: {symbol}"


def test_every_equation_s_number_stands_in_the_code() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "epmvg").rglob("*.py"))
    marked = {int(n) for mark in re.findall(r"#.*\(eq\. ([\d, ]+)\)", code) for n in mark.split(",")}
    assert marked == set(range(1, 9))
