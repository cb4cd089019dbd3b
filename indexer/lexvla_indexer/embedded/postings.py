"""Postings of one leg of a segment, in blocks of 65,536 rows: three bytes a posting.

A score is summed term by term in one array of a block's rows, which stays in the processor's
cache. Postings never change and lie in seven ``.npy`` files, readable with numpy alone:

    LEG.posting.block    int64    rows, width, then (blocks + 1) where each block's terms start
    LEG.posting.term     int32    the terms that occur in each block, ascending
    LEG.posting.start    int64    (terms + 1) where the postings of each of them start
    LEG.posting.row      uint16   the row of each posting within its block
    LEG.posting.impact   uint8    its impact
    LEG.posting.peak     uint8    what searches skip by: see `lexvla_indexer.embedded.skipping`
    LEG.posting.begin    uint16

A term that does not occur in a block takes no room, so that a segment of few rows is small.
Compiled loops in ``kernels.py`` read them. Another layout needs another ``FORMAT_VERSION`` in
``manifest.py``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy import sparse

from lexvla_indexer.embedded.arrays import demand, open_array, save_array
from lexvla_indexer.embedded.skipping import (
    GROUP,
    MOST_TERMS,
    PIECE,
    Peaks,
    find_peaks,
    frequent_terms,
)

__all__ = ["BLOCK", "Postings", "best", "build", "kernels", "read_only"]

COMPILED_FROM = 1 << 23  # postings
_LOOPS = "lexvla_indexer.embedded.kernels"
BLOCK = 1 << 16  # rows of a block: as many as a uint16 can number
LARGEST_SUM = 2**31 - 1
_FILES: dict[str, type[np.generic]] = {
    "block": np.int64,
    "term": np.int32,
    "start": np.int64,
    "row": np.uint16,
    "impact": np.uint8,
}
_PEAKS: dict[str, type[np.generic]] = {"peak": np.uint8, "begin": np.uint16}
_FEW = 1024  # rows: sorting them all is faster than selecting some first
_NO_MASK = np.empty(0, np.bool_)


def kernels(postings: int = COMPILED_FROM) -> ModuleType | None:
    """Return the compiled loops, or ``None`` if numpy is to answer.

    That is so if numba is missing, and for few postings as long as nothing in this process has
    needed numba: it takes a second to load, longer than many searches of a small index.
    """
    if postings < COMPILED_FROM and _LOOPS not in sys.modules:
        return None
    loops = importlib.import_module(_LOOPS)
    return loops if loops.COMPILED else None


def build(matrix: sparse.csr_array) -> Postings:
    """Turn rows of impacts, (rows, width) uint8 with sorted column numbers, into postings.

    On one core, the compiled loop takes over 300,000 rows of 125 words a second.
    """
    if matrix.dtype != np.uint8:
        raise ValueError(f"impacts must be uint8, not {matrix.dtype}")
    if not matrix.has_canonical_format:
        raise ValueError("a row must have sorted column numbers, each once")
    rows, width = matrix.shape
    if matrix.nnz and not 0 <= matrix.indices.min() <= matrix.indices.max() < width:
        raise ValueError(f"column numbers must be from 0 to {width - 1}")  # scipy trusts them
    ids, impacts = np.empty(matrix.nnz, np.uint16), np.empty(matrix.nnz, np.uint8)
    blocks, terms, starts = [0], [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
    loops = kernels(matrix.nnz)
    arrays = [read_only(each) for each in (matrix.indptr, matrix.indices, matrix.data)]
    for first in range(0, rows, BLOCK):
        last = min(first + BLOCK, rows)
        span = slice(*matrix.indptr[[first, last]].tolist())
        counts = np.bincount(matrix.indices[span], minlength=width)
        occurring = np.flatnonzero(counts)
        ends = span.start + np.cumsum(counts)
        if loops is not None:
            loops.fill(*arrays, first, last, ends - counts, ids, impacts)
        else:
            block = matrix[first:last].tocsc()  # keeps the rows of a column in order
            ids[span], impacts[span] = block.indices, block.data
        terms.append(occurring.astype(np.int32))
        starts.append(ends[occurring])
        blocks.append(blocks[-1] + len(occurring))
    made = (np.array(blocks), np.concatenate(terms), np.concatenate(starts), ids, impacts)
    block, term, start, ids, impacts = map(read_only, made)
    peaks = Peaks(*map(read_only, find_peaks(start, ids, impacts, BLOCK)))
    return Postings(rows, width, block, term, start, ids, impacts, peaks)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Postings:
    """Hold the postings of one leg, and find the best rows by them.

    Attributes:
        rows: How many rows there are.
        width: How many terms there may be.
        blocks: (blocks + 1) int64: where each block's part of ``terms`` starts.
        terms: int32: the terms that occur in each block, ascending.
        starts: (terms + 1) int64: where the postings of each of them start.
        ids: uint16: the row of each posting within its block.
        impacts: uint8.
        peaks: What short queries skip by.
    """

    rows: int
    width: int
    blocks: np.ndarray
    terms: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    impacts: np.ndarray
    peaks: Peaks

    def save(self, folder: Path, leg: str = "lexical") -> list[Path]:
        """Write the files of a leg into a folder. Return them, not yet synced to the disk."""
        head = np.concatenate([[self.rows, self.width], self.blocks])
        arrays = (head, self.terms, self.starts, self.ids, self.impacts, *self.peaks[1:])
        paths = [_path(folder, leg, name) for name in (*_FILES, *_PEAKS)]
        for path, array in zip(paths, arrays, strict=True):
            save_array(path, array)
        return paths

    @classmethod
    def open(cls, folder: Path, leg: str = "lexical") -> Postings:
        """Map the files of a leg into memory; damaged ones raise IndexCorruptError."""
        head, terms, starts, ids, impacts = (
            open_array(_path(folder, leg, name), kind) for name, kind in _FILES.items()
        )
        path = _path(folder, leg, "block")
        demand(path, len(head) >= 3 and bool((head >= 0).all()), "must name rows and terms")
        rows, width = head[:2].tolist()
        # A copy: the blocks stay as they are checked here, so that the loops read inside the arrays
        # even if a file changes later.
        blocks = read_only(head[2:].copy())
        frequent = read_only(frequent_terms(starts))
        peaks, begins = (
            open_array(_path(folder, leg, name), kind, (len(frequent), BLOCK // rows_of_one))
            for (name, kind), rows_of_one in zip(_PEAKS.items(), (GROUP, PIECE), strict=True)
        )
        skipped_by = Peaks(frequent, peaks, begins)
        postings = cls(rows, width, blocks, terms, starts, ids, impacts, skipped_by)
        for name, holds, rule in postings._rules():
            demand(_path(folder, leg, name), holds, rule)
        return postings

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Yield each rule: the file that it is about, whether it holds, and its wording.

        Impacts are not read, and of rows only the last of each term, where one can be too great.
        """
        blocks, terms, starts = self.blocks, self.terms, self.starts
        count = -(-self.rows // BLOCK)
        rising = bool(blocks[0] == 0 and (np.diff(blocks) >= 0).all())
        yield "block", rising and len(blocks) == count + 1, f"must name the terms of {count} blocks"
        yield "term", len(terms) == blocks[-1], f"must hold {blocks[-1]} terms"
        inside = not len(terms) or 0 <= int(terms.min()) <= int(terms.max()) < self.width
        yield "term", inside, f"must hold terms below {self.width}"
        falls = np.flatnonzero(np.diff(terms) <= 0) + 1  # only where a block starts
        yield "term", bool(np.isin(falls, blocks).all()), "must hold ascending terms"
        yield "start", len(starts) == len(terms) + 1, f"must hold {len(terms) + 1} numbers"
        lengths = np.diff(starts)
        rising = bool(starts[0] == 0 and (lengths > 0).all() and (lengths <= BLOCK).all())
        yield "start", rising, "must rise from 0"
        yield "row", len(self.ids) == starts[-1], f"must hold {starts[-1]} rows"
        lasts = self.ids[starts[1:][blocks[-2] :] - 1] if count else self.ids[:0]
        there = not len(lasts) or int(lasts.max()) < self.rows - (count - 1) * BLOCK
        yield "row", there, f"must hold rows below {self.rows}"
        yield "impact", len(self.impacts) == starts[-1], f"must hold {starts[-1]} impacts"

    def rows_of(self, term: int) -> np.ndarray:
        """Return the rows that have a term, ascending."""
        found = [np.empty(0, np.int64)]
        for block, base in enumerate(range(0, self.rows, BLOCK)):
            first, last = self.blocks[block : block + 2].tolist()
            place = first + int(np.searchsorted(self.terms[first:last], term))
            if place < last and self.terms[place] == term:
                span = slice(*self.starts[place : place + 2].tolist())
                found.append(self.ids[span].astype(np.int64) + base)
        return np.concatenate(found)

    def top(
        self, terms: np.ndarray, weights: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and numbers of the k best rows above 0, of equal ones the first.

        Each term comes once, with a weight not below 0. Integers give exact int32 scores, floats
        give float64 scores, added in the order of the terms. ``allowed``, (rows) bool, says which
        rows may be found.
        """
        scores, rows = self.retrieve(terms, weights, k, 0, allowed)
        return best(scores, rows, k)

    def retrieve(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        margin: int,
        allowed: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and numbers of all rows near the k-th best, rows ascending.

        Those are the rows above 0 whose score is at most ``margin`` below the k-th best, or all
        above 0 if there are fewer than k. The other arguments are those of `top`.
        """
        terms, weights = self._check_query(np.asarray(terms), np.asarray(weights))
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if allowed is not None and (allowed.shape != (self.rows,) or allowed.dtype != np.bool_):
            raise ValueError(f"the mask must be {self.rows} booleans")
        loops = kernels(len(self.ids))
        if loops is None or not self.rows:
            return self._retrieve_by_numpy(terms, weights, k, margin, allowed)
        mask = _NO_MASK if allowed is None else np.ascontiguousarray(allowed)
        heap = np.zeros(min(k, self.rows), weights.dtype)
        # A whole block even for a small segment: no damaged file makes the loop write outside.
        sums = np.empty(BLOCK, weights.dtype)
        arrays = (self.blocks, self.terms, self.starts, self.ids, self.impacts)
        query = map(read_only, (terms, weights))
        rest = (*query, weights.dtype.type(0) + margin, read_only(mask), heap, sums)
        if self._may_skip(weights, margin):
            rows, scores = loops.retrieve_skipping(self.rows, *arrays, *self.peaks, *rest)
        else:
            rows, scores = loops.retrieve(self.rows, *arrays, *rest)
        return scores, rows

    def _may_skip(self, weights: np.ndarray, margin: int) -> bool:
        """Return whether a search may gain by skipping: float scores need an order of adding."""
        has_peaks = len(self.peaks.frequent) > 0 and weights.dtype == np.int32
        return has_peaks and len(weights) <= MOST_TERMS and margin < LARGEST_SUM

    def _retrieve_by_numpy(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        margin: int,
        allowed: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = np.empty(0, weights.dtype), np.empty(0, np.int64)
        for block, base in enumerate(range(0, self.rows, BLOCK)):
            sums = np.zeros(BLOCK, weights.dtype)
            first, last = self.blocks[block : block + 2].tolist()
            places = first + np.searchsorted(self.terms[first:last], terms)
            for term, weight, place in zip(terms, weights, places, strict=True):
                if place < last and self.terms[place] == term:
                    span = slice(*self.starts[place : place + 2].tolist())
                    products = np.multiply(self.impacts[span], weight, dtype=weights.dtype)
                    sums[self.ids[span]] += products
            sums = sums[: self.rows - base]
            if allowed is not None:
                sums[~allowed[base : base + BLOCK]] = 0
            near = np.flatnonzero(sums)
            scores = np.concatenate([scores, sums[near]])
            rows = np.concatenate([rows, near + base])
            if len(scores) > k:
                kept = scores >= np.partition(scores, -k)[-k].item() - margin
                scores, rows = scores[kept], rows[kept]
        return scores, rows

    def _check_query(self, terms: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if terms.ndim != 1 or terms.shape != weights.shape:
            raise ValueError(f"{terms.shape} terms with {weights.shape} weights")
        if not len(terms):
            return terms.astype(np.int32), weights.astype(np.int32)
        if terms.dtype.kind not in "iu" or terms.min() < 0 or terms.max() >= self.width:
            raise ValueError(f"terms must be whole numbers from 0 to {self.width - 1}")
        # This refuses NaN too: the minimum is NaN if any weight is.
        if weights.dtype.kind not in "iuf" or not 0 <= weights.min() <= weights.max() < np.inf:
            raise ValueError("query weights must be finite numbers not below 0")
        if weights.dtype.kind == "f":
            return terms.astype(np.int32), weights.astype(np.float64)
        if sum(weights.tolist()) * 255 > LARGEST_SUM:
            raise ValueError(f"query weights must add up to at most {LARGEST_SUM // 255}")
        return terms.astype(np.int32, copy=False), weights.astype(np.int32, copy=False)


def best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of rows given in ascending order: best first, of equals the first."""
    if len(rows) > max(k, _FEW):
        worst = np.partition(scores, -k)[-k]
        kept = scores > worst
        kept[np.flatnonzero(scores == worst)[: k - int(kept.sum())]] = True
        scores, rows = scores[kept], rows[kept]
    order = np.argsort(-scores, kind="stable")[:k]
    return scores[order], rows[order]


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, like that of a mapped file: loops compile for one kind of array."""
    view = array.view()
    view.flags.writeable = False
    return view


def _path(folder: Path, leg: str, name: str) -> Path:
    return folder / f"{leg}.posting.{name}.npy"
