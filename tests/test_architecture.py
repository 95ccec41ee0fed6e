"""The house keeps its shape: arrows of import only point down, public names are complete, the door opens at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import epmvg

SOURCE = Path(epmvg.__file__).parent

# Floors from the ground up; a room may import its own floor's room only where ALLOWED says so.
FLOORS = [
    [
        *("types", "boxes", "images", "letterbox", "config", "confidence", "weights", "draw", "hardware", "terminal"),
        *("metrics", "processes", "tokenizer", "writing"),
    ],
    ["data", "models", "distill", "reporting", "published"],
    [
        *("convert", "doctor", "evaluation", "backends", "predict", "results", "listing", "store"),
        *("leakage", "phrases", "sources", "unfinished"),
    ],
    ["training", "calibration", "hub", "serve", "timing", "bulk", "bulk_output", "export", "scoring", "stress"],
    ["demo"],
    ["reproduce"],
    ["cli"],
    ["__main__"],
]
ALLOWED = {
    ("distill", "data"),
    ("reporting", "data"),
    ("store", "evaluation"),
    ("evaluation", "predict"),
    ("predict", "results"),
    ("bulk", "bulk_output"),
    ("predict", "phrases"),
    ("predict", "backends"),
    ("backends", "evaluation"),
}
FORBIDDEN = {("models", "data"), ("data", "models"), ("data", "distill"), ("models", "distill")}
GUESTS = {"open_clip": {"distill"}, "accelerate": {"training"}, "typer": {"cli"}, "jinja2": {"reporting", "hub"}}
GUESTS |= {guest: {"serve"} for guest in ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart")}

GUESTS |= {guest: {"export", "backends"} for guest in ("onnx", "onnxruntime", "openvino", "tokenizers")}


def rooms() -> dict[Path, str]:
    return {file: file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in SOURCE.rglob("*.py")}


def imports(file: Path) -> set[str]:
    """Modules a file imports when it is loaded or used, but not those for type checking only."""
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


def test_every_room_has_a_floor() -> None:
    placed = {room for floor in FLOORS for room in floor}
    assert set(rooms().values()) - {"__init__"} == placed


def test_arrows_only_point_down() -> None:
    height = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    upward = []
    for file, room in rooms().items():
        for module in imports(file):
            parts = module.split(".")
            if parts[0] != "epmvg" or len(parts) == 1 or room == "__init__" or parts[1] == room:
                continue
            target = parts[1]
            level = height[room] == height[target] and height[room] > 0 and (room, target) not in ALLOWED
            if height[target] > height[room] or level or (room, target) in FORBIDDEN:
                upward.append(f"{file.relative_to(SOURCE)} -> {module}")
    assert upward == []


def test_no_circles() -> None:
    """Walk the imports of files; meeting a file again on the way down is a circle."""
    names = {}
    for file in rooms():
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


def test_guests_stay_in_their_rooms() -> None:
    for file, room in rooms().items():
        for module in imports(file):
            allowed = GUESTS.get(module.split(".")[0])
            assert allowed is None or room in allowed, f"{file} imports {module}"


def test_public_names_are_complete_and_sorted() -> None:
    assert epmvg.__all__ == sorted(epmvg.__all__)
    for name in epmvg.__all__:
        value = getattr(epmvg, name)
        assert value.__doc__ and getattr(epmvg, name) is value
        assert not isinstance(value, type(sys)), f"{name} is a module"


def test_the_command_line_answers_without_torch() -> None:
    script = "import sys, epmvg.cli, epmvg.listing as l; l.known(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
