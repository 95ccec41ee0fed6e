"""ODVG is recognised by its content."""

from __future__ import annotations

import json
from pathlib import Path

from epmvg.data.registry import open_samples

REGION = {"phrase": "cups", "bbox": [[1, 2, 4, 6], [10, 2, 13, 6]], "tokens_positive": [[4, 8]]}


ODVG = {"filename": "p/a.jpg", "height": 40, "width": 50, "grounding": {"caption": "two cups", "regions": [REGION]}}


def test_odvg_is_recognised_whatever_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text(f"{json.dumps(ODVG)}\n{json.dumps(ODVG)}\n")
    assert len(open_samples(str(tmp_path / "o.jsonl"), split=None)) == 2
    (tmp_path / "o.jsonl").rename(tmp_path / "o.json")
    assert len(open_samples(str(tmp_path / "o.json"), split=None)) == 2
