"""Release metadata: one version, dependency ranges that hold, and no undeclared import."""

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
    """Return the requirements of the package and these extras, by name."""
    about = project["project"]
    found: dict[str, Requirement] = {}
    for line in (*about["dependencies"], *(line for name in extras for line in about["optional-dependencies"][name])):
        requirement = Requirement(line)
        if requirement.name == "epmvg":
            found |= ranges(project, *requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def pins(name: str) -> dict[str, Version]:
    lines = (CHECKOUT / name).read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_the_version_is_stated_once(project: dict[str, Any]) -> None:
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    source = (CHECKOUT / project["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [epmvg.__version__]
    others = [file for file in SOURCE.rglob("*.py") if f'"{epmvg.__version__}"' in file.read_text("utf-8")]
    assert others == [SOURCE / "core" / "version.py"]


def test_constraints_match_the_ranges(project: dict[str, Any]) -> None:
    """Pinned versions are in range, and the oldest ones are the lower bounds."""
    oldest, newest = pins("constraints-oldest.txt"), pins("constraints.txt")
    for name, requirement in ranges(project, "dev", "mini").items():
        assert oldest[name] in requirement.specifier and newest[name] in requirement.specifier, name
        (floor,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
        assert oldest[name].release[: len(floor.release)] == floor.release, f"{name}: {floor} does not exist"


def test_imports_are_declared(project: dict[str, Any]) -> None:
    known = ranges(project, *project["project"]["optional-dependencies"]).keys()
    distributions = packages_distributions()
    undeclared = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"epmvg"}:
                names = {canonicalize_name(name) for name in distributions.get(module, [module])}
                if not names & known:
                    undeclared.add(module)
    assert undeclared == set()
