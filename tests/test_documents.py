"""README and docs match the code: their blocks run, the names in them exist, and the site builds.

`pages.py` explains how a page declares what its blocks need, and which are not run.
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
from pages import PAGES, ROOT, blocks_of, given, make_inputs, provide, run_block
from typer.main import get_command

import epmvg
from epmvg.cli import app
from epmvg.config.settings import Recipe
from epmvg.core.types import TeacherEmbeddings
from epmvg.distill.losses import GroundingLoss
from epmvg.experiments.demo import run_demo

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]
REPOSITORY_PATH = re.compile(r"(?<![\w./-])(?:tests|src|docs|benchmarks|examples|scripts)/[\w./-]*\w")
COMMANDS = [(block, words) for block in BLOCKS for words in block.commands]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_inputs(folder)
    return folder


@pytest.fixture
def working_folder(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a cache in which the data set `scenes` has a few images."""
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path / "cache"))
    provide("cache/scenes", inputs, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(
    page: Path, working_folder: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in given(page):
        provide(name, inputs, working_folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.reason is None:
            run_block(block, names, monkeypatch)


def test_every_not_run_comment_is_before_a_block() -> None:
    comments = sum(page.read_text(encoding="utf-8").count("<!-- not run") for page in PAGES)
    assert comments == sum(block.reason is not None for block in BLOCKS)


def test_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and options of every epmvg line, run or not, exist, and its recipe and settings are valid."""
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        if block.title is not None:
            Path(block.title).write_text(block.code, encoding="utf-8")
    lines = [(block, words[words.index("epmvg") + 1 :]) for block, words in COMMANDS if "epmvg" in words]
    assert len(lines) >= 50
    for block, line in lines:
        command: Any = get_command(app)
        words = line
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"{block}: {shlex.join(words)}"
            command, words = command.commands[words[0]], words[1:]
        params = command.make_context(command.name, list(words)).params
        if "recipe" in params:
            Recipe.load(params["recipe"], *(params["settings"] or []))


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block, words in COMMANDS:
        if "make" in words:
            assert set(words[words.index("make") + 1 :]) <= targets, block


def test_paths_in_the_repository_exist() -> None:
    """Those in text, code, and comments of the pages, and the pages and tests that docstrings and messages name."""
    files = [*PAGES, ROOT / "CONTRIBUTING.md", *(ROOT / "src").rglob("*.py")]
    for file in files:
        paths = REPOSITORY_PATH.findall(file.read_text(encoding="utf-8"))
        assert [path for path in paths if not (ROOT / path).exists()] == [], file


def test_links_exist() -> None:
    """In the pages at the root; building the site checks links between docs."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        assert all(link.startswith("http") or (ROOT / link).exists() for link in links), page


class FetchedUrls(HTMLParser):
    """Collects the URLs that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attribute = "href" if tag == "link" else "src"
        if tag != "a":
            self.urls += [value or "" for name, value in attrs if name == attribute]


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1  # one per page except README, and the page for 404
    for page in pages:
        parser = FetchedUrls()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.urls and not [url for url in parser.urls if url.startswith(("http", "//"))], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import) *['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    reference = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert [name for name in epmvg.__all__ if f'id="epmvg.{name}"' not in reference] == []


def test_the_notebook_runs_and_has_no_outputs(working_folder: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(names["predictions"]) == 2 and names["scores"]["n"] > 0


def test_every_example_is_run() -> None:
    """By a command of a page, or by a test that names it."""
    run = {words[1] for block, words in COMMANDS if block.reason is None and words[0] == "python"}
    tests = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/test_*.py"))
    for example in (file for file in (ROOT / "examples").iterdir() if file.suffix in (".py", ".ipynb")):
        assert f"examples/{example.name}" in run or f'"examples" / "{example.name}"' in tests, example


def test_a_custom_student_is_short_and_can_be_distilled() -> None:
    """The student of docs/distill.md learns from a teacher's embeddings with our loss."""
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
def test_the_quick_demo_writes_its_files(tmp_path: Path) -> None:
    run_demo(tmp_path / "demo", quick=True)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert {"plain", "distilled", "teacher", "seconds"} <= set(summary)
    assert all((tmp_path / "demo" / name).exists() for name in ("prediction.png", "report.html"))


def test_names_in_the_paper_s_table_exist() -> None:
    source = ROOT / "src" / "epmvg"
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    pointers = re.findall(r"`([\w/]+\.py): ([\w.]+)`", text)
    assert len(pointers) > 15
    for file, symbol in pointers:
        code = (source / file).read_text(encoding="utf-8")
        for name in symbol.split("."):
            assert re.search(rf"(def|class) {name}\b", code), f"{file}: {symbol}"


def test_tests_named_for_the_paper_s_statements_exist() -> None:
    """And every statement has one."""
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 20 and [name for name in named if f"def {name}(" not in tests] == []
    table = text.partition("## Statement by statement")[2].partition("\n## ")[0]
    assert all(
        "`test_" in line
        for line in table.splitlines()
        if line.startswith("| ") and "---" not in line[:6] and "| test |" not in line
    )


def test_every_equation_is_marked_in_the_code() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "epmvg").rglob("*.py"))
    marked = {int(n) for mark in re.findall(r"#.*\(eq\. ([\d, ]+)\)", code) for n in mark.split(",")}
    assert marked == set(range(1, 9))
