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

from lexvla_indexer.embedded.skipping import GROUP, PIECE

__all__ = ["COMPILED", "fill", "read_spans", "retrieve", "retrieve_skipping", "row_scores"]


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
_GROUP_BITS = GROUP.bit_length() - 1
_SPAN = 1 << 13  # rows that are bounded together: their scores fit into the nearest cache
_FEW_PIECES = 8  # a span of which more than this part must be scored is scored as a whole
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
    found = np.empty(4 * _STRIPE, np.int64)
    scores = np.empty(len(found), sums.dtype)
    used = 0
    postings = terms, starts, ids, impacts
    for block in range(len(blocks) - 1):
        span = blocks[block], blocks[block + 1]
        first, last = block * len(sums), min((block + 1) * len(sums), rows)
        found, scores, used = _search_block(
            first, last, span, postings, wanted, weights, margin, allowed, best, sums,
            found, scores, used,
        )  # fmt: skip
    used = _keep(found, scores, used, best[0] - margin)
    return found[:used], scores[:used]


@_compile
def retrieve_skipping(
    rows: int,
    blocks: np.ndarray,
    terms: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    frequent: np.ndarray,
    peaks: np.ndarray,
    begins: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    margin: int,
    allowed: np.ndarray,
    best: np.ndarray,
    sums: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `retrieve` does, without reading the postings of rows that cannot be found.

    The first arrays are those of `retrieve` and of `lexvla_indexer.embedded.skipping.Peaks`;
    weights are int32. After a block in which little could be skipped, nothing is.
    """
    found = np.empty(4 * _SPAN, np.int64)
    scores = np.empty(len(found), sums.dtype)
    pieces = np.empty(_SPAN // PIECE, np.int64)
    used, skips = 0, True
    postings = terms, starts, ids, impacts
    for block in range(len(blocks) - 1):
        span = blocks[block], blocks[block + 1]
        first, last = block * len(sums), min((block + 1) * len(sums), rows)
        if not skips:
            found, scores, used = _search_block(
                first, last, span, postings, wanted, weights, margin, allowed, best, sums,
                found, scores, used,
            )  # fmt: skip
            continue
        many, few = _split(span, terms, starts, frequent, wanted, weights, len(ids))
        whole = 0
        for at in range(0, last - first, _SPAN):
            part = sums[:_SPAN]
            bounds = _bounds(at, many, few, ids, impacts, peaks, part)
            floor = max(best[0] - margin, 1)
            count = _reaching(bounds, floor, pieces)
            if not count:
                continue
            if used + _SPAN > len(found):
                used = _keep(found, scores, used, floor)
                if used + _SPAN > len(found):
                    found = np.concatenate((found, np.empty_like(found)))
                    scores = np.concatenate((scores, np.empty_like(scores)))
            is_whole = count * _FEW_PIECES > len(pieces)
            if is_whole:
                whole += 1
                _add_frequent(at, at + _SPAN, many, begins, ids, impacts, part)
            for piece in pieces[:count]:
                start = at + piece * PIECE
                own = part[piece * PIECE : (piece + 1) * PIECE]
                if not is_whole:
                    _add_frequent(start, start + PIECE, many, begins, ids, impacts, own)
                own = own[: min(PIECE, last - first - start)]
                used = _take(first + start, own, margin, allowed, best, found, scores, used)
        skips = 2 * whole * _SPAN <= last - first
    used = _keep(found, scores, used, best[0] - margin)
    return found[:used], scores[:used]


@_compile
def _split(
    span: tuple[int, int],
    terms: np.ndarray,
    starts: np.ndarray,
    frequent: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    stored: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a block's frequent terms, and the others, of those that are wanted.

    They are (4, terms) int64: where each term's postings start and end, its place among the
    frequent ones, and its weight. ``stored`` is the number of postings.
    """
    many, few = np.empty((4, len(wanted)), np.int64), np.empty((4, len(wanted)), np.int64)
    frequents, others = 0, 0
    for i in range(len(wanted)):
        place = _place(span[0], span[1], terms, wanted[i])
        if place < 0:
            continue
        own = _place(0, len(frequent), frequent, place)
        low, high = max(starts[place], 0), min(starts[place + 1], stored)
        if own < 0:
            few[0, others], few[1, others] = low, high
            few[2, others], few[3, others] = own, weights[i]
            others += 1
        else:
            many[0, frequents], many[1, frequents] = low, high
            many[2, frequents], many[3, frequents] = own, weights[i]
            frequents += 1
    return many[:, :frequents], few[:, :others]


@_compile
def _search_block(
    first: int,
    last: int,
    span: tuple[int, int],
    postings: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    wanted: np.ndarray,
    weights: np.ndarray,
    margin: float,
    allowed: np.ndarray,
    best: np.ndarray,
    sums: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    used: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Score the rows ``first`` to ``last`` - 1, a block, and add those that may be found."""
    count = last - first
    sums[:count] = 0
    terms, starts, ids, impacts = postings
    for i in range(len(wanted)):
        place = _place(span[0], span[1], terms, wanted[i])
        if place >= 0:
            low, high = starts[place], starts[place + 1]
            _add_products(ids[low:high], impacts[low:high], weights[i], sums)
    if len(allowed):
        mask = allowed[first:last]
        for i in range(len(mask)):
            sums[i] = sums[i] if mask[i] else 0
    peaks = np.zeros(len(sums) // _STRIPE + 1, sums.dtype)
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
                found[used], scores[used] = first + i, sums[i]
                used += 1
    return found, scores, used


@_compile
def _place(low: int, high: int, numbers: np.ndarray, wanted: int) -> int:
    """Return where a number is between two places of ascending ones, or -1."""
    last = high
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < last and numbers[low] == wanted else -1


@_compile
def _add_products(
    rows: np.ndarray, values: np.ndarray, weight: np.number[Any], sums: np.ndarray
) -> None:
    """Add a term's products to the scores of rows, whose numbers count from the last multiple."""
    mask = np.uint64(len(sums) - 1)
    for j in range(len(rows)):
        sums[np.uint64(rows[j]) & mask] += weight * values[j]


@_compile
def _add_few(
    at: int,
    few: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    sums: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Add the products of all but the frequent terms to a span's scores, and raise its bounds.

    Moves the starts of the terms' postings to the next span.
    """
    mask, shift = np.uint64(_SPAN - 1), np.uint64(_GROUP_BITS)
    for i in range(few.shape[1]):
        low, high, weight = few[0, i], few[1, i], np.int32(few[3, i])
        end = _end_of_span(low, high, ids, at + _SPAN)
        few[0, i] = end
        rows, values = ids[low:end], impacts[low:end]
        for j in range(len(rows)):
            row = np.uint64(rows[j]) & mask
            score = np.int32(sums[row] + weight * values[j])
            sums[row] = score
            bounds[row >> shift] = max(bounds[row >> shift], score)


@_compile
def _end_of_span(low: int, high: int, ids: np.ndarray, row: int) -> int:
    """Return the first place whose row is not below ``row``; it is probably near ``low``."""
    step = 64
    while low + step < high and ids[low + step] < row:
        low += step
        step *= 2
    high = min(high, low + step)
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low


@_compile
def _bounds(
    at: int,
    many: np.ndarray,
    few: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    peaks: np.ndarray,
    sums: np.ndarray,
) -> np.ndarray:
    """Return the greatest score that each group of a span may have; ``at`` is its first row.

    ``sums`` becomes the scores without the frequent terms.
    """
    bounds = np.zeros(_SPAN // GROUP, sums.dtype)
    sums[:] = 0
    _add_few(at, few, ids, impacts, sums, bounds)
    for i in range(many.shape[1]):
        weight = np.int32(many[3, i])  # 64 bits would halve what is added at a time
        own = peaks[many[2, i], at // GROUP : (at + _SPAN) // GROUP]
        for group in range(len(bounds)):
            bounds[group] += weight * own[group]
    return bounds


@_compile
def _reaching(bounds: np.ndarray, floor: int, pieces: np.ndarray) -> int:
    """Write which pieces may have a score of at least ``floor``, and return their count."""
    count = 0
    for piece in range(len(pieces)):
        first = piece * (PIECE // GROUP)
        bound = bounds[first]
        for group in range(first + 1, first + PIECE // GROUP):
            bound = max(bound, bounds[group])
        pieces[count] = piece
        count += bound >= floor
    return count


@_compile
def _add_frequent(
    first: int,
    last: int,
    many: np.ndarray,
    begins: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add the products of the frequent terms to the scores of the rows ``first`` to ``last`` - 1.

    These are whole pieces of the block.
    """
    first, last = first // PIECE, last // PIECE
    for i in range(many.shape[1]):
        own = begins[many[2, i]]
        low = many[0, i] + own[first]
        high = many[0, i] + own[last] if last < len(own) else many[1, i]
        _add_products(ids[low:high], impacts[low:high], np.int32(many[3, i]), sums)


@_compile
def _take(
    start: int,
    own: np.ndarray,
    margin: int,
    allowed: np.ndarray,
    best: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    used: int,
) -> int:
    """Add rows from ``start`` on, by their scores, to those found, and return their count."""
    floor = max(best[0] - margin, 1)
    for j in range(len(own)):
        if own[j] >= floor and (not len(allowed) or allowed[start + j]):
            if own[j] > best[0]:
                _replace_least(best, own[j])
                floor = max(best[0] - margin, 1)
            found[used], scores[used] = start + j, own[j]
            used += 1
    return used


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
