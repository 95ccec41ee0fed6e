"""README keeps its word: its commands exist, its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from epmvg.cli import app
from epmvg.config import Recipe
from epmvg.data.scenes import write_scenes
from epmvg.distill.losses import GroundingLoss
from epmvg.types import Embeddings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {words[1] for words in commands() if words[0] == "make"}
    assert asked == {"demo", "test"} <= targets


def test_commands_parse() -> None:
    """Every epmvg line names a verb and options that exist, and its recipe and settings are valid."""
    command = get_command(app)
    said = [words[words.index("epmvg") + 1 :] for words in commands() if "epmvg" in words]
    assert len(said) >= 8
    for words in said:
        verb = command.commands[words[0]]  # type: ignore[attr-defined]
        rest = words[1:]
        if hasattr(verb, "commands"):
            verb, rest = verb.commands[rest[0]], rest[1:]
        context = verb.make_context(verb.name, list(rest))
        if words[0] == "train":
            Recipe.load(context.params["recipe"], *(context.params["settings"] or []))


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("file", ["README.md", "docs/extending.md"])
def test_training_by_hand_runs(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPMVG_CACHE", str(tmp_path))
    write_scenes(tmp_path / "scenes", sizes={"train": 20, "val": 2, "test": 2, "open": 2, "captions": 2})
    (block,) = [code for code in blocks("python", (ROOT / file).read_text(encoding="utf-8")) if "loss_of" in code]
    exec(compile(block, file, "exec"), {})


def test_a_foreign_student_is_short_and_can_be_distilled() -> None:
    """The student of docs/extending.md learns from a teacher's vectors through our loss."""
    (block,) = blocks("python", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    student_code = block[: block.index("student = ")]
    assert len(student_code.splitlines()) < 40
    names: dict[str, Any] = {}
    exec(compile(student_code, "docs/extending.md", "exec"), names)
    torch.manual_seed(0)
    student = names["BagOfWords"]()
    image, pad = torch.rand(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.bool)
    tokens, owner = torch.randint(1, 30_000, (3, 5)), torch.tensor([0, 1, 1])
    teacher = Embeddings(torch.randn(2, 128), torch.randn(3, 128))
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = GroundingLoss()(student(image, pad, tokens, tokens == 0, owner), torch.full((3, 4), 0.4), teacher)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append((loss.terms["image"] + loss.terms["text"]).item())
    assert losses[-1] < 0.5 * losses[0]


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
