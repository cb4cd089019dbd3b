"""Postings of one leg of a segment, in blocks of 65,536 rows.

A score is summed term by term in one array of a block's rows, which stays in the processor's
cache. Postings never change and lie in eight ``.npy`` files, readable with numpy alone:

    LEG.posting.block    int64    rows, width, then (blocks + 1) where each block's terms start
    LEG.posting.term     int32    the terms that occur in each block, ascending
    LEG.posting.start    int64    (terms + 1) where the impacts of each of them start
    LEG.posting.row      uint16   the row of each posting within its block, but for frequent terms
    LEG.posting.impact   uint8    the impact of each posting; then 64 zeros, so that vectors of
                                  bytes can be read at the end
    LEG.posting.bits     uint64   the rows of frequent terms: see `lexvla_indexer.embedded.bitmaps`
    LEG.posting.begin    uint16
    LEG.posting.peak     uint8

A term that does not occur in a block takes no room, so that a segment of few rows is small.
Compiled loops in ``kernels.py`` read them. Another layout needs another ``FORMAT_VERSION`` in
``manifest.py``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy import sparse

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded.arrays import Mark, demand, open_array, save_array, writing_array
from lexvla_indexer.embedded.bitmaps import (
    BITMAP_FILES,
    BLOCK,
    Bitmaps,
    frequent_terms,
    mark_rows,
    rows_of_bits,
)

__all__ = [
    "BLOCK",
    "LARGEST_SUM",
    "LARGEST_WEIGHT",
    "MOST_TERMS",
    "NO_MASK",
    "THREADS",
    "Postings",
    "aligned",
    "best",
    "build",
    "kernels",
    "read_only",
    "write_postings",
]

COMPILED_FROM = 1 << 23  # postings
WARM_FROM = 1 << 20  # postings: with fewer, compiled loops save a server nothing to speak of
_LOOPS = "lexvla_indexer.embedded.kernels"
LARGEST_SUM = 2**31 - 1
THREADS = os.cpu_count() or 1
LARGEST_WEIGHT = 2**15 - 1  # vector instructions multiply numbers of 16 bits, twice as many at once
MOST_TERMS = 64  # of a query that skips rows: one of more terms can skip few
_SPARE = 64  # zeros after the impacts
_FILES: dict[str, type[np.generic]] = {
    "block": np.int64,
    "term": np.int32,
    "start": np.int64,
    "row": np.uint16,
    "impact": np.uint8,
}
_KINDS = _FILES | {name: kind for name, (kind, _) in BITMAP_FILES.items()}
_THREADED = 1 << 26  # rows times terms: starting a thread takes less time than it saves then
_COLUMNS = 1 << 10  # that a block's scores are laid out in: their maxima tell what to look for
_KEPT = 1 << 25  # postings of a leg's frequent terms whose rows are kept, two bytes each
_FEW = 1024  # rows: sorting them all is faster than selecting some first
NO_MASK = np.empty(0, np.bool_)


def kernels(postings: int = COMPILED_FROM) -> ModuleType | None:
    """Return the compiled loops, or ``None`` if numpy is to answer.

    That is so if numba is missing, and for few postings as long as nothing in this process has
    needed numba: it takes a second to load, longer than many searches of a small index.
    """
    if postings < COMPILED_FROM and _LOOPS not in sys.modules:
        return None
    loops = sys.modules.get(_LOOPS) or importlib.import_module(_LOOPS)
    return loops if loops.COMPILED else None


def build(matrix: sparse.csr_array) -> Postings:
    """Turn rows of impacts, (rows, width) uint8 with sorted column numbers, into postings."""
    if matrix.dtype != np.uint8:
        raise ValueError(f"impacts must be uint8, not {matrix.dtype}")
    plan = _planned(matrix)
    parts = zip(*_parts(matrix, plan, np.asarray), strict=True)
    ids, impacts, *marks = (read_only(np.concatenate(own)) for own in parts)
    bitmaps = Bitmaps(read_only(plan.frequent), read_only(plan.before), *marks)
    rows, width = matrix.shape
    blocks, terms, starts = map(read_only, plan[:3])
    return Postings(rows, width, blocks, terms, starts, ids, impacts, bitmaps)


def write_postings(
    folder: Path,
    matrix: sparse.csr_array,
    leg: str = "lexical",
    impacts_of: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> dict[str, Mark]:
    """Write the postings of rows, block by block. Return the files' marks, not yet synced.

    The rows are those that `build` takes, once ``impacts_of`` has turned weights into impacts.
    """
    plan = _planned(matrix)
    heads = {
        "block": np.concatenate([matrix.shape, plan.blocks]),
        "term": plan.terms,
        "start": plan.starts,
    }
    marks = {name: save_array(_path(folder, leg, name), array) for name, array in heads.items()}
    shapes: dict[str, tuple[int, ...]] = {
        "row": (matrix.nnz - int(plan.before[-1]),),
        "impact": (matrix.nnz + _SPARE,),
    }
    for name, (_, rows_of_one) in BITMAP_FILES.items():
        shapes[name] = len(plan.frequent), BLOCK // rows_of_one
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(writing_array(_path(folder, leg, name), _KINDS[name], shape))
            for name, shape in shapes.items()
        }
        for part in _parts(matrix, plan, impacts_of):
            for file, array in zip(files.values(), part, strict=True):
                file.append(array)
    marks |= {name: file.mark for name, file in files.items()}
    return {_path(folder, leg, name).name: found for name, found in marks.items()}


class _Plan(NamedTuple):
    """Say where the postings of rows go: arrays of `Postings` and of `Bitmaps`."""

    blocks: np.ndarray
    terms: np.ndarray
    starts: np.ndarray
    frequent: np.ndarray
    before: np.ndarray


def _planned(matrix: sparse.csr_array) -> _Plan:
    if not matrix.has_canonical_format:
        raise ValueError("a row must have sorted column numbers, each once")
    rows, width = matrix.shape
    edges = [*range(0, rows, BLOCK), rows]
    counts = np.zeros((len(edges) - 1, width), np.int64)
    loops = kernels(matrix.nnz)
    for block, (first, last) in enumerate(pairwise(matrix.indptr[edges].tolist())):
        columns = read_only(matrix.indices[first:last])
        if loops is not None:
            inside = loops.count(columns, counts[block])
        elif inside := first == last or bool(0 <= columns.min() <= columns.max() < width):
            counts[block] = np.bincount(columns, minlength=width)
        if not inside:
            raise ValueError(f"column numbers must be from 0 to {width - 1}")  # scipy trusts them
    owners, terms = np.nonzero(counts)
    blocks = np.searchsorted(owners, np.arange(len(edges)))
    starts = np.append(0, np.cumsum(counts[owners, terms]))
    return _Plan(blocks, terms.astype(np.int32), starts, *frequent_terms(starts))


def _parts(
    matrix: sparse.csr_array, plan: _Plan, impacts_of: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield each block's rows, impacts, bits, begins and peaks, in order; last what ends the files.

    Compiled loops release the global lock: a thread for each processor fills blocks.
    """
    loops = kernels(matrix.nnz)

    def part(block: int) -> tuple[np.ndarray, ...]:
        places = slice(*plan.blocks[block : block + 2].tolist())
        starts = plan.starts[places.start : places.stop + 1] - plan.starts[places.start]
        rows = matrix.indptr[block * BLOCK : (block + 1) * BLOCK + 1]
        entries = slice(*rows[[0, -1]].tolist())
        impacts = impacts_of(matrix.data[entries])
        arrays = rows, matrix.indices[entries], impacts
        return _filled(arrays, matrix.shape[1], plan.terms[places], starts, loops)

    threads = THREADS if loops is not None else 1
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[tuple[np.ndarray, ...]]] = deque()
        for block in range(len(plan.blocks) - 1):
            if len(running) > threads:  # no more blocks in memory than that
                yield running.popleft().result()
            running.append(pool.submit(part, block))
        while running:
            yield running.popleft().result()
    yield (np.empty(0, np.uint16), np.zeros(_SPARE, np.uint8), *_no_marks(0))


