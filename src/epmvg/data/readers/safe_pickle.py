"""Pickles and `torch.save` files of plain lists, dicts, texts, numbers and arrays, read without running anything.

Built on the standard library's unpickler in Python, not the one in C: that one hashes any key (deeply nested tuples
crash the process) and allocates 1 GB for a file of 9 bytes, both before any hook is called, and a scan by `pickletools`
cannot tell which values become keys. Measured on 50,000 refs, it is as fast as a reader of our own (6 s).
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

from epmvg.core.types import InputError
from epmvg.data.readers.fields import short_repr
from epmvg.data.readers.files import read_bytes, read_json

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""What torch.save wrote first, before its files became zip archives (torch/serialization.py)."""

_ELEMENT_TYPES = re.compile(r"[biuf][1248]")

_TRUNCATED = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, EOFError, OSError),
    *(struct.error, zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What a truncated pickle can raise."""


class _ForbiddenError(Exception):
    """The pickle contains more than plain data."""


def load_pickle(file: Path) -> Any:
    """Read a pickle, or a file of torch.save without tensors; arrays come as nested lists.

    Raises:
        InputError: the file is truncated, or contains anything but plain containers, texts, numbers and arrays.
    """
    data = read_bytes(file)
    try:
        if data.startswith(b"PK\x03\x04"):
            data = _from_archive(data)
        stream = io.BytesIO(data)
        value = _DataUnpickler(stream, len(data)).load()
        if value == _TORCH_MAGIC:
            for _ in range(3):  # the protocol, the system that wrote it, then what was saved
                value = _DataUnpickler(stream, len(data)).load()
    except _ForbiddenError as error:
        raise InputError(
            f"{file} cannot be opened. It contains {error}, and only plain lists, dicts, texts,"
            " numbers and arrays are read; save it again without that, or as JSON."
        ) from error
    except _TRUNCATED as error:
        raise InputError(f"{file} is not a whole pickle ({type(error).__name__}). Download the file again.") from error
    return value


def load_rows(file: Path) -> list[Any]:
    """Read a list from a pickle, or from JSON of the same content."""
    rows = read_json(file) if file.suffix.lower() == ".json" else load_pickle(file)
    if not isinstance(rows, list):
        raise InputError(f"{file} holds {short_repr(rows)} instead of a list. Download the file again.")
    return rows


def _from_archive(data: bytes) -> bytes:
    """Return the pickle inside a torch.save archive, which stores it uncompressed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.filename.rpartition("/")[2] == "data.pkl":
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size > len(data):
                    raise _ForbiddenError("a compressed or encrypted archive")
                return archive.read(info)
    raise ValueError("no data.pkl")


class _Array(list[Any]):
    """A numpy array as nested lists, filled once the pickle states its content."""

    def set_state(self, _version: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        if fortran:
            raise _ForbiddenError("an array in Fortran order")
        self[:] = _to_lists(shape, dtype, data)


class _DType:
    """A numpy element type: a code such as f8, and its byte order."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not _ELEMENT_TYPES.fullmatch(code):
            raise _ForbiddenError(f"arrays of {short_repr(code)}")
        self.code, self.order = code, "="

    def set_state(self, _version: Any, order: Any, *_: Any) -> None:
        if order not in ("<", ">", "=", "|"):
            raise ValueError("byte order")
        self.order = order


def _to_lists(shape: Any, dtype: Any, data: Any) -> list[Any]:
    import numpy as np

    if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise TypeError("array")
    if 0 in shape:  # the other sides may be huge
        return []
    # Python 2 pickled bytes as text: every letter is one byte
    content = data.encode("latin-1") if isinstance(data, str) else data
    values = np.frombuffer(content, dtype=np.dtype(dtype.order + dtype.code)).reshape(shape).tolist()
    return values if isinstance(values, list) else [values]


def _scalar(dtype: Any, data: Any) -> Any:
    (value,) = _to_lists((1,), dtype, data)
    return value


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _ForbiddenError(f"the codec {short_repr(encoding)}")
    return text.encode("latin-1")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "builtins.bytes": lambda: b"",  # how Python 3 writes no bytes for Python 2
    "_codecs.encode": _encode,
    "numpy.ndarray": lambda *_: _Array(),  # an argument of _reconstruct
    "numpy.dtype": lambda code, *_: _DType(code),
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": _scalar,
}
"""What a pickle may name -> the function called in its place; nothing is imported."""


class _DataUnpickler(pickle._Unpickler):
    """An unpickler that builds plain data only.

    Args:
        stream: the pickle.
        size: bytes of the file, which bound what its calls may copy: a value can be passed again and again.
    """

    dispatch: ClassVar[dict[int, Any]]
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: io.BytesIO, size: int) -> None:
        super().__init__(stream)
        self.copies_left = 20 * size + 1_000_000

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        called = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy._core.", "numpy.core.")
        if called not in _ALLOWED:
            raise _ForbiddenError(ascii(f"{module}.{name}"[:80])[1:-1])
        return _ALLOWED[called]

    def _decode_string(self, value: bytes) -> str:
        """Decode a text of Python 2, whose encoding is not stated."""
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, FunctionType) or not isinstance(arguments, tuple):
            raise _ForbiddenError(f"a call of a {type(function).__name__}")
        self._count_copies(arguments)
        self.stack.append(function(*arguments))

    def load_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Array | _DType) or not isinstance(state, tuple):
            raise _ForbiddenError(f"the inside of a {type(target).__name__}")
        self._count_copies(state)
        target.set_state(*state)

    def _count_copies(self, values: tuple[Any, ...]) -> None:
        self.copies_left -= sum(len(value) for value in values if hasattr(value, "__len__"))
        if self.copies_left < 0:
            raise _ForbiddenError("more copies than its length explains")

    def load_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _ForbiddenError(f"setting items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key is not None and not isinstance(key, str | int | float | bytes):  # a nested tuple hashes recursively
                raise _ForbiddenError(f"a key that is a {type(key).__name__}")
            target[key] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.load_items(items)

    def load_object(self) -> None:
        raise _ForbiddenError("an object")


_DataUnpickler.dispatch = {
    **_DataUnpickler.dispatch,
    pickle.REDUCE[0]: _DataUnpickler.load_call,
    pickle.BUILD[0]: _DataUnpickler.load_state,
    pickle.DICT[0]: _DataUnpickler.load_dict,
    pickle.SETITEM[0]: lambda self: self.load_items([self.stack.pop(), self.stack.pop()][::-1]),
    pickle.SETITEMS[0]: lambda self: self.load_items(self.pop_mark()),
    pickle.BYTEARRAY8[0]: _DataUnpickler.dispatch[pickle.BINBYTES8[0]],  # allocates no more than there is
    # instances, sets, extensions, buffers
    **dict.fromkeys(b"io\x81\x92\x8f\x90\x91\x82\x83\x84PQ\x97\x98", _DataUnpickler.load_object),
}
