"""What this installation knows by name, told without importing torch."""

from __future__ import annotations

import json
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import yaml

from epmvg.config.settings import list_recipes, recipe_text
from epmvg.data.registry import DATASETS
from epmvg.models.presets import LOADABLE, PRESETS


def known() -> dict[str, list[dict[str, str]]]:
    """Return rows of models, ready ones with their weights, datasets, recipes and teachers."""
    return {
        "models": _models(),
        "ready": _ready(),
        "datasets": _datasets(),
        "recipes": _recipes(),
        "teachers": _teachers(),
    }


def _models() -> list[dict[str, str]]:
    sizes = json.loads((resources.files("epmvg.models") / "sizes.json").read_text(encoding="utf-8"))
    return [
        {
            "name": name,
            "backbone": numbers["visual_encoder"]["backbone"],
            "image_size": f"{numbers['image_size']} px",
            "visual tokens": str(sizes[name]["tokens"]),
            "text tokens": str(numbers["max_length"]),
            "parameters": f"{sizes[name]['parameters'] / 1e6:.1f} M",
            "GFLOPs": f"{sizes[name]['gflops']:.1f}",
            "a further phrase": f"{sizes[name]['phrase_gflops']:.1f}",
            "can load": LOADABLE.get(name, ""),
        }
        for name, numbers in sorted(PRESETS.items())
    ]


def _ready() -> list[dict[str, str]]:
    """Trained models of this package, whose name stands where a run's folder would."""
    rows = []
    for folder in (resources.files("epmvg.pretrained")).iterdir():
        recipe = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        scores = json.loads((folder / "confidence.json").read_text(encoding="utf-8"))["fitted"]
        rows.append(
            {
                "name": folder.name,
                "model": recipe["model"]["name"],
                "trained on": recipe["data"]["name"],
                "Acc@0.5": f"{scores['acc50']:.3f} ({scores['data']} {scores['split']})",
            }
        )
    return rows


def _datasets() -> list[dict[str, str]]:
    return [
        {"name": name, "splits": ", ".join(data.splits), "about": data.about} for name, data in sorted(DATASETS.items())
    ]


def _recipes() -> list[dict[str, str]]:
    return [{"name": name, "about": yaml.safe_load(recipe_text(name)).get("about", "")} for name in list_recipes()]


def _teachers() -> list[dict[str, str]]:
    """The architectures of open_clip; any folder that `epmvg teacher train` wrote is a teacher too."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        return []
    return [{"name": file.stem} for file in sorted((Path(spec.origin).parent / "model_configs").glob("*.json"))]
