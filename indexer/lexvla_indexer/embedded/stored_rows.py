"""Stored rows, read here and there: from their places in the files, not through a map of them.

A search rescores about twenty rows of a segment. Linux maps much more of a file than is touched:
up to two megabytes at a time if its page cache keeps files in large pieces. After a hundred
searches a map of the rows would be almost entirely resident. So few rows of a large file are
read; many, and those of small files, come from the map, which is faster.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lexvla.errors import IndexCorruptError
from lexvla_indexer.durable import naming
from lexvla_indexer.embedded.arrays import open_array
from lexvla_indexer.embedded.postings import kernels, read_only

__all__ = ["Rows", "StoredArray", "StoredRows", "entry_type"]

READ_FROM = 1 << 26  # bytes of a file: the map of a smaller one costs no more than that
FEW = 128  # spans: reading one takes 0.6 microseconds, several times what scoring it does


def entry_type(width: int) -> np.dtype:
    """Return the type of an entry of a row: a column below ``width``, and the weight there.

    A row is then in one place of one file: reading two takes nearly twice as long.
    """
    column = np.uint16 if width <= 1 << 16 else np.int32
    return np.dtype([("column", column), ("weight", np.float32)])


class Rows(NamedTuple):
    """Compressed sparse rows as in scipy, without its checks."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray


class StoredArray:
    """Hold an array of a file: mapped whole as ``mapped``, and a large file open for reading too.

    The file is closed with the object. Reads name their places, so threads may share it. A file
    that is missing, truncated, or not of this kind and shape raises IndexCorruptError.
    """

    def __init__(self, path: Path, kind: DTypeLike, shape: tuple[int, ...]) -> None:
        self.mapped = open_array(path, kind, shape)
        self._path = path
        self._file, self._offset = -1, 0
        if self.mapped.nbytes < READ_FROM:
            return
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise IndexCorruptError(f"{path}: missing or unreadable ({error})") from error
        self._close = weakref.finalize(self, os.close, self._file)
        self._offset = os.fstat(self._file).st_size - self.mapped.nbytes

    @property
    def file(self) -> tuple[int, int]:
        """The number of the open file, and where the array starts in it."""
        return self._file, self._offset

    def reads(self, spans: int) -> bool:
        """Return whether so many spans are read rather than taken from the map."""
        return self._file >= 0 and spans <= FEW

    def take(self, firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return spans of the flat array, one after the other; starts and lengths are int64.

        A span outside the array, or a file that has become shorter, raises IndexCorruptError.
        """
        flat = self.mapped.reshape(-1)
        if not ((firsts >= 0) & (lengths >= 0) & (firsts <= len(flat) - lengths)).all():
            raise self._damage()
        total = int(lengths.sum())
        if not self.reads(len(firsts)):
            ends = np.cumsum(lengths)
            return flat[np.arange(total) + np.repeat(firsts - ends + lengths, lengths)]
        taken = np.empty(total, flat.dtype)
        room = taken.view(np.uint8)
        places, sizes = firsts * taken.itemsize + self._offset, lengths * taken.itemsize
        loops = kernels(0)
        if loops is None or not loops.read_spans(self._file, places, sizes, room):
            self._read(places, sizes, room.data)  # raises what stopped the compiled loop
        return taken

    def _read(self, firsts: np.ndarray, sizes: np.ndarray, room: memoryview) -> None:
        place = 0
        with naming(self._path):
            for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True):
                end, shift = place + size, first - place
                while place < end:
                    part = os.pread(self._file, end - place, place + shift)
                    if not part:
                        raise self._damage()
                    room[place : place + len(part)] = part
                    place += len(part)

    def _damage(self) -> IndexCorruptError:
        return IndexCorruptError(f"{self._path}: a stored row is damaged")


class StoredRows:
    """Hold the rows of a sparse leg.

    ``starts``, (rows + 1) int64, says where each of them starts among the entries. ``mapped`` has
    all rows, with float32 weights.
    """

    def __init__(self, starts: np.ndarray, entries: StoredArray, width: int) -> None:
        self.shape = len(starts) - 1, width
        self.entries = entries
        self.mapped = _rows(starts, entries.mapped)

    def reads(self, rows: int) -> bool:
        """Tell whether so many rows are read, and not taken from the map."""
        return self.entries.reads(rows)

    @property
    def few(self) -> int:
        """The largest number of rows that is read rather than taken from the map; -1 for none."""
        return FEW if self.reads(0) else -1

    def near(self, rows: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Return rows to score, and which of them are meant: all that were read, or some mapped."""
        if not self.reads(len(rows)):
            return self.mapped, rows
        return self.take(rows)[0], np.arange(len(rows))

    @property
    def nnz(self) -> int:
        """How many entries the rows have."""
        return len(self.entries.mapped)

    def score(
        self, loops: ModuleType, rows: np.ndarray, query: np.ndarray, scores: np.ndarray
    ) -> bool:
        """Write the dot products of rows with a dense query, and return whether all are sound."""
        arrays = map(read_only, (self.mapped.indptr, self.entries.mapped, rows, query))
        if not self.reads(len(rows)):
            return bool(loops.row_scores(*arrays, scores))
        if loops.row_scores_by_reading(*arrays, self.entries.file, scores):
            return True
        self.take(rows)  # raises if the file is the cause
        return False

    def take(self, rows: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Return rows in the given order, and where each starts among the stored entries.

        Columns and weights are not checked.
        """
        starts = self.mapped.indptr
        firsts = starts[rows]
        lengths = starts[rows + 1] - firsts
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        return _rows(ends, self.entries.take(firsts, lengths)), firsts


def _rows(starts: np.ndarray, entries: np.ndarray) -> Rows:
    return Rows(starts, entries["column"], entries["weight"])
