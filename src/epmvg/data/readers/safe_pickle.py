"""Pickles read as data: plain containers, texts, numbers and arrays; anything else is refused and nothing is ever run.

A pickle is a programme for a small stack machine (the standard library's `pickletools` describes its instructions).
The machine below knows only those that build data; a name from another module is compared with a short list, never
imported. `torch.save` files without tensors, old and new, are pickles too.
"""

from __future__ import annotations

import codecs
import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from epmvg.core.types import InputError
from epmvg.data.readers.files import read_bytes, shown

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""What torch.save wrote first, before its files became zip archives (torch/serialization.py)."""

_NUMBERS = re.compile(r"[biuf][1248]|[US][1-9]\d{0,4}|O8?")

_BROKEN = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, EOFError, OSError),
    *(struct.error, zipfile.BadZipFile),
)
"""What a torn pickle can lead to."""


class _RefusedError(Exception):
    """The pickle wants more than data."""


class _Array(list[Any]):
    """A numpy array to come: its nested lists, once the pickle has stated them."""

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        self[:] = _array(shape, dtype, fortran, data)


class _DType:
    """A numpy element type to come: a code such as f8, and its byte order."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise _RefusedError(f"arrays of {shown(code)}")
        self.code, self.order = code, "="

    def state(self, order: Any) -> None:
        if order not in ("<", ">", "=", "|"):
            raise ValueError("byte order")
        self.order = order


class _Callable:
    """A name that a pickle may call, and what we do instead."""

    def __init__(self, act: Callable[..., Any] | None) -> None:
        self.act = act


def load_pickle(file: Path) -> Any:
    """Read a pickle, or a file of torch.save without tensors; arrays come as nested lists.

    Raises:
        InputError: the file is torn, or asks for anything but plain containers, texts, numbers and arrays.
    """
    data = read_bytes(file)
    try:
        if data.startswith(b"PK\x03\x04"):
            return _Machine(_from_archive(data)).run()
        machine = _Machine(data)
        value = machine.run()
        if value == TORCH_MAGIC:
            for _ in range(3):  # its protocol, the machine that wrote it, then what was saved
                value = machine.again()
    except _RefusedError as error:
        raise InputError(
            f"{file} is refused: it asks for {error}, and a pickle is opened only for plain lists, dicts, texts,"
            " numbers and arrays; save it again without that, or as JSON."
        ) from error
    except _BROKEN as error:
        raise InputError(f"{file} is not a whole pickle ({type(error).__name__}): fetch the file anew.") from error
    return value


