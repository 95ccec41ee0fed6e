"""mkdocs hook that generates the pages of the reference from the code: public names, commands and settings."""

from __future__ import annotations

import json
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

import epmvg
from epmvg.cli import app
from epmvg.config.settings import Recipe, Settings, setting_fields

SECTIONS = {
    "Predict": ["Predictor", "Predictions", "Prediction", "to_coco", "to_label_studio", "InputError"],
    "Train and evaluate": ["Recipe", "train", "evaluate", "calibrate", "score", "write_report"],
    "Models": ["list_models", "create_model", "load", "save", "from_pretrained", "save_pretrained", "push_to_hub"],
}
"""Public names by section; all others are listed under "Building blocks"."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for name, text in {"api": api_page(), "cli": cli_page(), "config": settings_page()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def api_page() -> str:
    """Return the page of the public names, for mkdocstrings to fill."""
    listed = [name for names in SECTIONS.values() for name in names]
    others = [name for name in epmvg.__all__ if name not in listed]
    lines = ["# Python API", "", "The public names of `import epmvg`."]
    for title, names in {**SECTIONS, "Building blocks": others}.items():
        lines += ["", f"## {title}", "", *(f"::: epmvg.{name}" for name in names)]
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """Return the page of the commands and their options."""
    command = get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="epmvg", title="Command line")


def settings_page() -> str:
    """Return the page of the settings of a recipe: one table per group."""
    lines = ["# Settings", "", "Keys of a recipe, and of `key=value` on the command line.", ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in setting_fields(Recipe):
        types = type_names(field.annotation)
        default = field.get_default(call_default_factory=True)
        text = "required" if field.is_required() else "" if isinstance(default, Settings) else json.dumps(default)
        lines.append(f"| `{key}` | {' or '.join(types)} | {text} | {field.description} |")
    return "\n".join(lines) + "\n"


def type_names(annotation: Any) -> list[str]:
    """Return the names of the types that a setting accepts; literals are values."""
    if get_origin(annotation) is Literal:
        return [json.dumps(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return [name for kind in get_args(annotation) for name in type_names(kind)]
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return ["group"]
    return ["null" if annotation is NoneType else "mapping" if get_origin(annotation) is dict else annotation.__name__]
