"""Annotation files of any make: a reader returns samples or one sentence; never a traceback, a hang, or a file outside
its root.

Each case takes a good set, changes some values or bytes of it, and reads it as a user would. The default suite tries
few; `-m slow` tries more than 10,000.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epmvg.core.types import InputError
from epmvg.data.convert import convert_data
from epmvg.data.readers.annotations import Skipped
from epmvg.data.registry import open_samples
from epmvg.data.stats import count_samples

CASES = 11_000
SECONDS = 20  # for one case; a good one takes milliseconds

ANNOTATION = {
    "image": "a.jpg",
    "phrase": "a cup",
    "bbox": [1, 2, 3, 4],
    "width": 50,
    "height": 40,
    "split": "val",
    "id": "7",
}
IMAGE = {"id": 3, "file_name": "a.jpg", "width": 50, "height": 40}
NOTE = {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4]}
SENTENCE = {"sent": "a cup", "raw": "A cup", "sent_id": 5}
REF = {"ref_id": 1, "ann_id": 1, "image_id": 3, "category_id": 9, "split": "val", "sentences": [SENTENCE]}
REGION = {"phrase": "a cup", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}
SIDES = {"x": 10, "y": 20, "width": 50, "height": 25, "rotation": 0}
TASK = [
    {"id": "r", "original_width": 50, "original_height": 40, "value": SIDES},
    {"id": "r", "original_width": 50, "original_height": 40, "value": {**SIDES, "text": ["a cup"]}},
]
XML = (
    "<annotation><size><width>50</width><height>40</height></size><object><name>1</name><bndbox><xmin>1</xmin>"
    "<ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"
)
TEXT = "[/EN#1/people/other A dog] sits .\nNothing else"
BOXES, SIZES = {"a_1": [1, 2, 3, 4]}, {"a.jpg": [50, 40]}
COLUMNS = {"phrase": ["a cup"], "bbox": [[1, 2, 3, 4]], "attributes": ['{"a": 1}'], "row": [0], "id": ["7"]}


@dataclass(frozen=True)
class GoodSet:
    """A data set's name (or file), and its files: bytes, or a value that the ending says how to write."""

    name: str
    files: dict[str, Any]


INDEX = ("a.jpg", "a_1.pth", [1, 2, 3, 4], "a cup", None)
SETS = [
    GoodSet("rows.jsonl", {"rows.jsonl": [ANNOTATION, ANNOTATION]}),
    GoodSet("rows.json", {"rows.json": {"images": [IMAGE], "annotations": [{**NOTE, "phrase": "a cup"}]}}),
    GoodSet("rows.json", {"rows.json": [ANNOTATION, ANNOTATION]}),
    GoodSet("rows.json", {"rows.json": [{"data": {"image": "a.jpg"}, "annotations": [{"result": TASK}]}]}),
    GoodSet("o.jsonl", {"o.jsonl": [{"filename": "a.jpg", "grounding": {"caption": "a cup", "regions": [REGION]}}]}),
    GoodSet("hub", {"hub/metadata.jsonl": [{"file_name": "a.jpg", "width": 50, "height": 40, "objects": COLUMNS}]}),
    GoodSet("hub", {"hub/val/metadata.jsonl": [{"file_name": "a.jpg", "phrase": "a cup", "bbox": [1, 2, 3, 4]}]}),
    GoodSet("rows.parquet", {"rows.parquet": [ANNOTATION, ANNOTATION]}),
    GoodSet(
        "refcoco",
        {
            "refcoco/instances.json": {
                "images": [IMAGE],
                "annotations": [NOTE],
                "categories": [{"id": 9, "name": "cup"}],
            },
            "refcoco/refs(unc).p": [REF],
        },
    ),
    GoodSet(
        "referit",
        {
            "referit_bbox.json": BOXES,
            "referit_imsize.json": SIZES,
            "referit_query_train.json": {"a_1": ["a cup", "cup"]},
            "referit_query_val.json": {},
            "referit_query_test.json": {},
        },
    ),
    GoodSet(
        "flickr30k",
        {
            "Annotations/1.xml": XML.encode(),
            "Sentences/1.txt": TEXT.encode(),
            **{"train.txt": b"1\n", "val.txt": b"", "test.txt": b"1\n"},
        },
    ),
    GoodSet("transvg-unc", {"unc/unc_val.pth": [INDEX, INDEX]}),
    GoodSet("transvg-flickr", {"flickr/flickr_test.pkl": [("a.jpg", [1, 2, 3, 4], "a cup")]}),
    GoodSet("transvg-unc+", {"data/unc+/unc+_testA.json": [list(INDEX)]}),
]