def _filled(
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    width: int,
    terms: np.ndarray,
    starts: np.ndarray,
    loops: ModuleType | None,
) -> tuple[np.ndarray, ...]:
    """Return what `_parts` does of a block, given its compressed sparse rows.

    ``terms`` are those that occur, and ``starts`` says where the impacts of each of them start.
    """
    frequent, before = frequent_terms(starts)
    bitmaps = Bitmaps(frequent, before, *_no_marks(len(frequent)))
    owns, shifts = bitmaps.find(np.arange(len(terms)))
    ids = np.empty(starts[-1] - before[-1], np.uint16)
    impacts = np.empty(starts[-1], np.uint8)
    if loops is not None:
        heads = np.zeros((width, 2), np.int64)
        heads[terms] = np.column_stack([np.where(owns < 0, starts[:-1], -1 - owns), shifts])
        room = ids, impacts, bitmaps.bits, bitmaps.peaks
        loops.fill(*map(read_only, arrays), heads, starts[frequent], *room)
    else:
        indptr, indices, weights = arrays
        rows = sparse.csr_array((weights, indices, indptr - indptr[0]), (len(indptr) - 1, width))
        columns = rows.tocsc()  # keeps the rows of a column in order
        each = zip(terms.tolist(), starts.tolist(), owns.tolist(), shifts.tolist(), strict=False)
        for term, start, own, shift in each:
            span = slice(*columns.indptr[term : term + 2].tolist())
            found, values = columns.indices[span], columns.data[span]
            if own < 0:
                ids[start - shift : start - shift + len(found)] = found
            else:
                values = mark_rows(found, values, bitmaps.bits[own], bitmaps.peaks[own])
            impacts[start : start + len(values)] = values
    np.cumsum(np.bitwise_count(bitmaps.bits[:, :-1]), axis=1, out=bitmaps.begins[:, 1:])
    return ids, impacts, *bitmaps[2:]


