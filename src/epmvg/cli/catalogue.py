"""The command `list`: models, data sets, recipes and teachers, without importing torch."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
import yaml

from epmvg.cli.console import Json, print_table


class Kind(StrEnum):
    models = "models"
    pretrained = "pretrained"
    datasets = "datasets"
    recipes = "recipes"
    teachers = "teachers"


def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; everything by default.")] = None,
    as_json: Json = False,
) -> None:
    """List models, pretrained models, data sets, recipes and teachers by name."""
    chosen = {name: rows for name, rows in catalogue().items() if kind is None or name == kind.value}
    if as_json:
        print(json.dumps(chosen))
        return
    for name, rows in chosen.items():
        print_table(name, rows)


def catalogue() -> dict[str, list[dict[str, str]]]:
    """Return one row per model, pretrained model, data set, recipe and teacher."""
    from epmvg.config.settings import list_recipes, recipe_text

    return {
        "models": _models(),
        "pretrained": _pretrained(),
        "datasets": _datasets(),
        "recipes": [
            {"name": name, "about": yaml.safe_load(recipe_text(name)).get("about", "")} for name in list_recipes()
        ],
        "teachers": _teachers(),
    }


def _models() -> list[dict[str, str]]:
    from epmvg.models.presets import LOADABLE, PRESETS

    sizes = json.loads((resources.files("epmvg.models") / "sizes.json").read_text(encoding="utf-8"))
    return [
        {
            "name": name,
            "backbone": settings["visual_encoder"]["backbone"],
            "image size": f"{settings['image_size']} px",
            "visual tokens": str(sizes[name]["tokens"]),
            "text tokens": str(settings["max_length"]),
            "parameters": f"{sizes[name]['parameters'] / 1e6:.1f} M",
            "GFLOPs": f"{sizes[name]['gflops']:.1f}",
            "per further phrase": f"{sizes[name]['phrase_gflops']:.1f}",
            "can load": LOADABLE.get(name, ""),
        }
        for name, settings in sorted(PRESETS.items())
    ]


def _pretrained() -> list[dict[str, str]]:
    rows = []
    for folder in resources.files("epmvg.pretrained").iterdir():
        recipe = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        scores = json.loads((folder / "confidence.json").read_text(encoding="utf-8"))["fitted"]
        acc50 = f"{scores['acc50']:.3f} ({scores['data']} {scores['split']})"
        model, data = recipe["model"]["name"], recipe["data"]["name"]
        rows.append({"name": folder.name, "model": model, "trained on": data, "Acc@0.5": acc50})
    return rows


def _datasets() -> list[dict[str, str]]:
    from epmvg.data.registry import DATASETS

    return [
        {"name": name, "splits": ", ".join(data.splits), "about": data.about} for name, data in sorted(DATASETS.items())
    ]


def _teachers() -> list[dict[str, str]]:
    """List the architectures of open_clip; folders that `epmvg teacher train` wrote are teachers too."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        return []
    return [{"name": file.stem} for file in sorted((Path(spec.origin).parent / "model_configs").glob("*.json"))]
