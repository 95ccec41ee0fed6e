"""Rewrite recipes of earlier versions with the present settings; comments and layout are kept."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from epmvg.config.renamed import OLD_BATCH, REMOVED, RENAMED, RENAMED_VALUES
from epmvg.config.settings import Recipe, parse_yaml
from epmvg.core.files import write_text
from epmvg.core.types import InputError

Edit = tuple[int, int, str]
"""Start and end of a part of the text, and what replaces it."""


def upgrade_file(file: Path, out: Path) -> list[str]:
    """Rewrite a recipe, or the config.yaml of a run.

    Returns:
        One sentence per changed setting.

    Raises:
        InputError: the file is not a recipe, or not valid with the present names either; nothing is written then.
    """
    text, changes = upgrade_text(file.read_text(encoding="utf-8"), str(file))
    values = parse_yaml(text, str(file))
    for group, key in (("data", "name"), ("distill", "teacher")):
        if isinstance(values.get(group), dict) and values[group].get(key, "") is None:  # each run gives it
            values[group][key] = ""
    Recipe.of(values, str(file))
    write_text(out, text)
    return changes


def upgrade_text(text: str, name: str) -> tuple[str, list[str]]:
    """Return the YAML of a recipe with the present settings, and one sentence per change."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is not valid YAML ({str(error).splitlines()[0]}). Correct it first.") from error
    edits: list[Edit] = []
    changes: list[str] = []
    if isinstance(root, yaml.MappingNode):
        _upgrade_group(root, (), text, edits, changes)
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text, changes


def _upgrade_group(
    group: yaml.MappingNode, path: tuple[str, ...], text: str, edits: list[Edit], changes: list[str]
) -> None:
    if path == ("data",):
        _upgrade_batch_size(group, edits, changes)
    for key, value in group.value:
        old = ".".join((*path, str(key.value)))
        if old in REMOVED:
            edits.append((*_span(group, key, value, text), ""))
            changes.append(f"{old} is removed: {REMOVED[old]}")
        elif old in RENAMED:
            edits.append((key.start_mark.index, key.end_mark.index, RENAMED[old].rpartition(".")[2]))
            changes.append(f"{old} is now {RENAMED[old]}")
            new_value = RENAMED_VALUES.get(RENAMED[old], {}).get(
                value.value if isinstance(value, yaml.ScalarNode) else ""
            )
            if new_value is not None:
                edits.append((value.start_mark.index, value.end_mark.index, new_value))
        if isinstance(value, yaml.MappingNode):
            _upgrade_group(value, (*path, str(key.value)), text, edits, changes)


def _upgrade_batch_size(data: yaml.MappingNode, edits: list[Edit], changes: list[str]) -> None:
    """Convert images per batch times phrases per image to image-phrase pairs per batch."""
    old = {key.value: (key, value) for key, value in data.value if key.value in OLD_BATCH}
    if not old:
        return
    images, phrases = (int(old[name][1].value) if name in old else OLD_BATCH[name] for name in OLD_BATCH)
    if "images" in old:
        value = old["images"][1]
        edits.append((value.start_mark.index, value.end_mark.index, str(images * phrases)))
    else:
        start = old["phrases"][0].start_mark
        separator = ", " if data.flow_style else "\n" + " " * start.column
        edits.append((start.index, start.index, f"batch_size: {images * phrases}{separator}"))
    changes.append(
        f"warning: data.batch_size counts image-phrase pairs. {images} images of up to {phrases} phrases were at most "
        f"{images * phrases} pairs; lower it if most images have fewer phrases"
    )


def _span(group: yaml.MappingNode, key: yaml.Node, value: yaml.Node, text: str) -> tuple[int, int]:
    """Return the part of the text that holds a setting, with its line or its comma."""
    start, end = key.start_mark.index, value.end_mark.index
    if not group.flow_style:
        line_end = text.find("\n", end) + 1 if value.end_mark.column else end
        return start - key.start_mark.column, line_end or len(text)
    if comma := re.compile(r"\s*,\s*").match(text, end):
        return start, comma.end()
    comma = re.search(r",\s*$", text[:start])
    return (comma.start() if comma else start), end
