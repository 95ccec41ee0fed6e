"""ReferItGame: corners whose last pixel is included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epmvg.data.registry import open_samples


def write_referit(root: Path) -> Path:
    files: dict[str, Any] = {"bbox": {"9_1": [0, 0, 9, 4]}, "imsize": {"9.jpg": [20, 10]}}
    files |= {f"query_{split}": {} for split in ("train", "val", "trainval")}
    files["query_test"] = {"9_1": ["sky", "blue sky"]}
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / f"referit_{name}.json").write_text(json.dumps(content))
    return root


def test_corners_include_their_last_pixel(tmp_path: Path) -> None:
    first, second = open_samples("referit", split=None, root=write_referit(tmp_path))
    assert first.box == (0, 0, 10, 5) and first.size == (20, 10) and first.image == tmp_path / "images" / "9.jpg"
    assert (first.id, second.id, second.phrase, second.split) == ("9_1/0", "9_1/1", "blue sky", "test")
