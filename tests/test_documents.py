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
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import PAGES, ROOT, blocks_of, given, lay, make_world, run_block
from typer.main import get_command

import epmvg
from epmvg.cli import app
from epmvg.config.settings import Recipe
from epmvg.core.types import TeacherEmbeddings
from epmvg.distill.losses import GroundingLoss
from epmvg.experiments.demo import run_demo

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
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.excuse is None:
            run_block(block, names, monkeypatch)


def test_every_excuse_stands_before_a_block() -> None:
    said = sum(page.read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert said == sum(block.excuse is not None for block in BLOCKS)


def test_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epmvg line, run or not, names a verb and options that exist, and its recipe and settings are valid."""
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.title is not None:
            Path(block.title).write_text(block.code, encoding="utf-8")
    said = [(block, words[words.index("epmvg") + 1 :]) for block, words in COMMANDS if "epmvg" in words]
    assert len(said) >= 50
    for block, given_words in said:
        verb: Any = get_command(app)
        words = given_words
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


def test_links_lead_somewhere() -> None:
    """Those of the pages at the root; links between docs are checked as the site is built."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        assert all(link.startswith("http") or (ROOT / link).exists() for link in links), page


class Addresses(HTMLParser):
    """Collects what a page asks a browser to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = "href" if tag == "link" else "src"
        if tag != "a":
            self.found += [value or "" for name, value in attrs if name == wanted]


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1  # a page each, and one for what is not there; README is none of them
    for page in pages:
        asked = Addresses()
        asked.feed(page.read_text(encoding="utf-8"))
        assert asked.found and not [each for each in asked.found if each.startswith(("http", "//"))], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import) *['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    reference = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert [name for name in epmvg.__all__ if f'id="epmvg.{name}"' not in reference] == []


def test_the_notebook_runs_and_is_kept_without_outputs(here: Path) -> None:
    book = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(names["found"]) == 2 and names["scores"]["n"] > 0


def test_every_example_is_run() -> None:
    """By a page's command that runs, or by a test that names it."""
    shown = {words[1] for block, words in COMMANDS if block.excuse is None and words[0] == "python"}
    tests = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/test_*.py"))
    for example in (file for file in (ROOT / "examples").iterdir() if file.suffix in (".py", ".ipynb")):
        assert f"examples/{example.name}" in shown or f'"examples" / "{example.name}"' in tests, example


def test_a_foreign_student_is_short_and_can_be_distilled() -> None:
    """The student of docs/distill.md learns from a teacher's vectors through our loss."""
    block = next(block for block in blocks_of(ROOT / "docs" / "distill.md") if "class BagOfWords" in block.code)
    names: dict[str, Any] = {"__name__": "foreign_student"}
    exec(compile(block.code, block.page, "exec"), names)
    assert len(block.code.splitlines()) < 60
    torch.manual_seed(0)
    student = names["BagOfWords"]()
    image, image_mask = torch.rand(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.bool)
    tokens, image_index = torch.randint(1, 30_000, (3, 5)), torch.tensor([0, 1, 1])
    teacher = TeacherEmbeddings(torch.randn(2, 128), torch.randn(3, 128))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = GroundingLoss()(
            student(image, image_mask, tokens, tokens == 0, image_index), torch.full((3, 4), 0.4), teacher
        )
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append((loss.terms["image"] + loss.terms["text"]).item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_the_quick_demo_leaves_what_it_says(tmp_path: Path) -> None:
    run_demo(tmp_path / "demo", quick=True)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert {"plain", "distilled", "teacher", "seconds"} <= set(summary)
    assert all((tmp_path / "demo" / name).exists() for name in ("prediction.png", "report.html"))


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
