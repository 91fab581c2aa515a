"""The pickle files of CIFAR-10: read without running any code that they name, written in the very same format."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

IMAGE_SHAPE = (3, 32, 32)
CLASSES = 10

_VALUES = 3 * 32 * 32
_LARGEST = 64 * 2**20  # bytes; a batch of 10,000 images has 31 million
_MOST_OPERATIONS = 1_000_000  # of a pickle; a batch of 10,000 images has 90,000
_MOST_TUPLES = 16  # that no call has consumed; a batch has 4
_REMEDY = "take the file from the Python version of CIFAR-10, from a source that you trust"


def read_batch(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch: images, shape (N, 3, 32, 32), and labels, shape (N,).

    Nothing that the file names is imported or called: a pickle that asks for more than arrays, bytes, strings,
    integers, lists and dictionaries is refused.

    Raises:
        DataError: the file is missing, truncated, too large or anything but a batch of CIFAR-10.
    """
    try:
        size = file.stat().st_size
        content = file.read_bytes() if size <= _LARGEST else None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): {_REMEDY}") from error
    if content is None:
        raise DataError(f"{file} has {size} bytes, more than any batch of CIFAR-10: {_REMEDY}")
    try:
        return _parse(content)
    except Exception as error:  # a broken pickle can raise nearly anything
        reason = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{file} is not a batch of CIFAR-10, or is cut off ({reason}): {_REMEDY}") from error


def _parse(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    _require_harmless(content)
    found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # Python 3 writes text where Python 2 wrote bytes.
    entries = {k.encode() if isinstance(k, str) else k: v for k, v in found.items()} if isinstance(found, dict) else {}
    if not {b"data", b"labels"} <= entries.keys():
        raise ValueError("it must be a dictionary with data and labels")
    images, labels = _images(entries[b"data"]), _labels(entries[b"labels"])
    if len(images) != len(labels):
        raise ValueError(f"it has {len(images)} images but {len(labels)} labels")
    return images, labels


_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_REUSABLE = {"SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE"}
_REUSABLE |= {"GLOBAL", "STACK_GLOBAL", "REDUCE"}
_OPERATIONS = _TUPLES | _REUSABLE | {"PROTO", "FRAME", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "BUILD"}
_OPERATIONS |= {"BININT", "BININT1", "BININT2", "EMPTY_LIST", "APPEND", "APPENDS"}
_OPERATIONS |= {"EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"}


def _require_harmless(content: bytes) -> None:
    """Refuse a pickle with which the C unpickler could be made to exhaust memory, time or its stack.

    It reserves memory for the largest index of the memo: indices are bounded. It hashes the keys of dictionaries,
    tuples recursively: there are only a few tuples that no call has consumed, which bounds how deep they are nested and
    how many have one hash; none is used twice, which would take exponential time. Integers have 32 bits: longer ones
    could be chosen to have one hash.

    Raises:
        ValueError: it is such a pickle, or is cut off or no pickle.
    """
    reusable: dict[int, bool] = {}  # by index of the memo
    produced, tuples = "", 0
    operations: Iterable[tuple[Any, Any, Any]] = pickletools.genops(content)
    for number, (operation, argument, _) in enumerate(operations):
        name = operation.name
        if number == _MOST_OPERATIONS:
            raise ValueError("it has more operations than any batch")
        if name not in _OPERATIONS:
            raise ValueError(f"it has the operation {name}, as no batch has")
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(reusable) if argument is None else argument
            if index >= _MOST_OPERATIONS:
                raise ValueError(f"it has the index {index} in its memo, larger than in any batch")
            reusable[index] = produced in _REUSABLE
            continue
        if name == "FRAME" and argument > len(content):
            raise ValueError(f"it has a frame of {argument} bytes, more than the file")
        if name in ("BINGET", "LONG_BINGET") and not reusable.get(argument):
            raise ValueError(f"it reads {argument} from its memo, which is not there or is neither text nor a name")
        tuples += (name in _TUPLES) - (name == "REDUCE")
        if tuples > _MOST_TUPLES:
            raise ValueError("it has more tuples than any batch")
        produced = name


class _Parts:
    """Stands for numpy's array, dtype and the function that makes arrays; stores their arguments and state."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows four names only, each as something harmless."""

    _left = _LARGEST  # bytes that may still be made of text

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2

            def encode(text: str, encoding: object) -> bytes:
                self._left -= len(text)
                if self._left < 0:
                    raise ValueError("it makes more bytes than any batch")
                return text.encode("latin-1")

            return encode
        if (module.replace("_core", "core"), name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ):
            return _Parts
        raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}, which no batch contains")


def _images(data: Any) -> NDArray[np.uint8]:
    if not isinstance(data, _Parts):
        raise TypeError("data must be an array")
    _, shape, dtype, by_columns, content = data.state
    if dtype.arguments[0] not in (b"u1", "u1") or by_columns:
        raise ValueError("data must be an array of uint8, row by row")
    due = shape[0] * _VALUES if len(shape) == 2 and type(shape[0]) is int else 0
    if due < 1 or shape[1] != _VALUES or len(content) != due:
        raise ValueError(f"data must be of shape (N, {_VALUES}), N at least 1, with all its values")
    return np.frombuffer(content, np.uint8).reshape(-1, *IMAGE_SHAPE)


def _labels(labels: Any) -> NDArray[np.int64]:
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise TypeError("labels must be a list of integers")
    for wrong in (label for label in labels if not 0 <= label < CLASSES):
        raise ValueError(f"a label is {wrong}: it must be in 0..{CLASSES - 1}")
    return np.array(labels, dtype=np.int64)


def batch_bytes(entries: Mapping[bytes, object]) -> bytes:
    """Return a file of CIFAR-10: entries as Python 2 and its numpy pickled them, with protocol 2.

    Args:
        entries: integers, bytes, lists of these, and arrays of uint8, by name.
    """
    return pickle.PROTO + b"\x02" + _pickled(entries) + pickle.STOP


def _pickled(value: Any) -> bytes:
    if isinstance(value, Mapping):
        items = b"".join(_pickled(key) + _pickled(entry) for key, entry in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_pickled, value)) + pickle.APPENDS
    if isinstance(value, bytes):
        if len(value) < 256:
            return pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) + value
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    return _pickled_array(value)


def _pickled_array(array: NDArray[np.uint8]) -> bytes:
    """Pickle an array as ``_reconstruct(ndarray, (0,), 'b')`` and its state, numpy's own protocol."""
    none, false = pickle.NONE, pickle.NEWFALSE
    type_state = _tuple(_pickled(3), _pickled(b"|"), none, none, none, *map(_pickled, (-1, -1, 0)))
    byte = _call(b"numpy", b"dtype", *map(_pickled, (b"u1", 0, 1))) + type_state + pickle.BUILD
    shape = _tuple(*map(_pickled, array.shape))
    ndarray = pickle.GLOBAL + b"numpy\nndarray\n"
    empty = _call(b"numpy.core.multiarray", b"_reconstruct", ndarray, _tuple(_pickled(0)), _pickled(b"b"))
    return empty + _tuple(_pickled(1), shape, byte, false, _pickled(array.tobytes())) + pickle.BUILD


def _call(module: bytes, name: bytes, *arguments: bytes) -> bytes:
    return pickle.GLOBAL + module + b"\n" + name + b"\n" + _tuple(*arguments) + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