ODD: list[Any] = [None, True, -1, 0, 3, 1e308, float("nan"), float("inf"), -float("inf"), 10**400, 2**63, "", " ", "x"]
ODD += ["../../../../../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 5000, "a\nb", "word " * 200, "7" * 5000]
ODD += [[], {}, [[]], [1, 2, 3], [1, 2, 0, -4], ["1", "2", "3", "4"], {"a": []}, [None] * 4, "{", "[/EN#1/people"]
odd = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
CHUNKS = [
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b"[",
    b"]" * 50,
    b"{" * 3000,
    b"[" * 200_000,
    b"<",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
]
CHUNKS += [
    b"../../../etc/passwd",
    b"99999999999",
    b"-",
    b"NaN",
    b"[/EN#1/a ",
    b"cos\nsystem\n",
    b"R",
    b"b.",
    b"\x80\x04",
]
CHUNKS += [
    b"\r\xff\xff\xff\x7f",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"(((((",
    b"\xed\xa0\x80",
]
chunks = st.sampled_from(CHUNKS) | st.binary(max_size=12)
places = st.integers(0, 2**32 - 1)
changes = st.tuples(st.sampled_from(["set", "drop", "double"]), places, odd)
cuts = st.tuples(st.sampled_from(["insert", "replace", "truncate", "repeat"]), places, chunks)
cases = st.tuples(
    st.sampled_from(SETS), places, st.lists(changes, max_size=2), st.lists(cuts, max_size=2), st.integers(0, 5)
)


def nodes(value: Any, above: Any = None, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value inside a value."""
    if above is not None:
        yield above, key
    for inner in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from nodes(value[inner], value, inner)


def with_lists(value: Any) -> Any:
    """Return a copy whose tuples are lists."""
    if isinstance(value, dict):
        return {key: with_lists(inner) for key, inner in value.items()}
    return [with_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def changed(value: Any, how: str, place: int, new: Any) -> Any:
    """Return a value with one of its inner values set, dropped or doubled."""
    value = with_lists([value])
    found = list(nodes(value))
    above, key = found[place % len(found)]
    if how == "set":
        above[key] = new
    elif how == "drop":
        del above[key]
    elif isinstance(above, list):
        above.append(above[key])
    else:
        above[str(new)[:9]] = above[key]
    return value[0] if value else new


def cut(data: bytes, how: str, place: int, chunk: bytes) -> bytes:
    at = place % (len(data) + 1)
    if how == "truncate":
        return data[:at]
    if how == "repeat":
        return data + data[at:]
    return data[:at] + chunk + data[at + (len(chunk) if how == "replace" else 0) :]


def written(name: str, value: Any, protocol: int) -> bytes:
    """Write a value as its file's ending says."""
    if isinstance(value, bytes):
        return value
    if name.endswith(".jsonl"):
        lines = value if isinstance(value, list) else [value]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    if name.endswith(".json"):
        return json.dumps(value).encode()
    if name.endswith(".parquet"):
        return table_of(value)
    pickled = pickle.dumps(value, protocol)
    if name.endswith(".pth") and protocol > 2:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("unc_val/data.pkl", pickled)
        return archive.getvalue()
    return pickled


def table_of(value: Any) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    plain = [{key: str(item)[:99] for key, item in ANNOTATION.items()}]
    for tried in (rows or [{}], plain):  # Arrow cannot hold or write all that JSON can
        out = io.BytesIO()
        with contextlib.suppress(pyarrow.ArrowException, ValueError, OverflowError, TypeError):
            parquet.write_table(pyarrow.Table.from_pylist(tried), out)
            break
    return out.getvalue()


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """The names of all files that are opened from now on."""
    names: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            names.append(os.fsdecode(arguments[0]))

    sys.addaudithook(note)
    return names


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(act: Callable[[], object]) -> bool:
    """Return whether it worked; the message of an error must be one line."""
    try:
        act()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) > 20, repr(str(error))
        return False
    return True


def try_case(case: Any, root: Path, opened: list[str]) -> None:
    good, which, edits, slices, protocol = case
    shutil.rmtree(root, ignore_errors=True)
    chosen = sorted(good.files)[which % len(good.files)]
    for name, value in good.files.items():
        for how, place, new in edits if name == chosen and not isinstance(value, bytes) else ():
            value = changed(value, how, place, new)  # noqa: PLW2901
        data = written(name, value, protocol)
        for how, place, chunk in slices if name == chosen else ():
            data = cut(data, how, place, chunk)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    is_file = "." in good.name or good.name == "hub"
    name = str(root / good.name) if is_file else good.name
    opened.clear()
    with time_limit(SECONDS):
        attempt(lambda: open_samples(name, split="val", root=root))
        if attempt(lambda: open_samples(name, split=None, root=root, skipped=Skipped())):
            attempt(lambda: count_samples(name, root=root))
            for target in ("out/t.jsonl", "out/t.json", "out/t.odvg.jsonl"):
                if attempt(lambda to=target: convert_data(name, root / to, root=root)):  # type: ignore[misc]
                    attempt(lambda to=target: open_samples(str(root / to), split=None, root=root))  # type: ignore[misc]
    python = (sys.prefix, sys.base_prefix, "/dev/null", str(Path(__file__).parents[3]))
    outside = [file for file in opened if not os.path.abspath(file).startswith((str(root), *python))]  # noqa: PTH100
    assert not outside, outside


@given(cases)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_is_one_sentence(tmp_path_factory: pytest.TempPathFactory, opened: list[str], case: Any) -> None:
    try_case(case, tmp_path_factory.getbasetemp() / "damaged", opened)


@pytest.mark.slow
@given(cases)
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_damaged_files_are_one_sentence_each(
    tmp_path_factory: pytest.TempPathFactory, opened: list[str], case: Any
) -> None:
    try_case(case, tmp_path_factory.getbasetemp() / "damaged", opened)


@pytest.mark.parametrize("good", SETS, ids=lambda good: good.name)
def test_the_undamaged_sets_are_good(tmp_path: Path, opened: list[str], good: GoodSet) -> None:
    try_case((good, 0, [], [], 2), tmp_path / "set", opened)
    name = str(tmp_path / "set" / good.name) if "." in good.name or good.name == "hub" else good.name
    assert open_samples(name, split=None, root=tmp_path / "set")
    assert (tmp_path / "set" / "out" / "t.json").exists()
