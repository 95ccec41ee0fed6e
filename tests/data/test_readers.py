"""Each format reads to the records of its twin in the reference material, and to what a synthetic fixture says."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from epmvg.core.types import Box, InputError, Sample
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import DATASETS, fraction_of, open_samples
from epmvg.data.stats import count_samples

HALF_A_PIXEL = 0.5

COUNTS = {  # phrases; the papers' counts, but for referit and Flickr's train what the official files themselves hold
    "refcoco": {"val": 10_834, "testA": 5_657, "testB": 5_095},
    "refcoco+": {"val": 10_758, "testA": 5_726, "testB": 4_889},
    "refcocog-umd": {"val": 4_896, "test": 9_602},
    "referit": {"train": 54_134, "val": 5_842, "test": 60_105},
    "flickr30k": {"train": 427_226, "val": 14_433, "test": 14_481},
}

# --- small sets written here ----------------------------------------------------------------------------------------


def write_refcoco(root: Path, folder: str = "refcoco", by: str = "unc") -> Path:
    """Two refs in the layout of refer: three sentences, one of them in training."""
    home = root / folder
    home.mkdir(parents=True)
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "width": 100, "height": 80}]
    annotations = [
        {"id": 70, "image_id": 7, "category_id": 1, "bbox": [1.5, 2.25, 30.0, 40.0]},
        {"id": 71, "image_id": 7, "category_id": 1, "bbox": [50, 10, 20, 20]},
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    (home / "instances.json").write_text(json.dumps(content))
    refs = [ref(0, 70, "train", ("the Dog", "the dog")), ref(1, 71, "val", ("small one",) * 2, ("other",) * 2)]
    (home / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=0))
    return root


def ref(number: int, annotation: int, split: str, *sentences: tuple[str, str]) -> dict[str, Any]:
    said = [{"raw": raw, "sent": sent, "sent_id": 10 * number + i} for i, (raw, sent) in enumerate(sentences)]
    name = f"COCO_train2014_000000000007_{number}.jpg"
    known = {"ref_id": number, "ann_id": annotation, "image_id": 7, "category_id": 1}
    return known | {"split": split, "file_name": name, "sentences": said}


def write_flickr(root: Path) -> Path:
    """One picture, two sentences; chain 1 has two boxes, chain 2 one, chain 3 none."""
    for folder in ("Annotations", "Sentences"):
        (root / folder).mkdir(parents=True)
    objects = [("1", 1, 1, 10, 20), ("1", 31, 11, 40, 30), ("2", 5, 6, 5, 6)]
    xml = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for name, a, b, c, d in objects
    )
    xml += "<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object>"
    size = "<size><width>50</width><height>40</height><depth>3</depth></size>"
    (root / "Annotations" / "123.xml").write_text(f"<annotation>{size}{xml}</annotation>")
    (root / "Sentences" / "123.txt").write_text(
        "[/EN#1/people/other Two dogs] sit on [/EN#3/scene grass] .\nA cup is near [/EN#2/other a red ball]"
    )
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("123\n" if split == "test" else "")
    return root


def write_referit(root: Path) -> Path:
    files: dict[str, Any] = {"bbox": {"9_1": [0, 0, 9, 4]}, "imsize": {"9.jpg": [20, 10]}}
    files |= {f"query_{split}": {} for split in ("train", "val", "trainval")}
    files["query_test"] = {"9_1": ["sky", "blue sky"]}
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / f"referit_{name}.json").write_text(json.dumps(content))
    return root


def test_refcoco_says_what_its_refs_say(tmp_path: Path) -> None:
    records = open_samples("refcoco", split=None, root=write_refcoco(tmp_path))
    assert [(r.phrase, r.split, r.id) for r in records] == [
        ("the dog", "train", "0"),
        ("small one", "val", "10"),
        ("other", "val", "11"),
    ]
    assert records[0].box == (1.5, 2.25, 31.5, 42.25) and records[0].size == (100, 80)
    assert records[0].image == tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000007.jpg"
    assert records[0].extra == {
        **{"ref_id": 0, "ann_id": 70, "image_id": 7, "category": "dog", "ref": "COCO_train2014_000000000007_0"},
        **{"raw": "the Dog", "sent_id": 0},
    }
    assert open_samples("refcoco", split="trainval", root=tmp_path) == records
    assert open_samples("refcoco", split="val", root=tmp_path) == records[1:]


@pytest.mark.parametrize("place", ["images/mscoco/images/train2014", "train2014", "data/images/train2014"])
def test_photos_are_found_where_people_keep_them(tmp_path: Path, place: str) -> None:
    write_refcoco(tmp_path)
    (tmp_path / place).mkdir(parents=True)
    assert open_samples("refcoco", split=None, root=tmp_path)[0].image.parent == tmp_path / place


def test_flickr_chains_become_unions_or_a_row_each(tmp_path: Path) -> None:
    dogs, ball = open_samples("flickr30k", split="test", root=write_flickr(tmp_path))
    assert (dogs.phrase, dogs.box, dogs.id) == ("Two dogs", (0, 0, 40, 30), "123#0:0-2/EN#1")
    assert dogs.extra["types"] == ["people", "other"] and dogs.extra["n_boxes"] == 2
    assert dogs.extra["boxes"] == [[0, 0, 10, 20], [30, 10, 10, 20]] and dogs.size == (50, 40)
    assert (ball.phrase, ball.box, ball.id) == ("a red ball", (4, 5, 5, 6), "123#1:4-7/EN#2")  # one pixel
    each = open_samples("flickr30k-all", split="test", root=tmp_path)
    assert [r.box for r in each] == [(0, 0, 10, 20), (30, 10, 40, 30), (4, 5, 5, 6)]
    assert len({r.id for r in each}) == 3


def test_referit_corners_include_their_last_pixel(tmp_path: Path) -> None:
    first, second = open_samples("referit", split=None, root=write_referit(tmp_path))
    assert first.box == (0, 0, 10, 5) and first.size == (20, 10) and first.image == tmp_path / "images" / "9.jpg"
    assert (first.id, second.id, second.phrase, second.split) == ("9_1/0", "9_1/1", "blue sky", "test")


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
def test_transvg_flags_keep_their_box_conventions(tmp_path: Path, flag: str, box: Box) -> None:
    (tmp_path / "data" / flag).mkdir(parents=True)
    row: tuple[Any, ...] = ("7.jpg", [2.5, 3, 4, 5], "a cup")
    row = row if flag == "flickr" else (row[0], "7_1.pth", row[1], row[2], None)
    (tmp_path / "data" / flag / f"{flag}_val.pth").write_bytes(pickle.dumps([row], protocol=2))
    (record,) = open_samples(f"transvg-{flag}", split=None, root=tmp_path)
    assert (record.box, record.phrase, record.split) == (box, "a cup", "val")
    file = str(tmp_path / "data" / flag / f"{flag}_val.pth")
    assert open_samples(file, split="val", root=tmp_path) == [record]
    assert open_samples(file, split=None)[0].box == box
    with pytest.raises(InputError, match=f"not an index of test of {re.escape(flag)}"):
        open_samples(file, split="test")
    with pytest.raises(InputError, match=re.escape(f"{flag}_train.pth")):
        open_samples(f"transvg-{flag}", split="train", root=tmp_path)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"scenes"}))
def test_a_set_that_is_not_there_says_what_is_looked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"holds no .+: give"):
        open_samples(name, split="val", root=tmp_path)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda root: (root / "refcoco/instances.json").write_text("{}"), '"images" is None'),
        (lambda root: (root / "refcoco/instances.json").write_text("{torn"), "not JSON"),
        (lambda root: (root / "refcoco/instances.json").unlink(), r"instances\.json cannot be opened"),
        (lambda root: (root / "refcoco/refs(unc).p").write_bytes(b"\x80\x02]q"), "not a whole pickle"),
        (lambda root: (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps({"a": 1})), "instead of a list"),
        (lambda root: (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps([ref(0, 5, "val")])), "no annotation 5"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, break_it: Callable[[Path], object], words: str) -> None:
    break_it(write_refcoco(tmp_path))
    with pytest.raises(InputError, match=words):
        open_samples("refcoco", split=None, root=tmp_path)


def test_no_file_outside_the_root_is_named(tmp_path: Path) -> None:
    root = write_flickr(tmp_path / "set")
    (tmp_path / "secret.xml").write_text("<annotation/>")
    (tmp_path / "secret.txt").write_text("[/EN#1/people x]")
    (root / "test.txt").write_text("../../secret\n")
    with pytest.raises(InputError, match="leads out of"):
        open_samples("flickr30k", split="test", root=root)
    content = write_refcoco(tmp_path / "coco") / "refcoco" / "instances.json"
    content.write_text(content.read_text().replace("COCO_train", "../../../../../../etc/COCO_train"))
    with pytest.raises(InputError, match="leads out of"):
        open_samples("refcoco", split=None, root=tmp_path / "coco")


def test_stats_need_no_photos(tmp_path: Path) -> None:
    counts = count_samples("flickr30k", root=write_flickr(tmp_path))
    share = counts["splits"]["test"].pop("box_fraction")
    assert share == pytest.approx((1200 + 1) / 2 / 2000, abs=1e-4)
    held = {"images": 1, "phrases": 2, "boxes": 2, "words": 2.5, "longest": 3, "distinct": 2}
    assert counts == {"data": "flickr30k", "splits": {"test": held}, "skipped": {}, "first_skipped": {}}


# --- the reference material ------------------------------------------------------------------------------------------

Key = tuple[str, str, str]  # image, split, phrase


@pytest.fixture(scope="module")
def real(shared: Path) -> dict[str, dict[Key, list[Box]]]:
    """Rows of real_grounding by set: key -> boxes (x0, y0, x1, y1) in the official picture."""
    rows: dict[str, dict[Key, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for line in (shared / "real_grounding" / "annotations.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        x, y, w, h = row["orig_bbox"]
        key = (Path(row["image"]).stem.split("_")[-1], row["split"], row["phrase"])
        rows[row["dataset"]][key].append((x, y, x + w, y + h))
    return rows


def assert_twins(records: Iterable[Sample], twin: dict[Key, list[Box]], splits: set[str]) -> None:
    """The records of the twin's pictures are the twin's rows, one for one, boxes within half a pixel."""
    pictures = {(image, split) for image, split, _ in twin if split in splits}
    found: dict[Key, list[Box]] = defaultdict(list)
    for record in records:
        image = record.image.stem.split("_")[-1]
        if (image, record.split) in pictures:
            found[image, record.split, record.phrase].append(record.box)
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
def test_excerpts_read_as_their_twins(
    shared: Path, real: dict[str, dict[Key, list[Box]]], name: str, twin: str, counts: dict[str, int]
) -> None:
    formats = shared / "formats"
    place = "transvg_index" if name.startswith("transvg") else {"flickr30k": "flickr30k"}.get(name, ".")
    place = "referitgame" if name == "referit" else place
    records = open_samples(name, split=None, root=formats / place)
    assert Counter(record.split for record in records) == counts
    assert_twins(records, real[twin], set(counts))
    for split, count in counts.items():
        assert len(open_samples(name, split=split, root=formats / place)) == count


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_sentence_lists_read_as_their_twins(shared: Path, real: dict[str, dict[Key, list[Box]]], name: str) -> None:
    for file in sorted((shared / "formats" / name / "eval_json").glob("*.json")):
        assert_twins(open_samples(str(file), split=None), real[name], {file.stem.rpartition("_")[2]})


def test_photos_of_the_excerpts_are_found(shared: Path) -> None:
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
    records = open_samples(name, split=None, root=official_refer(shared, name, tmp_path))
    assert Counter(record.split for record in records) == COUNTS[name]
    assert_twins(records, real[name.removesuffix("-umd")], set(COUNTS[name]))


def test_referit_has_its_counts(shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]]) -> None:
    for file in (shared / "full_annotations").glob("referit_*.json.gz"):
        (tmp_path / file.name.removesuffix(".gz")).write_bytes(unpacked(file))
    skipped = Skipped()
    records = open_samples("referit", split=None, root=tmp_path, skipped=skipped)
    assert Counter(record.split for record in records) == COUNTS["referit"], str(skipped)
    assert_twins(records, real["referitgame"], {"test"})


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


def test_flickr_test_has_the_published_count(
    shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]]
) -> None:
    records = open_samples("flickr30k", split="test", root=official_flickr(shared, tmp_path, ["test"]))
    assert len(records) == COUNTS["flickr30k"]["test"] == 14_481
    assert_twins(records, real["flickr30k"], {"test"})


@pytest.mark.slow
def test_all_of_flickr_has_its_counts(shared: Path, tmp_path: Path, real: dict[str, dict[Key, list[Box]]]) -> None:
    skipped = Skipped()
    root = official_flickr(shared, tmp_path, ["train", "val", "test"])
    records = open_samples("flickr30k", split=None, root=root, skipped=skipped)
    assert Counter(record.split for record in records) == COUNTS["flickr30k"], str(skipped)
    assert_twins(records, real["flickr30k"], set(COUNTS["flickr30k"]))


def test_a_share_is_of_whole_pictures_and_part_of_a_larger_share() -> None:
    records = [Sample(Path(f"{number // 3}.jpg"), f"phrase {number}", (0, 0, 1, 1)) for number in range(3000)]
    smaller: set[str] = set()
    for share in (0.1, 0.3, 0.7, 1.0):
        kept = fraction_of(records, share)
        phrases = {record.phrase for record in kept}
        assert kept == [record for record in records if record.phrase in phrases]
        assert set(Counter(record.image for record in kept).values()) == {3}
        assert abs(len(kept) / len(records) - share) < 0.05 and smaller <= phrases
        smaller = phrases
    with pytest.raises(InputError, match="leaves none"):
        fraction_of(records[:3], 1e-9)


def test_a_share_goes_by_paths_where_names_repeat_and_not_by_the_place_of_the_set() -> None:
    def kept(top: str) -> set[str]:
        records = [Sample(Path(f"{top}/c{number}/image.jpg"), "it", (0, 0, 1, 1)) for number in range(200)]
        return {record.image.parent.name for record in fraction_of(records, 0.3)}

    assert 30 < len(kept("/data/set")) < 90 and kept("/data/set") == kept("elsewhere")
