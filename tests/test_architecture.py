"""Imports point to lower levels only, public names are complete, and what is light imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import epmvg

SOURCE = Path(epmvg.__file__).parent

LEVELS = [
    {"core"},
    {"config"},
    {"data", "models"},
    {"distill", "inference"},
    {"evaluation"},
    {"training", "export", "report", "hub"},
    {"experiments", "serve"},
    {"cli"},
    {"__main__"},
]
EXCEPTIONS: set[tuple[str, str]] = set()
"""Pairs (importing file, module) that may point upward or sideways, each with its reason; two at most."""

HOMES = {
    "open_clip": {"distill"},
    "accelerate": {"training"},
    "typer": {"cli"},
    "jinja2": {"report", "hub"},
    "matplotlib": {"report"},
    "onnx": {"export"},
    "onnxruntime": {"export", "inference"},
    "openvino": {"export", "inference"},
}
HOMES |= {name: {"serve"} for name in ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart")}


def packages() -> dict[Path, str]:
    return {file: file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in SOURCE.rglob("*.py")}


def imports(file: Path) -> set[str]:
    """Return the modules that a file imports when it is loaded or used, but not those for type checking only."""
    found: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_package_has_a_level() -> None:
    assert set(packages().values()) - {"__init__"} == {name for level in LEVELS for name in level}


def test_imports_point_to_lower_levels() -> None:
    height = {name: number for number, level in enumerate(LEVELS) for name in level}
    wrong = set()
    for file, package in packages().items():
        for module in imports(file) if package != "__init__" else ():
            parts = module.split(".")
            if parts[0] != "epmvg" or parts[1:2] == [package]:
                continue
            if len(parts) == 1 or height[parts[1]] >= height[package]:  # nothing imports the package's root
                wrong.add((str(file.relative_to(SOURCE)), module))
    assert wrong == EXCEPTIONS
    assert len(EXCEPTIONS) <= 2


def test_no_circles() -> None:
    """Walk the imports of files; meeting a file again on the way down is a circle."""
    names = {}
    for file in packages():
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph = {name: imports(file) & names.keys() - {"epmvg", name} for name, file in names.items()}
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for below in graph[name]:
                walk(below, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_files_and_entries_stay_few_and_short() -> None:
    assert [file for file in packages() if len(file.read_text("utf-8").splitlines()) > 400] == []
    entries = {path.name for path in SOURCE.iterdir()} - {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    assert len(entries) <= 15, sorted(entries)


def test_networks_losses_and_teachers_take_no_settings() -> None:
    for file, package in packages().items():
        if package in ("models", "distill"):
            assert not [module for module in imports(file) if module.startswith("epmvg.config")], file


def test_third_party_imports_have_homes() -> None:
    for file, package in packages().items():
        for module in imports(file):
            allowed = HOMES.get(module.split(".")[0])
            assert allowed is None or package in allowed, f"{file} imports {module}"


def test_public_names_are_complete_and_sorted() -> None:
    assert epmvg.__all__ == sorted(epmvg.__all__)
    for name in epmvg.__all__:
        value = getattr(epmvg, name)
        assert value.__doc__ and getattr(epmvg, name) is value
        assert not isinstance(value, type(sys)), f"{name} is a module"


LIGHT = sorted(
    ".".join(("epmvg", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for file, package in packages().items()
    if package in ("core", "config", "inference") and file.stem not in ("torch_runtime", "transformers_runtime")
)


@pytest.mark.parametrize("statement", ["import " + ", ".join(LIGHT), "import epmvg.cli.catalogue as c; c.catalogue()"])
def test_what_is_light_imports_no_torch(statement: str) -> None:
    script = f"import sys, epmvg.cli\n{statement}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
