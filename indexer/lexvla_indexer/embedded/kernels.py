"""The inner loops of postings, compiled by numba.

numba is slow to load, so this module is imported only when a search or a build needs it. The
loops release Python's global lock, so that threads search in parallel. Hot loops run over slices
that start at 0: otherwise the compiled code would check every index for being negative. Without
numba they are plain Python, too slow to use: see `COMPILED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

__all__ = ["COMPILED", "fill", "read_spans", "retrieve", "row_scores"]


def _import_numba() -> Any:
    try:
        import numba
    except ImportError:
        return None
    return numba


_numba = _import_numba()
COMPILED = _numba is not None
if _numba is not None:
    _pread = _numba.types.ExternalFunction(
        "pread",
        _numba.types.intp(
            _numba.types.intc, _numba.types.uintp, _numba.types.uintp, _numba.types.int64
        ),
    )
_STRIPE = 256  # rows whose greatest score is kept, so that few rows are looked at one by one

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def _compile(loop: _Loop) -> _Loop:
    if _numba is None:
        return loop
    try:
        return _numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # nowhere to cache the compiled code
        return _numba.njit(nogil=True)(loop)


@_compile
def fill(
    row_starts: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    first: int,
    last: int,
    places: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
) -> None:
    """Write the postings of rows ``first`` to ``last`` - 1, one block.

    The rows are compressed sparse rows. ``places`` says where each term's postings of this block
    start, and is used up. ``ids`` takes the rows' numbers within the block, ``impacts`` the values.
    """
    for row in range(first, last):
        for entry in range(row_starts[row], row_starts[row + 1]):
            term = columns[entry]
            place = places[term]
            ids[place] = row - first
            impacts[place] = weights[entry]
            places[term] = place + 1


@_compile
def retrieve(
    rows: int,
    blocks: np.ndarray,
    terms: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    margin: float,
    allowed: np.ndarray,
    best: np.ndarray,
    sums: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows above 0 whose score is at most ``margin`` below the k-th best, and scores.

    The first five arrays are those of `lexvla_indexer.embedded.postings.Postings`. ``wanted`` are
    the query's terms; ``allowed`` says which rows may be found, and is empty for all. ``best``, k
    zeros of the weights' type, becomes a heap of the k best scores, the least first; ``sums`` is
    room of that type for the scores of a block.
    """
    size = len(sums)
    peaks = np.zeros(size // _STRIPE + 1, sums.dtype)
    found = np.empty(4 * _STRIPE, np.int64)
    scores = np.empty(len(found), sums.dtype)
    used = 0
    for block in range(len(blocks) - 1):
        base = block * size
        count = min(size, rows - base)
        sums[:count] = 0
        _add(blocks[block], blocks[block + 1], terms, starts, ids, impacts, wanted, weights, sums)
        if len(allowed):
            mask = allowed[base : base + count]
            for i in range(len(mask)):
                sums[i] = sums[i] if mask[i] else 0
        _raise(sums, count, peaks, best)
        floor = best[0] - margin
        for start in range(0, count, _STRIPE):
            peak = peaks[start // _STRIPE]
            if peak <= 0 or peak < floor:
                continue
            if used + _STRIPE > len(found):
                used = _keep(found, scores, used, floor)
                if used > len(found) // 2:
                    found = np.concatenate((found, np.empty_like(found)))
                    scores = np.concatenate((scores, np.empty_like(scores)))
            for i in range(start, min(start + _STRIPE, count)):
                if sums[i] > 0 and sums[i] >= floor:
                    found[used], scores[used] = base + i, sums[i]
                    used += 1
    used = _keep(found, scores, used, best[0] - margin)
    return found[:used], scores[:used]


@_compile
def _add(
    first: int,
    last: int,
    terms: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add each wanted term's products to the scores of a block."""
    for i in range(len(wanted)):
        low, high = first, last
        while low < high:
            middle = (low + high) // 2
            if terms[middle] < wanted[i]:
                low = middle + 1
            else:
                high = middle
        if low < last and terms[low] == wanted[i]:
            weight = weights[i]
            rows = ids[starts[low] : starts[low + 1]]
            values = impacts[starts[low] : starts[low + 1]]
            for j in range(len(rows)):
                sums[rows[j]] += weight * values[j]


@_compile
def _raise(sums: np.ndarray, count: int, peaks: np.ndarray, best: np.ndarray) -> None:
    """Record the greatest score of each stripe, and put scores among the best into the heap."""
    for start in range(0, count, _STRIPE):
        stripe = sums[start : min(start + _STRIPE, count)]
        peak = stripe[0]
        for i in range(len(stripe)):
            score = stripe[i]
            if score > peak:  # `max` would not be vectorised
                peak = score
        peaks[start // _STRIPE] = peak
        if peak > best[0]:
            for score in stripe:
                if score > best[0]:
                    _replace_least(best, score)


@_compile
def _replace_least(heap: np.ndarray, value: float) -> None:
    place, child = 0, 1
    while child < len(heap):
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = value


@_compile
def _keep(found: np.ndarray, scores: np.ndarray, used: int, floor: float) -> int:
    """Move what is not below the floor to the front, and return the count."""
    kept = 0
    for i in range(used):
        if scores[i] >= floor:
            found[kept], scores[kept] = found[i], scores[i]
            kept += 1
    return kept


@_compile
def row_scores(
    row_starts: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    rows: np.ndarray,
    query: np.ndarray,
    scores: np.ndarray,
) -> bool:
    """Write the dot products of rows with a dense query. Return whether all rows are sound.

    Products are added in column order. Nothing is read outside the arrays.
    """
    for i in range(len(rows)):
        first, last = row_starts[rows[i]], row_starts[rows[i] + 1]
        if first < 0 or last > len(columns):
            return False
        total = 0.0
        for entry in range(first, last):
            column = columns[entry]
            if column < 0 or column >= len(query):
                return False
            total += np.float64(weights[entry]) * query[column]
        scores[i] = total
    return True


@_compile
def read_spans(file: int, firsts: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> bool:
    """Read spans of a file, one after the other. Return whether all were there.

    In Python each read would release the global lock: beside busy threads, dozens of reads then
    wait dozens of times. Starts and sizes are in bytes; ``room`` is uint8, as long as all sizes.
    """
    place = 0
    for i in range(len(firsts)):
        first, left = firsts[i], sizes[i]
        while left > 0:
            got = _pread(file, room.ctypes.data + place, left, first)
            if got <= 0:
                return False
            place, first, left = place + got, first + got, left - got
    return True
