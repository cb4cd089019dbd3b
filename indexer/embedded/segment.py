"""A segment: the vectors of one commit, as plain arrays that never change.

A segment of n rows is a directory of ``.npy`` files, readable with numpy alone. Rows stand in
the order of their ids, so that rows of equal score are in order too.

    ids.text             uint8    the ids as UTF-8, one after the other
    ids.start            int64    (n + 1) where each id starts in it
    LEG.row.start        int64    (n + 1) the rows, for explanations: compressed sparse rows
    LEG.row.column       int32
    LEG.row.weight       float32
    LEG.column.start     int64    (width + 1) the postings, for searches: compressed sparse columns
    LEG.column.row       int32
    LEG.column.weight    float32
    patch                int16    aligned with lexical.row.weight; -1 where a word has none;
                                  no such file where no word has one
    dense                float32  (n, width)

LEG is ``lexical`` or ``codes``; an index without codes or dense vectors has no such files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError

if TYPE_CHECKING:
    from indexer.base import Leg

__all__ = ["Segment", "fsync", "write_segment"]


def fsync(path: Path) -> None:
    """Force a file, or the entries of a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_segment(folder: Path, ids: Sequence[str], encoding: Encoding) -> None:
    """Write a segment into a new directory, and force it to the disk.

    Args:
        folder: The directory to make.
        ids: The id of each row, ascending.
        encoding: The rows.
    """
    names = [name.encode() for name in ids]
    arrays: dict[str, np.ndarray] = {
        "ids.text": np.frombuffer(b"".join(names), np.uint8),
        "ids.start": np.cumsum([0, *map(len, names)], dtype=np.int64),
        **_sparse_arrays("lexical", encoding.lexical),
    }
    if encoding.patches is not None and (encoding.patches >= 0).any():
        arrays["patch"] = encoding.patches
    if encoding.codes is not None:
        arrays |= _sparse_arrays("codes", encoding.codes)
    if encoding.dense is not None:
        arrays["dense"] = encoding.dense
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        fsync(folder / f"{name}.npy")
    fsync(folder)


def _sparse_arrays(leg: str, rows: sparse.csr_array) -> dict[str, np.ndarray]:
    columns = rows.tocsc()
    return {
        f"{leg}.row.start": rows.indptr.astype(np.int64),
        f"{leg}.row.column": rows.indices.astype(np.int32),
        f"{leg}.row.weight": rows.data,
        f"{leg}.column.start": columns.indptr.astype(np.int64),
        f"{leg}.column.row": columns.indices.astype(np.int32),
        f"{leg}.column.weight": columns.data,
    }


