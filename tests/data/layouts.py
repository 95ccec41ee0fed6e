"""Small data sets in the layout of the published ones, and small annotation files, written by tests."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
    refs = [
        make_ref(0, 70, "train", ("the Dog", "the dog")),
        make_ref(1, 71, "val", ("small one",) * 2, ("other",) * 2),
    ]
    (home / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=0))
    return root


def make_ref(number: int, annotation: int, split: str, *sentences: tuple[str, str]) -> dict[str, Any]:
    written = [{"raw": raw, "sent": sent, "sent_id": 10 * number + i} for i, (raw, sent) in enumerate(sentences)]
    name = f"COCO_train2014_000000000007_{number}.jpg"
    known = {"ref_id": number, "ann_id": annotation, "image_id": 7, "category_id": 1}
    return known | {"split": split, "file_name": name, "sentences": written}


def write_flickr(root: Path) -> Path:
    """One image, two sentences; chain 1 has two boxes, chain 2 one, chain 3 none."""
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


ANNOTATION = {"image": "a.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4], "split": "val"}
BOX = [1, 2, 3, 4]


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def coco(*annotations: Any) -> bytes:
    return json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}).encode()


NOTE = {"id": 1, "image_id": 1, "bbox": BOX, "phrase": "a cup"}
REGION = {"phrase": "a cup", "bbox": BOX}


MALFORMED_FILES: dict[str, Callable[[], bytes]] = {
    "truncated.jsonl": lambda: lines(ANNOTATION, b'{"image": "a.jpg",', ANNOTATION),
    "list.jsonl": lambda: lines(ANNOTATION, [1], ANNOTATION),
    "key.jsonl": lambda: lines(ANNOTATION, {"image": "a.jpg"}, ANNOTATION),
    "type.jsonl": lambda: lines(ANNOTATION, ANNOTATION | {"bbox": "wide"}, ANNOTATION),
    "size.jsonl": lambda: lines(ANNOTATION, ANNOTATION | {"width": "wide", "height": 3}, ANNOTATION),
    "split.jsonl": lambda: lines(ANNOTATION, ANNOTATION | {"split": ["val"]}, ANNOTATION),
    "path.jsonl": lambda: lines(ANNOTATION, ANNOTATION | {"image": "../a.jpg"}, ANNOTATION),
    "image.json": lambda: coco(NOTE, NOTE | {"image_id": 9}, NOTE),
    "phrase.json": lambda: coco(NOTE, {"id": 2, "image_id": 1, "bbox": BOX}, NOTE),
    "note.json": lambda: coco(NOTE, 7, NOTE),
    "odvg.jsonl": lambda: lines(
        {"filename": "a.jpg", "grounding": {"regions": [REGION]}}, {"filename": "a.jpg", "detection": {}}
    ),
    "rows.json": lambda: json.dumps([ANNOTATION, {"phrase": "a cup"}, ANNOTATION]).encode(),
    "folder/metadata.jsonl": lambda: lines(
        {"file_name": "a.jpg", "phrase": "a cup", "bbox": BOX}, {"file_name": 7, "phrase": "a cup", "bbox": BOX}
    ),
}
"""File name -> content with one malformed annotation."""


def task(*results: dict[str, Any], image: str = "/data/local-files/?d=p/my%20a.jpg", **own: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)} | own]}


def region(kind: str, value: dict[str, Any], name: str = "r1") -> dict[str, Any]:
    place = {"x": 10.0, "y": 20.0, "width": 50.0, "height": 25.0, "rotation": 0}
    return {"id": name, "type": kind, "original_width": 200, "original_height": 100, "value": place | value}


RECTANGLE, TEXT = region("rectanglelabels", {"rectanglelabels": ["cup"]}), region("textarea", {"text": ["the red cup"]})
