"""Hypothesis strategies of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from epmvg.core.types import Sample

TARGETS = {"jsonl": "t.jsonl", "coco": "t.json", "odvg": "t.odvg.jsonl", "parquet": "t.parquet"}


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


numbers = st.floats(0, 5000, allow_nan=False) | st.integers(0, 5000)


facts = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


OWN = {"image", "phrase", "bbox", "width", "height", "id", "split", "source_id", "weight"}


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    x, y, w, h = draw(numbers), draw(numbers), draw(st.floats(0.01, 900)), draw(st.integers(1, 900))
    return Sample(
        image=Path(draw(st.sampled_from(["a.jpg", "b/c.png", "b/ü x.jpg", "b/c.jpg"]))),
        phrase=draw(texts.filter(str.strip)),
        box=(float(x), float(y), float(x + w), float(y + h)),
        split=draw(st.sampled_from(["", "train", "testA"])),
        id=draw(texts | st.just("")),
        size=draw(st.none() | st.just((6000, 6000))),
        extra=draw(st.dictionaries(texts.filter(lambda key: key not in OWN), facts, max_size=3)),
        weight=draw(st.just(1.0) | st.floats(1e-6, 1e6)),
    )


def under(root: Path, rows: Sequence[Sample]) -> list[Sample]:
    return [replace(row, image=root / row.image) for row in rows]
