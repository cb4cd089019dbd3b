"""The ``.npy`` files of a segment: mapped into memory, forced to the disk, summed up."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np

from lexvla.errors import IndexCorruptError

__all__ = ["Mark", "demand", "fsync", "mark", "open_array"]

_CHUNK = 1 << 24  # bytes that are read at a time


class Mark(NamedTuple):
    """What a whole file is known by."""

    size: int
    crc32: int


def open_array(
    path: Path, kind: type[np.generic], shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Map an array into memory, read-only.

    Args:
        path: The ``.npy`` file.
        kind: The type that its numbers must have.
        shape: The shape that it must have; ``None`` for one row of any length.

    Raises:
        IndexCorruptError: The file is missing, truncated, or not of that form.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, TokenError) as error:
        raise IndexCorruptError(f"{path}: missing, truncated or damaged ({error})") from error
    # A header of another length moves all values: the file is then longer than they are.
    whole = array.offset + array.nbytes == size
    demand(path, whole, "must end with its last number")
    fits = array.ndim == 1 if shape is None else array.shape == shape
    wanted = f"{np.dtype(kind)} of {'one row' if shape is None else f'shape {shape}'}"
    rule = f"must be {wanted}, not {array.dtype} of shape {array.shape}"
    demand(path, array.dtype == kind and fits, rule)
    return np.asarray(array)  # a plain view: indexing a memmap object is much slower


def demand(path: Path, holds: bool, rule: str) -> None:
    """Refuse a file that breaks a rule.

    Raises:
        IndexCorruptError: The rule does not hold.
    """
    if not holds:
        raise IndexCorruptError(f"{path}: {rule}")


def mark(path: Path) -> Mark:
    """Read a whole file, and return its size and checksum."""
    size, total = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, total = size + len(chunk), zlib.crc32(chunk, total)
    return Mark(size, total)


def fsync(path: Path) -> None:
    """Force a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
