"""The ``.npy`` files of a segment: write them, map them into memory, checksum them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np

from lexvla.errors import IndexCorruptError
from lexvla_indexer.durable import writing

__all__ = ["Mark", "demand", "mark", "open_array", "save_array", "save_parts"]

_CHUNK = 1 << 24  # bytes that are read at a time
_TRIES = 5  # of reading a header


class Mark(NamedTuple):
    """Size and checksum of a whole file."""

    size: int
    crc32: int


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a ``.npy`` file; an `OSError` names the file."""
    array = np.ascontiguousarray(array)
    save_parts(path, array.dtype, array.shape, [array])


def save_parts(
    path: Path, kind: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    """Write the parts of an array to a ``.npy`` file, one after the other.

    An `OSError` names the file. `numpy.save` writes through a buffer of its own and does not check
    that its last bytes reached the disk: on a full disk a small array is cut short, and nothing is
    raised.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(kind),
        "fortran_order": False,
        "shape": shape,
    }
    with writing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.reshape(-1).view(np.uint8).data)


def open_array(
    path: Path, kind: type[np.generic] | np.dtype, shape: tuple[int, ...] | None = None
) -> np.ndarray:
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
