"""refer's pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from layouts import make_ref, write_refcoco

from epmvg.core.types import InputError
from epmvg.data.registry import open_samples


def test_refs_become_one_sample_per_sentence(tmp_path: Path) -> None:
    samples = open_samples("refcoco", split=None, root=write_refcoco(tmp_path))
    assert [(r.phrase, r.split, r.id) for r in samples] == [
        ("the dog", "train", "0"),
        ("small one", "val", "10"),
        ("other", "val", "11"),
    ]
    assert samples[0].box == (1.5, 2.25, 31.5, 42.25) and samples[0].size == (100, 80)
    assert samples[0].image == tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000007.jpg"
    assert samples[0].extra == {
        **{"ref_id": 0, "ann_id": 70, "image_id": 7, "category": "dog", "ref": "COCO_train2014_000000000007_0"},
        **{"raw": "the Dog", "sent_id": 0},
    }
    assert open_samples("refcoco", split="trainval", root=tmp_path) == samples
    assert open_samples("refcoco", split="val", root=tmp_path) == samples[1:]


@pytest.mark.parametrize("place", ["images/mscoco/images/train2014", "train2014", "data/images/train2014"])
def test_images_are_found_in_every_usual_folder(tmp_path: Path, place: str) -> None:
    write_refcoco(tmp_path)
    (tmp_path / place).mkdir(parents=True)
    assert open_samples("refcoco", split=None, root=tmp_path)[0].image.parent == tmp_path / place


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda root: (root / "refcoco/instances.json").write_text("{}"), '"images" is None'),
        (lambda root: (root / "refcoco/instances.json").write_text("{truncated"), "not JSON"),
        (lambda root: (root / "refcoco/instances.json").unlink(), r"instances\.json cannot be opened"),
        (lambda root: (root / "refcoco/refs(unc).p").write_bytes(b"\x80\x02]q"), "not a whole pickle"),
        (lambda root: (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps({"a": 1})), "instead of a list"),
        (
            lambda root: (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps([make_ref(0, 5, "val")])),
            "no annotation 5",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, break_it: Callable[[Path], object], words: str) -> None:
    break_it(write_refcoco(tmp_path))
    with pytest.raises(InputError, match=words):
        open_samples("refcoco", split=None, root=tmp_path)
