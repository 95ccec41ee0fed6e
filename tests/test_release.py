"""A release says the truth of itself: one version, ranges that hold, and nothing imported that is not declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import epmvg

CHECKOUT = Path(__file__).parents[1]
SOURCE = Path(epmvg.__file__).parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))


def ranges(project: dict[str, Any], *extras: str) -> dict[str, Requirement]:
    """Every package that the core and these extras ask for, by name."""
    about = project["project"]
    found: dict[str, Requirement] = {}
    for line in (*about["dependencies"], *(line for name in extras for line in about["optional-dependencies"][name])):
        asked = Requirement(line)
        if asked.name == "epmvg":
            found |= ranges(project, *asked.extras)
        else:
            found[canonicalize_name(asked.name)] = asked
    return found


def pins(name: str) -> dict[str, Version]:
    lines = (CHECKOUT / name).read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_the_version_stands_in_one_place(project: dict[str, Any]) -> None:
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    source = (CHECKOUT / project["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [epmvg.__version__]
    others = [file for file in SOURCE.rglob("*.py") if f'"{epmvg.__version__}"' in file.read_text("utf-8")]
    assert others == [SOURCE / "core" / "version.py"]


def test_newest_and_oldest_sets_are_those_of_the_ranges(project: dict[str, Any]) -> None:
    """What is pinned fits, and the oldest set holds the very floor of every range, or of its line."""
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints.txt")
    for name, asked in ranges(project, "dev", "mini").items():
        assert oldest[name] in asked.specifier and newest[name] in asked.specifier, name
        (floor,) = [Version(one.version) for one in asked.specifier if one.operator == ">="]
        assert oldest[name].release[: len(floor.release)] == floor.release, f"{name}: no {floor} can be had"


def test_what_is_imported_is_declared(project: dict[str, Any]) -> None:
    known = ranges(project, *project["project"]["optional-dependencies"]).keys()
    homes = packages_distributions()
    undeclared = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"epmvg"}:
                names = {canonicalize_name(name) for name in homes.get(module, [module])}
                if not names & known:
                    undeclared.add(module)
    assert undeclared == set()
