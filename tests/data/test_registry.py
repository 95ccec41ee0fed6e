"""Named data sets: the samples of the reference material, the published counts, fractions of the images."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from layouts import write_flickr, write_refcoco

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import DATASETS, fraction_of, open_samples
from epmvg.experiments import requirements

HALF_A_PIXEL = 0.5


COUNTS = {  # phrases; the papers' counts, but for referit and Flickr's train what the official files themselves hold
    "refcoco": {"val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+": {"val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog-umd": {"val": 4_896, "test": 9_602},
    "referit": {"train": 54_134, "val": 5_842, "test": 60_105},
    "flickr30k": {"train": 427_226, "val": 14_433, "test": 14_481},
}


def test_plans_without_data_assume_the_counts_of_the_readers() -> None:
    """Where the training annotations are not at hand, the published total without the splits that are."""
    known = {name: splits["train"] for name, splits in COUNTS.items() if "train" in splits}
    totals = {"refcoco": 142_210, "refcoco+": 141_564, "refcocog-umd": 95_010}
    known |= {name: total - sum(COUNTS[name].values()) for name, total in totals.items()}
    known["refcocog-google"] = totals["refcocog-umd"] - 9_536  # the same phrases, split by Google
    assert known == requirements._PHRASES


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"scenes"}))
def test_the_missing_file_of_a_set_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"holds no .+ Give"):
        open_samples(name, split="val", root=tmp_path)


def test_no_file_outside_the_root_is_read(tmp_path: Path) -> None:
    root = write_flickr(tmp_path / "set")
    (tmp_path / "secret.xml").write_text("<annotation/>")
    (tmp_path / "secret.txt").write_text("[/EN#1/people x]")
    (root / "test.txt").write_text("../../secret\n")
    with pytest.raises(InputError, match="is outside of"):
        open_samples("flickr30k", split="test", root=root)
    content = write_refcoco(tmp_path / "coco") / "refcoco" / "instances.json"
    content.write_text(content.read_text().replace("COCO_train", "../../../../../../etc/COCO_train"))
    with pytest.raises(InputError, match="is outside of"):
        open_samples("refcoco", split=None, root=tmp_path / "coco")


Key = tuple[str, str, str]  # image, split, phrase


@pytest.fixture(scope="module")
def real(shared: Path) -> dict[str, dict[Key, list[Box]]]:
    """Rows of real_grounding by set: key -> boxes (x0, y0, x1, y1) in the official image."""
    rows: dict[str, dict[Key, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for line in (shared / "real_grounding" / "annotations.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        x, y, w, h = row["orig_bbox"]
        key = (Path(row["image"]).stem.split("_")[-1], row["split"], row["phrase"])
        rows[row["dataset"]][key].append((x, y, x + w, y + h))
    return rows


def assert_twins(samples: Iterable[Sample], twin: dict[Key, list[Box]], splits: set[str]) -> None:
    """The samples of the twin's images are the twin's rows, one for one, boxes within half a pixel."""
    images = {(image, split) for image, split, _ in twin if split in splits}
    found: dict[Key, list[Box]] = defaultdict(list)
    for sample in samples:
        image = sample.image.stem.split("_")[-1]
        if (image, sample.split) in images:
            found[image, sample.split, sample.phrase].append(sample.box)
    shared_pictures = {(image, split) for image, split, _ in found}
    wanted = {key: boxes for key, boxes in twin.items() if key[:2] in shared_pictures}
    assert found.keys() == wanted.keys() and found
    for key, boxes in wanted.items():
        for ours, theirs in zip(sorted(found[key]), sorted(boxes), strict=True):
            assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= HALF_A_PIXEL, key


@pytest.mark.parametrize(
    ("name", "twin", "counts"),
    [
        ("refcoco", "refcoco", {"testA": 336, "testB": 334}),
        ("refcoco+", "refcoco+", {"testA": 330, "testB": 316}),
        ("refcocog-umd", "refcocog", {"test": 542}),
        ("transvg-unc", "refcoco", {"val": 587, "testA": 336, "testB": 334}),
        ("transvg-unc+", "refcoco+", {"val": 579, "testA": 330, "testB": 316}),
        ("transvg-gref_umd", "refcocog", {"val": 311, "test": 542}),
        ("flickr30k", "flickr30k", {"train": 527, "val": 142, "test": 160}),
        ("transvg-flickr", "flickr30k", {"train": 527, "val": 142, "test": 160}),
        ("referit", "referitgame", {"train": 223, "val": 167, "test": 281}),
        ("transvg-referit", "referitgame", {"train": 223, "val": 167, "test": 281}),
    ],
)
def test_excerpts_equal_their_jsonl(
    shared: Path, real: dict[str, dict[Key, list[Box]]], name: str, twin: str, counts: dict[str, int]
) -> None:
    formats = shared / "formats"
    place = "transvg_index" if name.startswith("transvg") else {"flickr30k": "flickr30k"}.get(name, ".")
    place = "referitgame" if name == "referit" else place
    samples = open_samples(name, split=None, root=formats / place)
    assert Counter(sample.split for sample in samples) == counts
    assert_twins(samples, real[twin], set(counts))
    for split, count in counts.items():
        assert len(open_samples(name, split=split, root=formats / place)) == count


def test_images_of_the_excerpts_are_found(shared: Path) -> None:
    formats = shared / "formats"
    assert all(r.image.exists() for r in open_samples("flickr30k", split=None, root=formats / "flickr30k"))
    for name in ("refcoco", "refcoco+", "refcocog-umd"):
        assert any(r.image.exists() for r in open_samples(name, split=None, root=formats))


def unpacked(file: Path) -> bytes:
    with gzip.open(file) as packed:
        return packed.read()


def official_refer(shared: Path, name: str, root: Path) -> Path:
    """Lay the complete sentence lists out as refer does; ids that the lists do not state are counted."""
    folder, by = {"refcoco": ("refcoco", "unc"), "refcoco+": ("refcoco+", "unc")}.get(name, ("refcocog", "umd"))
    refs: dict[tuple[str, str], dict[str, Any]] = {}
    images: dict[int, dict[str, Any]] = {}
    annotations = []
    sent_id = 0
    for split in COUNTS[name]:
        for row in json.loads(unpacked(shared / "full_annotations" / f"{folder}_{split}.json.gz")):
            file_name = row["img_id"].rpartition("_")[0] + ".jpg"
            image_id = int(file_name[-16:-4])
            images[image_id] = {"id": image_id, "file_name": file_name, "width": row["width"], "height": row["height"]}
            key = (row["img_id"], split)
            if key not in refs:
                annotation = {"id": len(refs), "image_id": image_id, "category_id": 1, "bbox": row["bbox"]}
                annotations.append(annotation)
                refs[key] = {"ref_id": len(refs), "ann_id": len(refs), "image_id": image_id, "category_id": 1}
                refs[key] |= {"split": split, "file_name": row["img_id"] + ".jpg", "sentences": []}
            refs[key]["sentences"].append({"sent": row["sents"], "raw": row["sents"], "sent_id": sent_id})
            sent_id += 1
    (root / folder).mkdir(parents=True)
    (root / folder / f"refs({by}).p").write_bytes(pickle.dumps(list(refs.values()), protocol=2))
    content = {"images": list(images.values()), "annotations": annotations}
    (root / folder / "instances.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": "thing"}]}))
    return root


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog-umd"])
def test_the_refcoco_family_has_the_published_counts(
    shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]], name: str
) -> None:
    samples = open_samples(name, split=None, root=official_refer(shared, name, tmp_path))
    assert Counter(sample.split for sample in samples) == COUNTS[name]
    assert_twins(samples, real[name.removesuffix("-umd")], set(COUNTS[name]))


@pytest.mark.slow
def test_referit_has_its_counts(shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]]) -> None:
    for file in (shared / "full_annotations").glob("referit_*.json.gz"):
        (tmp_path / file.name.removesuffix(".gz")).write_bytes(unpacked(file))
    skipped = Skipped()
    samples = open_samples("referit", split=None, root=tmp_path, skipped=skipped)
    assert Counter(sample.split for sample in samples) == COUNTS["referit"], str(skipped)
    assert_twins(samples, real["referitgame"], {"test"})


def official_flickr(shared: Path, root: Path, splits: Iterable[str]) -> Path:
    complete = shared / "full_annotations"
    wanted = set()
    for split in ("train", "val", "test"):
        names = (complete / f"flickr30k_{split}.txt").read_text() if split in splits else ""
        (root / f"{split}.txt").write_text(names)
        wanted |= set(names.split())
    with tarfile.open(complete / "flickr30k_entities_annotations.tar.xz") as archive:
        for member in archive:
            if Path(member.name).stem in wanted:
                archive.extract(member, root, filter="data")
    return root


@pytest.mark.slow
def test_flickr_test_has_the_published_count(
    shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]]
) -> None:
    samples = open_samples("flickr30k", split="test", root=official_flickr(shared, tmp_path, ["test"]))
    assert len(samples) == COUNTS["flickr30k"]["test"] == 14_481
    assert_twins(samples, real["flickr30k"], {"test"})


@pytest.mark.slow
def test_all_of_flickr_has_its_counts(shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]]) -> None:
    skipped = Skipped()
    root = official_flickr(shared, tmp_path, ["train", "val", "test"])
    samples = open_samples("flickr30k", split=None, root=root, skipped=skipped)
    assert Counter(sample.split for sample in samples) == COUNTS["flickr30k"], str(skipped)
    assert_twins(samples, real["flickr30k"], set(COUNTS["flickr30k"]))


def test_a_fraction_has_whole_images_and_is_part_of_a_larger_one() -> None:
    samples = [Sample(Path(f"{number // 3}.jpg"), f"phrase {number}", (0, 0, 1, 1)) for number in range(3000)]
    smaller: set[str] = set()
    for share in (0.1, 0.3, 0.7, 1.0):
        kept = fraction_of(samples, share)
        phrases = {sample.phrase for sample in kept}
        assert kept == [sample for sample in samples if sample.phrase in phrases]
        assert set(Counter(sample.image for sample in kept).values()) == {3}
        assert abs(len(kept) / len(samples) - share) < 0.05 and smaller <= phrases
        smaller = phrases
    with pytest.raises(InputError, match="leaves none"):
        fraction_of(samples[:3], 1e-9)


def test_a_fraction_depends_on_paths_below_the_common_folder() -> None:
    def kept(top: str) -> set[str]:
        samples = [Sample(Path(f"{top}/c{number}/image.jpg"), "it", (0, 0, 1, 1)) for number in range(200)]
        return {sample.image.parent.name for sample in fraction_of(samples, 0.3)}

    assert 30 < len(kept("/data/set")) < 90 and kept("/data/set") == kept("elsewhere")


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("refcoco", "val", "has no default folder. Give its folder"),
        ("scenes", "testA", "scenes has no split 'testA'. Give one of train, val, test, open"),
        ("refcoc", None, "Did you mean 'refcoco'?"),
        ("nothing-like-it", None, "Or give a file or folder"),
    ],
)
def test_unknown_names_and_splits_are_named(name: str, split: str | None, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        open_samples(name, split=split)


def test_scenes_are_not_drawn_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        open_samples("scenes", split=None, root=tmp_path / "none")