def _from_archive(data: bytes) -> bytes:
    """Return the pickle inside a torch.save archive, which stores it uncompressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.filename.rpartition("/")[2] == "data.pkl":
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > len(data):
                    raise _RefusedError("a compressed or encrypted archive")
                return archive.read(info)
    raise ValueError("no data.pkl")


def _plain_key(value: Any) -> Any:
    """Let only what hashes in one step be a key."""
    if value is not None and not isinstance(value, str | int | float | bytes):
        raise _RefusedError(f"a key that is a {type(value).__name__}")
    return value


def _array(shape: Any, dtype: Any, fortran: Any, data: Any) -> list[Any]:
    import numpy as np

    if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise TypeError("array")
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError("shape")
    if dtype.code.startswith("O"):
        flat = np.empty(len(data), dtype=object)
        for number, value in enumerate(data):
            flat[number] = value
    else:
        kind = np.dtype(dtype.order + dtype.code)
        # Python 2 pickled bytes as text: every letter is one byte
        flat = np.frombuffer(data.encode("latin-1") if isinstance(data, str) else data, dtype=kind)
    if 0 in shape:
        return []
    values = flat.reshape(shape, order="F" if fortran else "C").tolist()
    return values if isinstance(values, list) else [values]


def _scalar(dtype: Any, data: Any) -> Any:
    (value,) = _array((1,), dtype, False, data)
    return value


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(shape, dtype, order == "F", bytes(data))
    return array


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"the codec {shown(encoding)}")
    return text.encode("latin-1")


def _mapping(pairs: Iterable[Any] = ()) -> dict[Any, Any]:
    return {_plain_key(key): value for key, value in pairs}


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {_plain_key(item) for item in items}


_ADMITTED: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _mapping,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": lambda: b"",  # how Python 3 tells Python 2 of no bytes
    "_codecs.encode": _encoded,
    "numpy.ndarray": None,  # named as what is to be made, never called
    "numpy.dtype": lambda code, *_: _DType(code),
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
}


def _named(module: Any, name: Any) -> _Callable:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("name")
    called = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy._core.", "numpy.core.")
    if called not in _ADMITTED:
        raise _RefusedError(ascii(f"{module}.{name}"[:80])[1:-1])
    return _Callable(_ADMITTED[called])


class _Machine:
    """The stack machine: `data` is the programme, `at` the next instruction."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks that a mark has set aside
        self.memo: dict[int, Any] = {}
        self.work = 20 * len(data) + 1_000_000  # what calls may still copy: a value can be named again and again

    def run(self) -> Any:
        data, act = self.data, _INSTRUCTIONS
        while True:
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            if code not in act:
                raise _RefusedError(f"instruction {bytes([code])!r}")
            act[code](self)

    def again(self) -> Any:
        """Run the next pickle of a file that holds several."""
        self.stack, self.below, self.memo = [], [], {}
        return self.run()

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise EOFError
        self.at += count
        return part

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), "little", signed=signed)

    def line(self) -> bytes:
        end = self.data.index(b"\n", self.at)
        part = self.data[self.at : end]
        self.at = end + 1
        return part

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """Return what lies above the last mark, and go on below it."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise EOFError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _RefusedError(f"adding to a {type(target).__name__}")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise _RefusedError(f"adding to a {type(target).__name__}")
        target.update(_set(items))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _RefusedError(f"setting items of a {type(target).__name__}")
        target.update(_mapping(zip(items[::2], items[1::2], strict=True)))

    def dict_of(self) -> None:
        items = self.marked()
        self.push({})
        self.set_items(items)

    def whole(self) -> None:
        text = self.line()
        self.push(text == b"01" if text in (b"00", b"01") else int(text))

    def old_text(self, raw: bytes) -> None:
        """Push a text of Python 2, which did not say how it was encoded."""
        try:
            self.push(raw.decode())
        except UnicodeDecodeError:
            self.push(raw.decode("latin-1"))

    def quoted(self) -> None:
        text = self.line().strip()
        if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
            raise ValueError("quotes")
        self.old_text(codecs.escape_decode(text[1:-1])[0])

    def name_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(_named(module, name))

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Callable) or called.act is None or not isinstance(arguments, tuple):
            raise _RefusedError(f"a call of a {type(called).__name__}")
        self.spend(arguments)
        self.push(called.act(*arguments))

    def spend(self, values: Any) -> None:
        self.work -= sum(len(value) for value in values if hasattr(value, "__len__"))
        if self.work < 0:
            raise _RefusedError("more copies than its length explains")

    def state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, tuple):
            raise _RefusedError(f"the inside of a {type(target).__name__}")
        self.spend(state)
        if isinstance(target, _Array):
            _, shape, dtype, fortran, data = state
            target.fill(shape, dtype, fortran, data)
        elif isinstance(target, _DType):
            target.state(state[1])
        else:
            raise _RefusedError(f"the inside of a {type(target).__name__}")


_ACTS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.marked,
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _Machine.whole,
    b"L": lambda m: m.push(int(m.line().rstrip(b"L"))),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: m.push(m.number(m.number(1), signed=True)),
    b"\x8b": lambda m: m.push(m.number(m.number(4), signed=True)),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"S": _Machine.quoted,
    b"T": lambda m: m.old_text(m.take(m.number(4))),
    b"U": lambda m: m.old_text(m.take(m.number(1))),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(m.take(m.number(4)).decode("utf-8", "surrogatepass")),
    b"\x8c": lambda m: m.push(m.take(m.number(1)).decode("utf-8", "surrogatepass")),
    b"\x8d": lambda m: m.push(m.take(m.number(8)).decode("utf-8", "surrogatepass")),
    b"B": lambda m: m.push(m.take(m.number(4))),
    b"C": lambda m: m.push(m.take(m.number(1))),
    b"\x8e": lambda m: m.push(m.take(m.number(8))),
    b"\x96": lambda m: m.push(m.take(m.number(8))),  # a bytearray comes as bytes
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"}": lambda m: m.push({}),
    b"\x8f": lambda m: m.push(set()),
    b"l": lambda m: m.push(m.marked()),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x91": lambda m: m.push(_set(m.marked())),
    b"d": _Machine.dict_of,
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"a": lambda m: m.append([m.stack.pop()]),
    b"e": lambda m: m.append(m.marked()),
    b"\x90": lambda m: m.add(m.marked()),
    b"s": lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    b"u": lambda m: m.set_items(m.marked()),
    b"p": lambda m: m.memo.__setitem__(int(m.line()), m.stack[-1]),
    b"q": lambda m: m.memo.__setitem__(m.number(1), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number(4), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"g": lambda m: m.push(m.memo[int(m.line())]),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"c": lambda m: m.push(_named(m.line().decode(), m.line().decode())),
    b"\x93": _Machine.name_on_stack,
    b"R": _Machine.call,
    b"b": _Machine.state,
}
_INSTRUCTIONS = {code[0]: act for code, act in _ACTS.items()}
