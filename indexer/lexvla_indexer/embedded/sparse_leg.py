"""One sparse leg of a segment: its rows as floats, and its postings as small integers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from lexvla_indexer.embedded.arrays import Mark, demand, open_array, save_array, writing_array
from lexvla_indexer.embedded.batches import Batch, Row, exact_top_batch
from lexvla_indexer.embedded.postings import Postings, write_postings
from lexvla_indexer.embedded.rescoring import (
    exact_top,
    integer_scores,
    integer_top,
    row_scores,
)
from lexvla_indexer.embedded.stored_rows import StoredArray, StoredRows, entry_type
from lexvla_indexer.impacts import ImpactQuantizer

__all__ = ["SparseLeg", "write_leg"]

_PART = 1 << 16  # entries that are made at a time: they stay in the cache


def write_leg(
    folder: Path, leg: str, rows: sparse.csr_array
) -> tuple[dict[str, Mark], ImpactQuantizer]:
    """Write rows and their postings. Return the marks of the files, not yet synced to the disk.

    Rows are float32 above 0, with sorted column numbers.
    """
    quantizer = ImpactQuantizer.fit(rows)
    with ThreadPoolExecutor(1) as pool:
        stored = pool.submit(_write_rows, folder, leg, rows)
        files = write_postings(folder, rows, leg, quantizer.impacts)
        return files | stored.result(), quantizer


def _write_rows(folder: Path, leg: str, rows: sparse.csr_array) -> dict[str, Mark]:
    start, entry = (folder / f"{leg}.row.{name}.npy" for name in ("start", "entry"))
    with writing_array(entry, entry_type(rows.shape[1]), (rows.nnz,)) as file:
        for part in _entries(rows):
            file.append(part)
    return {start.name: save_array(start, rows.indptr, np.int64), entry.name: file.mark}


def _entries(rows: sparse.csr_array) -> Iterator[np.ndarray]:
    """Yield the entries of rows, some at a time: all at once would take a lot of memory."""
    for first in range(0, rows.nnz, _PART):
        part = slice(first, min(first + _PART, rows.nnz))
        entries = np.empty(part.stop - part.start, entry_type(rows.shape[1]))
        entries["column"], entries["weight"] = rows.indices[part], rows.data[part]
        yield entries


class SparseLeg:
    """Search one sparse leg and read its rows.

    ``quantizer`` has the settings of the quantiser of the postings. Damaged files raise
    IndexCorruptError.
    """

    def __init__(
        self, folder: Path, leg: str, rows: int, width: int, quantizer: dict[str, Any]
    ) -> None:
        self._file = folder / f"{leg}.row"
        start = folder / f"{leg}.row.start.npy"
        starts = open_array(start, np.int64, (rows + 1,))
        rising = bool(starts[0] == 0 and (starts[1:] >= starts[:-1]).all())
        demand(start, rising, "must rise from 0")
        self.stored = int(starts[-1])
        entry = folder / f"{leg}.row.entry.npy"
        entries = StoredArray(entry, entry_type(width), (self.stored,))
        self.rows = StoredRows(starts, entries, width)
        self.quantizer = ImpactQuantizer.from_dict(quantizer)
        self.postings = Postings.open(folder, leg)
        fits = (self.postings.rows, self.postings.width) == (rows, width)
        demand(folder / f"{leg}.posting.block.npy", fits, f"must name {rows} rows of {width} terms")

    @property
    def lengths(self) -> np.ndarray:
        """How many entries each row has."""
        return np.diff(self.rows.mapped.indptr)

    def top(
        self,
        query: sparse.csr_array | Row,
        k: int,
        allowed: np.ndarray | None,
        exact: bool,
        threads: int = 1,
        floor: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and numbers of the k best rows above 0, by the floats or by integers alone.

        The arguments are those of `exact_top`.
        """
        if not exact:
            return integer_top(query, self.quantizer, self.postings, k, allowed, threads)
        own = self.rows, self.quantizer, self.postings
        return exact_top(query, *own, k, allowed, threads, floor)

    def top_batch(
        self,
        batch: Batch,
        numbers: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
        exact: bool,
        floors: np.ndarray,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return what `top` does for the queries of these numbers; there is a floor for each."""
        own = self.rows, self.quantizer, self.postings
        found = exact_top_batch(batch, numbers, *own, k, allowed, floors) if exact else None
        if found is not None:
            return found
        return [
            self.top(batch.row(number), k, allowed, exact, 1, floor)
            for number, floor in zip(numbers.tolist(), floors.tolist(), strict=True)
        ]

    def near_scores(
        self, query: sparse.csr_array, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, float]:
        """Return (rows) float64 scores that are near the exact ones, and how far one can be off."""
        return integer_scores(query, self.quantizer, self.postings, allowed)

    def scores(self, rows: np.ndarray, query: sparse.csr_array) -> np.ndarray:
        """Return the exact scores of some rows, as `top` gives them."""
        return row_scores(self.rows, rows, query)

    def frequency(self, term: int) -> int:
        """Return how many rows have a term."""
        return self.postings.frequency(term)

    def rows_of(self, term: int) -> np.ndarray:
        """Return the rows that have a term, ascending; damaged ones raise IndexCorruptError."""
        found = self.postings.rows_of(term)
        rising = bool((found[1:] > found[:-1]).all())
        inside = not len(found) or int(found[-1]) < self.postings.rows
        name = self._file.with_suffix(".posting.row.npy")
        demand(name, rising and inside, f"must hold rows below {self.postings.rows}, ascending")
        return found

    def take(self, rows: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
        """Return rows, and where each of them starts among the stored entries.

        Columns and weights are checked (IndexCorruptError).
        """
        (ends, columns, weights), firsts = self.rows.take(rows)
        width = self.rows.shape[1]
        # scipy trusts columns, and writes outside its arrays if they are wrong.
        inside = not len(columns) or 0 <= int(columns.min()) <= int(columns.max()) < width
        demand(Path(f"{self._file}.entry.npy"), inside, f"must hold columns below {width}")
        above = not len(weights) or 0 < float(weights.min()) <= float(weights.max()) < np.inf
        demand(Path(f"{self._file}.entry.npy"), above, "must hold finite numbers above 0")
        entries = np.ascontiguousarray(weights), columns.astype(np.int32), ends
        return sparse.csr_array(entries, shape=(len(rows), width)), firsts