def _no_marks(terms: int) -> list[np.ndarray]:
    """Return bits, begins and peaks of so many frequent terms, all zero."""
    kinds = BITMAP_FILES.values()
    return [np.zeros((terms, BLOCK // rows_of_one), kind) for kind, rows_of_one in kinds]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Postings:
    """Hold the postings of one leg, and find the best rows by them.

    Attributes:
        rows: How many rows there are.
        width: How many terms there may be.
        blocks: (blocks + 1) int64: where each block's part of ``terms`` starts.
        terms: int32: the terms that occur in each block, ascending.
        starts: (terms + 1) int64: where the impacts of each of them start.
        ids: uint16: the row of each posting within its block, but for those of frequent terms.
        impacts: uint8, with the zeros at the end.
        bitmaps: The rows of frequent terms.
    """

    rows: int
    width: int
    blocks: np.ndarray
    terms: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    impacts: np.ndarray
    bitmaps: Bitmaps
    _found: dict[int, memoryview] = field(default_factory=dict, init=False, repr=False)

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
        frequent, before = frequent_terms(starts)
        marks = (
            open_array(_path(folder, leg, name), kind, (len(frequent), BLOCK // rows_of_one))
            for name, (kind, rows_of_one) in BITMAP_FILES.items()
        )
        bitmaps = Bitmaps(read_only(frequent), read_only(before), *marks)
        postings = cls(rows, width, blocks, terms, starts, ids, impacts, bitmaps)
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
        listed = int(starts[-1] - self.bitmaps.before[-1])
        yield "row", len(self.ids) == listed, f"must hold {listed} rows"
        here = np.arange(*blocks[-2:]) if count else blocks[:0]
        owns, shifts = self.bitmaps.find(here)
        lasts = self.ids[(starts[here + 1] - shifts - 1)[owns < 0]]
        there = not len(lasts) or int(lasts.max()) < self.rows - (count - 1) * BLOCK
        yield "row", there, f"must hold rows below {self.rows}"
        stored = int(starts[-1]) + _SPARE
        yield "impact", len(self.impacts) == stored, f"must hold {stored} impacts"

    def frequency(self, term: int) -> int:
        """Return how many rows have a term."""
        return sum(len(impacts) for _, _, impacts in self._of_term(term))

    def rows_of(self, term: int) -> np.ndarray:
        """Return the rows that have a term, ascending."""
        parts = [np.sort(rows).astype(np.int64) + base for base, rows, _ in self._of_term(term)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _of_term(self, term: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield each block's first row, and the rows from there on and impacts of a term."""
        for block, base in enumerate(range(0, self.rows, BLOCK)):
            _, _, rows, impacts = self._of_block(block, np.array([term]))
            yield base, rows, impacts

    def _of_block(
        self, block: int, terms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return which of the terms a block has, and their postings, one term after the other.

        These are (terms + 1) where each of them starts and the last one ends, int32, and the rows
        within the block and impacts. Rows that do not fit the impacts raise IndexCorruptError.
        """
        first, last = self.blocks[block : block + 2].tolist()
        places = np.searchsorted(self.terms[first:last], terms) + first
        known = np.flatnonzero(places < last)
        known = known[self.terms[places[known]] == terms[known]]
        places = places[known]
        owns, shifts = self.bitmaps.find(places)
        starts, stops = self.starts[places], self.starts[places + 1]
        impacts = b"".join(_spans(self.impacts, starts, stops))
        spans = _spans(self.ids, starts - shifts, stops - shifts)
        lengths = np.clip(stops - starts, 0, BLOCK)  # the file may have changed
        fits = True
        for i in np.flatnonzero(owns >= 0).tolist():
            spans[i] = self._of_bits(owns[i].item())
            fits &= len(spans[i]) == lengths[i]
        rows = b"".join(spans)
        ends = np.zeros(len(places) + 1, np.int32)
        np.cumsum(lengths, out=ends[1:])
        if not fits or not 2 * len(impacts) == len(rows) == 2 * ends[-1]:
            raise IndexCorruptError("the rows of a term do not fit its impacts")
        return known, ends, np.frombuffer(rows, np.uint16), np.frombuffer(impacts, np.uint8)

    def _of_bits(self, own: int) -> memoryview:
        """Return a frequent term's rows, and keep them: to find them takes longer than to add."""
        rows = self._found.get(own)
        if rows is None:
            rows = rows_of_bits(self.bitmaps.bits[own]).data
            if self.bitmaps.before[own + 1] <= _KEPT:
                self._found[own] = rows
        return rows

    def top(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        allowed: np.ndarray | None = None,
        threads: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and numbers of the k best rows above 0, of equal ones the first.

        Each term comes once, with a whole weight from 0 to `LARGEST_WEIGHT`. Scores are int32.
        ``allowed``, (rows) bool, says which rows may be found.
        """
        scores, rows = self.retrieve(terms, weights, k, 0, allowed, threads)
        return best(scores, rows, k)

    def retrieve(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        margin: int,
        allowed: np.ndarray | None = None,
        threads: int = 1,
        least: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and numbers of all rows near the k-th best, rows ascending.

        Those are the rows above 0 whose score is at most ``margin`` below the k-th best, or all
        above 0 if there are fewer than k. Rows below ``least`` may be left out. Long queries of
        large segments are answered by so many ``threads``. The other arguments are those of `top`.
        """
        terms, weights = self._check_query(np.asarray(terms), np.asarray(weights))
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if allowed is not None and (allowed.shape != (self.rows,) or allowed.dtype != np.bool_):
            raise ValueError(f"the mask must be {self.rows} booleans")
        loops = kernels(len(self.impacts))
        if loops is None or not self.rows:
            return self._retrieve_by_numpy(terms, weights, k, margin, allowed)
        mask = NO_MASK if allowed is None else np.ascontiguousarray(allowed)
        skips = len(terms) <= MOST_TERMS and margin < LARGEST_SUM and len(self.bitmaps.frequent) > 0
        start = min(least + margin, LARGEST_SUM) if least else 0

        def search(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
            """Search some blocks."""
            part = slice(first * BLOCK, min(last * BLOCK, self.rows))
            heap = np.full(min(k, self.rows), start, np.int32)
            # A whole block even for few rows: no damaged file makes the loop write outside.
            sums = aligned(BLOCK)
            lists = (self.blocks[first : last + 1], self.terms, self.starts, self.ids, self.impacts)
            query = read_only(terms), read_only(weights), self.width, margin
            rows, scores = loops.retrieve(
                part.stop - part.start, lists, tuple(self.bitmaps), *query, read_only(mask[part]),
                heap, sums, skips,
            )  # fmt: skip
            return scores, rows + part.start

        blocks = len(self.blocks) - 1
        if threads < 2 or blocks < 2 or skips or self.rows * len(terms) < _THREADED:
            scores, rows = search(0, blocks)
        else:
            edges = [blocks * part // threads for part in range(threads + 1)]
            with ThreadPoolExecutor(threads - 1) as pool:
                later = [pool.submit(search, *own) for own in pairwise(edges[1:])]
                parts = [search(*edges[:2]), *(each.result() for each in later)]
            scores, rows = (np.concatenate(own) for own in zip(*parts, strict=True))
            if len(scores) > k:
                kept = scores >= np.partition(scores, -k)[-k].item() - margin
                scores, rows = scores[kept], rows[kept]
        if skips:
            order = np.argsort(rows)
            scores, rows = scores[order], rows[order]
        return scores, rows

    def _retrieve_by_numpy(
        self,
        terms: np.ndarray,
        weights: np.ndarray,
        k: int,
        margin: int,
        allowed: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        floor, found = 1, [(np.empty(0, np.int32), np.empty(0, np.int64))]
        for block, base in enumerate(range(0, self.rows, BLOCK)):
            count = min(self.rows - base, BLOCK)
            known, starts, rows, impacts = self._of_block(block, terms)
            if count < BLOCK and rows.max(initial=0) >= count:
                raise IndexCorruptError(f"a term has rows above {count - 1} of the last block")
            entries = impacts, rows.astype(np.int32), starts
            shape = -(-count // _COLUMNS) * _COLUMNS, len(known)
            # scipy adds products several times as fast as numpy does, and trusts these numbers.
            sums: np.ndarray = sparse.csc_array(entries, shape=shape) @ weights[known]
            if allowed is not None:
                sums[:count] *= allowed[base : base + BLOCK]
            if k <= _COLUMNS:  # so many rows have at least the k-th greatest of these
                highest = np.sort(sums.reshape(-1, _COLUMNS).max(axis=0))
                floor = max(floor, highest[-k].item() - margin)
            near = np.flatnonzero(sums >= floor)
            found.append((sums[near], near + base))
        scores, rows = (np.concatenate(each) for each in zip(*found, strict=True))
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
        if (
            weights.dtype.kind not in "iu"
            or not 0 <= weights.min() <= weights.max() <= LARGEST_WEIGHT
        ):
            raise ValueError(f"query weights must be whole numbers from 0 to {LARGEST_WEIGHT}")
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


def aligned(numbers: int) -> np.ndarray:
    """Return room for int32 numbers that vectors of 64 bytes can be read from at once."""
    room = np.empty(numbers + 16, np.int32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + numbers]


def _spans(array: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[memoryview]:
    """Return parts of an array: Python joins many short ones faster than numpy does."""
    data = array.data
    return [data[i:j] for i, j in zip(starts.tolist(), stops.tolist(), strict=True)]


def _path(folder: Path, leg: str, name: str) -> Path:
    return folder / f"{leg}.posting.{name}.npy"