class Segment:
    """Search one segment and read its rows.

    Scores are float64: products of the stored float32 values, which float64 holds exactly, added
    in column order. A row's score so depends on nothing but the row and the query.

    Args:
        folder: The directory of the segment.
        rows: How many rows it has.
        widths: The number of columns of each leg of the index.

    Raises:
        IndexCorruptError: A file is missing, truncated, or not of the form that it must have.
    """

    def __init__(self, folder: Path, rows: int, widths: Mapping[str, int]) -> None:
        self.rows = rows
        self._id_start = _open(folder / "ids.start.npy", np.int64, (rows + 1,))
        self._id_text = _open(folder / "ids.text.npy", np.uint8, (int(self._id_start[-1]),))
        self._sparse = {
            leg: _SparseLeg(folder, leg, rows, widths[leg])
            for leg in ("lexical", "codes")
            if leg in widths
        }
        self._patch: np.ndarray | None = None
        if (folder / "patch.npy").exists():
            self._patch = _open(folder / "patch.npy", np.int16, (self._sparse["lexical"].stored,))
        self._dense: np.ndarray | None = None
        if "dense" in widths:
            self._dense = _open(folder / "dense.npy", np.float32, (rows, widths["dense"]))

    def top(
        self, query: Encoding, k: int, leg: Leg, deleted: np.ndarray
    ) -> list[tuple[float, str]]:
        """Return score and id of the k best rows above 0; of equal ones, the first by id.

        Args:
            query: One row that has the leg.
            k: The most rows to return.
            leg: The leg to score by.
            deleted: The numbers of the rows to leave out.
        """
        if leg == "dense":
            scores = self._dense_scores(query, k, deleted)
        else:
            vector = query.lexical if leg == "lexical" else query.codes
            scores = self._sparse[leg].scores(vector)
            scores[deleted] = 0
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            found = scores[rows]
            worst = np.partition(found, -k)[-k]
            better = rows[found > worst]
            rows = np.concatenate([better, rows[found == worst][: k - len(better)]])
        return list(zip(scores[rows].tolist(), self.ids(rows), strict=True))

    def _dense_scores(self, query: Encoding, k: int, deleted: np.ndarray) -> np.ndarray:
        """Return exact scores of all rows that can be among the k best, and 0 for the rest.

        A float32 matrix-vector product is fast, but its last bits depend on the machine and on
        the number of rows. So it only chooses the rows to score in float64.
        """
        rows, vector = self._dense, query.dense
        if rows is None or vector is None:
            raise ValueError("no dense vectors")
        vector = vector[0]
        rough = rows @ vector
        rough[deleted] = -np.inf
        size = float(np.linalg.norm(vector)) * self._longest_row
        error = rows.shape[1] * float(np.finfo(np.float32).eps) * size
        worst = float(np.partition(rough, -k)[-k]) if len(rough) > k else -np.inf
        near = np.flatnonzero(rough >= max(worst - 2 * error, -error))
        scores = np.zeros(self.rows)
        scores[near] = np.multiply(rows[near], vector, dtype=np.float64).sum(axis=1)
        return scores

    @cached_property
    def _longest_row(self) -> float:
        if self._dense is None or not self.rows:
            return 0.0
        return float(np.sqrt(np.einsum("ij,ij->i", self._dense, self._dense).max()))

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of rows."""
        starts, stops = self._id_start[rows].tolist(), self._id_start[rows + 1].tolist()
        spans = zip(starts, stops, strict=True)
        return [self._id_text[start:stop].tobytes().decode() for start, stop in spans]

    def encoding(self, rows: np.ndarray) -> Encoding:
        """Return the stored vectors of rows, in the order given."""
        lexical, places = self._sparse["lexical"].take(rows)
        return Encoding(
            lexical,
            None if self._patch is None else self._patch[places],
            self._sparse["codes"].take(rows)[0] if "codes" in self._sparse else None,
            None if self._dense is None else self._dense[rows],
        )

    def active_words(self, deleted: np.ndarray) -> int:
        """Return the number of words stored in all rows that are not deleted."""
        lengths = np.diff(self._sparse["lexical"].row_start)
        return int(lengths.sum() - lengths[deleted].sum())


class _SparseLeg:
    """Hold both forms of one sparse leg: rows and postings."""

    def __init__(self, folder: Path, leg: str, rows: int, width: int) -> None:
        self.shape = (rows, width)
        self.row_start = _open(folder / f"{leg}.row.start.npy", np.int64, (rows + 1,))
        self.stored = int(self.row_start[-1])
        stored = (self.stored,)
        self._row_column = _open(folder / f"{leg}.row.column.npy", np.int32, stored)
        self._row_weight = _open(folder / f"{leg}.row.weight.npy", np.float32, stored)
        self._column_start = _open(folder / f"{leg}.column.start.npy", np.int64, (width + 1,))
        self._column_row = _open(folder / f"{leg}.column.row.npy", np.int32, stored)
        self._column_weight = _open(folder / f"{leg}.column.weight.npy", np.float32, stored)

    def scores(self, query: sparse.csr_array) -> np.ndarray:
        total = np.zeros(self.shape[0])
        for column, weight in zip(query.indices.tolist(), query.data.tolist(), strict=True):
            postings = slice(*self._column_start[column : column + 2].tolist())
            products = np.multiply(self._column_weight[postings], weight, dtype=np.float64)
            total[self._column_row[postings]] += products
        return total

    def take(self, rows: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
        """Return rows, and the place of each of their values in the stored arrays."""
        starts = self.row_start[rows]
        lengths = self.row_start[rows + 1] - starts
        ends = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
        parts = (self._row_weight[places], self._row_column[places], ends)
        return sparse.csr_array(parts, shape=(len(rows), self.shape[1])), places


def _open(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise IndexCorruptError(f"{path}: missing, truncated or damaged ({error})") from error
    if array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} of shape {array.shape}"
        rule = f"must be {np.dtype(dtype)} of shape {shape}"
        raise IndexCorruptError(f"{path}: {rule}, not {found}")
    return np.asarray(array)  # a plain view: indexing a memmap object is much slower
