"""The ``.npy`` files of a segment: write them, map them into memory, checksum them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lexvla.errors import IndexCorruptError
from lexvla_indexer.durable import writing

__all__ = [
    "ArrayFile",
    "Mark",
    "demand",
    "mark",
    "open_array",
    "save_array",
    "writing_array",
]

_CHUNK = 1 << 24  # bytes that are read at a time
# Bytes that are written at a time, to places that are multiples of that: so Linux can keep them in
# its largest pages, as it does with what is written at once.
_PART = 1 << 22
_CONVERTED = 1 << 18  # bytes that are converted at a time: they stay in the cache
_TRIES = 5  # of reading a header


class Mark(NamedTuple):
    """Size and checksum of a whole file."""

    size: int
    crc32: int


class ArrayFile:
    """Write an array to an open file part by part; once flushed, ``mark`` is of the whole file.

    `numpy.save` writes through a buffer of its own and does not check that its last bytes reached
    the disk: on a full disk a small array is cut short, and nothing is raised.
    """

    def __init__(self, file: BinaryIO, kind: DTypeLike, shape: tuple[int, ...]) -> None:
        self.mark = Mark(0, 0)
        self._file, self._kind = file, np.dtype(kind)
        self._room, self._used = np.empty(_PART, np.uint8), 0
        header = BytesIO()
        described = np.lib.format.dtype_to_descr(self._kind)
        facts = {"descr": described, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, facts)
        self._take(np.frombuffer(header.getbuffer(), np.uint8))

    def append(self, array: np.ndarray) -> None:
        """Write the next numbers, converted to the file's kind."""
        flat, count = array.reshape(-1), _CONVERTED // self._kind.itemsize
        for first in range(0, len(flat), count):
            part = np.ascontiguousarray(flat[first : first + count], self._kind)
            self._take(part.view(np.uint8))

    def flush(self) -> None:
        """Write what is left."""
        data = self._room[: self._used].data
        self._file.write(data)
        self.mark = Mark(self.mark.size + len(data), zlib.crc32(data, self.mark.crc32))
        self._used = 0

    def _take(self, data: np.ndarray) -> None:
        while len(data):
            part = data[: len(self._room) - self._used]
            self._room[self._used : self._used + len(part)] = part
            data, self._used = data[len(part) :], self._used + len(part)
            if self._used == len(self._room):
                self.flush()


@contextmanager
def writing_array(path: Path, kind: DTypeLike, shape: tuple[int, ...]) -> Iterator[ArrayFile]:
    """Open the ``.npy`` file of an array to write; an `OSError` names it."""
    with writing(path) as file:
        array = ArrayFile(file, kind, shape)
        yield array
        array.flush()


def save_array(path: Path, array: np.ndarray, kind: DTypeLike | None = None) -> Mark:
    """Write an array to a ``.npy`` file, perhaps as another kind of numbers; see `ArrayFile`."""
    with writing_array(path, array.dtype if kind is None else kind, array.shape) as file:
        file.append(array)
    return file.mark


def open_array(path: Path, kind: DTypeLike, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Map an array into memory, read-only.

    A file that is missing, truncated, or does not hold numbers of this kind and shape (``None``:
    one row of any length) raises IndexCorruptError.
    """
    try:
        array = _mapped(path)
        size = path.stat().st_size
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, TokenError) as error:
        raise IndexCorruptError(f"{path}: missing, truncated or damaged ({error})") from error
    # A wrong header length shifts all values: the file is then longer than they are.
    whole = array.offset + array.nbytes == size
    demand(path, whole, "must end with its last number")
    fits = array.ndim == 1 if shape is None else array.shape == shape
    wanted = f"{np.dtype(kind)} of {'one row' if shape is None else f'shape {shape}'}"
    rule = f"must be {wanted}, not {array.dtype} of shape {array.shape}"
    demand(path, array.dtype == kind and fits, rule)
    return np.asarray(array)  # a plain view: indexing a memmap object is much slower


def _mapped(path: Path) -> np.memmap:
    for _ in range(_TRIES - 1):
        # numpy parses a header as Python. When two threads do so at once, CPython before 3.11.8 and
        # 3.12.2 occasionally mistakes one's depth for the other's (python/cpython#106905).
        with suppress(SystemError):
            return np.lib.format.open_memmap(path, mode="r")
    return np.lib.format.open_memmap(path, mode="r")


def demand(path: Path, holds: bool, rule: str) -> None:
    """Raise IndexCorruptError about a file unless a rule holds."""
    if not holds:
        raise IndexCorruptError(f"{path}: {rule}")


def mark(path: Path) -> Mark:
    """Read a whole file, and return its size and checksum."""
    size, total = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, total = size + len(chunk), zlib.crc32(chunk, total)
    return Mark(size, total)
