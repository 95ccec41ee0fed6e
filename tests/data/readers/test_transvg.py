"""TransVG's index files, a convention of boxes per flag."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from epmvg.core.types import Box, InputError
from epmvg.data.registry import open_samples


@pytest.mark.parametrize(
    ("flag", "box"),
    [
        ("unc", (2.5, 3, 6.5, 8)),
        ("unc+", (2.5, 3, 6.5, 8)),
        ("gref", (2.5, 3, 6.5, 8)),
        ("gref_umd", (2.5, 3, 6.5, 8)),
        ("referit", (2.5, 3, 5, 6)),
        ("flickr", (1.5, 2, 4, 5)),
    ],
)
def test_flags_keep_their_box_conventions(tmp_path: Path, flag: str, box: Box) -> None:
    (tmp_path / "data" / flag).mkdir(parents=True)
    row: tuple[Any, ...] = ("7.jpg", [2.5, 3, 4, 5], "a cup")
    row = row if flag == "flickr" else (row[0], "7_1.pth", row[1], row[2], None)
    (tmp_path / "data" / flag / f"{flag}_val.pth").write_bytes(pickle.dumps([row], protocol=2))
    (sample,) = open_samples(f"transvg-{flag}", split=None, root=tmp_path)
    assert (sample.box, sample.phrase, sample.split) == (box, "a cup", "val")
    assert open_samples(f"transvg-{flag}", split="val", root=tmp_path) == [sample]
    with pytest.raises(InputError, match=re.escape(f"{flag}_train.pth")):
        open_samples(f"transvg-{flag}", split="train", root=tmp_path)
