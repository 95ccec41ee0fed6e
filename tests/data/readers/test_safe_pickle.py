"""Pickles of plain data are read, from any Python; anything else is rejected and never run."""

from __future__ import annotations

import collections
import datetime
import json
import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epmvg.core.types import InputError
from epmvg.data.readers.safe_pickle import load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

keys = st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False) | st.binary()
values = st.recursive(
    keys,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(values, st.sampled_from(PROTOCOLS))
def test_data_survives_every_protocol(tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int) -> None:
    file = tmp_path_factory.getbasetemp() / "any.p"
    for written in (pickle.dumps(value, protocol), pickletools.optimize(pickle.dumps(value, protocol))):
        file.write_bytes(written)
        read = load_pickle(file)
        assert read == value and type(read) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS[:5])
def test_arrays_come_as_lists(tmp_path: Path, protocol: int) -> None:
    made = np.arange(6.0).reshape(2, 3)
    arrays: list[Any] = [made, made.astype(">i4"), np.float32(0.5), np.bool_(True), np.zeros((0, 4))]
    (tmp_path / "a.p").write_bytes(pickle.dumps([*arrays, arrays[0]], protocol))
    assert load_pickle(tmp_path / "a.p") == [*(array.tolist() for array in arrays), made.tolist()]


def test_python_2_texts_are_read(tmp_path: Path) -> None:
    text = b"(lp0\n(dp1\nS'sent'\np2\nS'it\\'s caf\\xc3\\xa9'\np3\nsS'n'\nL5L\nsa."
    (tmp_path / "2.p").write_bytes(text)
    assert load_pickle(tmp_path / "2.p") == [{"sent": "it's café", "n": 5}]
    (tmp_path / "2.p").write_bytes(b"\x80\x02]q\x00(U\x04caf\xe9U\x01aK\x01e.")
    assert load_pickle(tmp_path / "2.p") == ["café", "a", 1]


@pytest.mark.parametrize("archive", [True, False])
def test_torch_files_are_read(tmp_path: Path, archive: bool) -> None:
    rows = [("a.jpg", np.array([1, 2, 3, 4]), "a cup", None)]
    torch.save(rows, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    assert load_pickle(tmp_path / "a.pth") == [("a.jpg", [1, 2, 3, 4], "a cup", None)]
    torch.save([torch.zeros(2)], tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(InputError, match=r"It contains torch\._utils"):
        load_pickle(tmp_path / "a.pth")


class Runs:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_ever_run(tmp_path: Path, protocol: int) -> None:
    pickle.loads(pickle.dumps(Runs(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()  # the danger is real
    (tmp_path / "r.p").write_bytes(pickle.dumps([Runs(tmp_path / "mark")], protocol))
    with pytest.raises(InputError, match=r"r\.p cannot be opened\. It contains (posix|nt)\.mkdir.*plain lists"):
        load_pickle(tmp_path / "r.p")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2020, 1, 1),
        Path("x"),
        complex(1, 2),
        range(3),
        os.getcwd,
        Runs,
        collections.Counter("a"),
        {(1, 2): 3},
        {1, 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_not_plain_is_rejected(tmp_path: Path, value: object, protocol: int) -> None:
    (tmp_path / "v.p").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(InputError, match="It contains"):
        load_pickle(tmp_path / "v.p")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a whole pickle"),
        (b"\x80\x02]", "not a whole pickle"),
        (b"PK\x03\x04cut", "not a whole pickle"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a whole pickle"),  # a text of exabytes
        (b"cnumpy.core.multiarray\n_reconstruct\n)R.", None),
        (b"cnumpy\nndarray\n(I1000000\nI1000000\ntR.", None),  # a terabyte of zeros
        (
            b"cnumpy.core.multiarray\n_reconstruct\n)R(I1\n(I1000000000\nI0\ntcnumpy\ndtype\n(Vf8\ntRI00\nV\ntb.",
            None,
        ),  # a billion empty lists
        (b"c_codecs\nencode\n(Vx\nVzip\ntR.", "the codec 'zip'"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a whole pickle"),  # bytes of exabytes
        (b"\x80\x02]r\xff\xff\xff\x7f.", None),  # a memo index that an array would take gigabytes for
        (b"(cnumpy\ndtype\no.", "an object"),
        (b"]}R.", "a call of a list"),
        (b"]]b.", "the inside of a list"),
        (b"]K\x01K\x02s.", "setting items of a list"),
        (b"cnumpy\ndtype\n}b.", "the inside of a function"),
        (b"cnumpy\ndtype\n(VV1000000000\ntR.", "arrays of 'V1000000000'"),
        (b"]q\x00" + b"h\x00a" * 5 + b".", None),  # a list inside itself
        (b"]" * 100_000 + b"a" * 99_999 + b".", None),  # nested too deep for a recursive walk
        (b"}" + b"(" * 50_000 + b"t" * 50_000 + b"Ns.", "a key that is a tuple"),
        (b"]\x94(" + b"N" * 5000 + b"e" + b"cnumpy\ndtype\n(Vf8\nh\x00tR0" * 30_000 + b".", "copies"),
    ],
)
def test_bombs_are_harmless(tmp_path: Path, data: bytes, words: str | None) -> None:
    (tmp_path / "b.p").write_bytes(data)
    tracemalloc.start()
    try:
        if words is None:
            load_pickle(tmp_path / "b.p")
        else:
            with pytest.raises(InputError, match=words):
                load_pickle(tmp_path / "b.p")
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_pickles_of_the_reference_material_equal_their_json(shared: Path) -> None:
    def plain(value: Any) -> Any:
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    files = [*shared.glob("formats/*/refs(*).p"), *shared.glob("formats/transvg_index/*/*.pkl")]
    assert files
    for file in files:
        assert plain(load_pickle(file)) == plain(json.loads(file.with_suffix(".json").read_text()))
