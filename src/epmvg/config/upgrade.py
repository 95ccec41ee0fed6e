"""Rewrite recipes of earlier versions with the present settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from epmvg.config.renamed import OLD_BATCH, REMOVED, RENAMED, RENAMED_VALUES
from epmvg.config.settings import Recipe, parse_yaml
from epmvg.core.files import write_text


def upgrade_file(file: Path, out: Path) -> list[str]:
    """Rewrite a recipe, or the config.yaml of a run; comments are not kept.

    Returns:
        One sentence per changed setting.

    Raises:
        InputError: the file is not a recipe, or not valid with the present names either; nothing is written then.
    """
    values = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    changes = upgrade_values(values)
    text = yaml.safe_dump(values, sort_keys=False)
    for group, key in (("data", "name"), ("distill", "teacher")):
        if isinstance(values.get(group), dict) and values[group].get(key, "") is None:  # each run gives it
            values[group][key] = ""
    Recipe.of(values, str(file))
    write_text(out, text)
    return changes


def upgrade_values(group: dict[str, Any], path: str = "") -> list[str]:
    """Give a recipe's values their present names, in place; return one sentence per change."""
    changes = _upgrade_batch_size(group) if path == "data." else []
    for key, value in list(group.items()):
        old = f"{path}{key}".replace("model.overrides.", "model.")
        del group[key]
        if old in REMOVED:
            changes.append(f"{old} is removed: {REMOVED[old]}")
            continue
        new = RENAMED.get(old, old)
        if new != old:
            changes.append(f"{old} is now {new}")
        if isinstance(value, dict):
            changes += upgrade_values(value, f"{path}{key}.")
        group[new.rpartition(".")[2]] = RENAMED_VALUES.get(new, {}).get(str(value), value)
    return changes


def _upgrade_batch_size(data: dict[str, Any]) -> list[str]:
    """Convert images per batch times phrases per image to image-phrase pairs per batch."""
    if not OLD_BATCH.keys() & data.keys():
        return []
    images, phrases = (int(data.get(name, default)) for name, default in OLD_BATCH.items())
    data["images"] = images * phrases
    return [
        f"warning: data.batch_size counts image-phrase pairs. {images} images of up to {phrases} phrases were at most "
        f"{images * phrases} pairs; lower it if most images have fewer phrases"
    ]
