"""The inner loops of postings, compiled by numba.

numba is slow to load, so this module is imported only when a search or a build needs it. The
loops release Python's global lock, so that threads search in parallel. Hot loops run over slices
that start at 0: otherwise the compiled code would check every index for being negative. Without
numba, or with NUMBA_DISABLE_JIT, they are plain Python, too slow to use: see `COMPILED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from lexvla_indexer.embedded.bitmaps import BLOCK, GROUP, PIECE

__all__ = [
    "COMPILED",
    "compiled",
    "count",
    "fill",
    "read_spans",
    "retrieve",
    "row_scores",
    "row_scores_by_reading",
]


def _import_numba() -> Any:
    try:
        import numba
    except ImportError:
        return None
    return numba


_numba = _import_numba()
COMPILED = _numba is not None and not _numba.config.DISABLE_JIT
INSTRUCTIONS = ""
if _numba is not None:
    from lexvla_indexer.embedded.vectors import (
        INSTRUCTIONS,
        add_products,
        count_bits,
        first_bit,
        may_reach,
        prefetch,
        reaching,
    )

    _pread = _numba.types.ExternalFunction(
        "pread",
        _numba.types.intp(
            _numba.types.intc, _numba.types.uintp, _numba.types.uintp, _numba.types.int64
        ),
    )
_SPAN = 1 << 13  # rows that are added up together: their scores fit into the nearest cache
_GROUPS = PIECE // GROUP  # of a piece
_LINES = 4  # of the cache, asked for at the start of each list
_FIRST = 4 * _SPAN  # rows that are all scored, so that the others have a floor to reach
_FEW_PIECES = 8  # where more than this part must be scored, a search without skipping is faster

_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_Arrays = tuple[np.ndarray, ...]


def compiled(loop: _Loop) -> _Loop:
    """Return a loop compiled by numba, which keeps it on the disk, or as it is without numba."""
    if _numba is None:
        return loop
    try:
        return _numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # nowhere to cache the compiled code
        return _numba.njit(nogil=True)(loop)


@compiled
def count(columns: np.ndarray, counts: np.ndarray) -> bool:
    """Count each column number. Return whether all are places of ``counts``, zeros before."""
    for column in columns:
        if column < 0 or column >= len(counts):
            return False
        counts[column] += 1
    return True


@compiled
def fill(
    row_starts: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    heads: np.ndarray,
    places: np.ndarray,
    ids: np.ndarray,
    impacts: np.ndarray,
    bits: np.ndarray,
    peaks: np.ndarray,
) -> None:
    """Write the postings of a block, given its compressed sparse rows.

    For each term, ``heads`` (terms, 2) says where its impacts start, and how many fewer rows than
    impacts are stored before; or, of the n-th frequent term, -1 - n. For each of these, ``places``
    says where its impacts start. Both are used up. The other arrays are the block's part of those
    of `lexvla_indexer.embedded.postings.Postings`; ``bits`` and ``peaks`` must be zeros.
    """
    # The impacts of frequent terms in a piece, by the place of the bit: then in the bits' order.
    room, nothing = np.zeros((len(places), PIECE), np.uint8), np.uint64(0)
    marks = np.zeros(len(places), np.uint64)
    rows = len(row_starts) - 1
    for piece in range((rows + PIECE - 1) // PIECE):
        for row in range(piece * PIECE, min((piece + 1) * PIECE, rows)):
            place_of_bit = _bit_of_row(row % PIECE)
            bit, number = np.uint64(1) << np.uint64(place_of_bit), np.uint16(row)
            for entry in range(
                row_starts[row] - row_starts[0], row_starts[row + 1] - row_starts[0]
            ):
                term, weight = columns[entry], weights[entry]
                place = heads[term, 0]
                if place >= 0:
                    heads[term, 0] = place + 1
                    impacts[place] = weight
                    ids[place - heads[term, 1]] = number
                else:
                    marks[-1 - place] |= bit
                    room[-1 - place, place_of_bit] = weight
        for own in range(len(places)):
            left, place = marks[own], places[own]
            bits[own, piece], marks[own] = left, nothing
            while left:
                place_of_bit = first_bit(left)
                left &= left - np.uint64(1)
                weight = room[own, place_of_bit]
                impacts[place] = weight
                place += 1
                group = piece * _GROUPS + place_of_bit % _GROUPS
                peaks[own, group] = max(peaks[own, group], weight)
            places[own] = place


@compiled
def _bit_of_row(row: int) -> int:
    """Return the bit of a row, of 64."""
    return (row % 16) * 4 + row // 16


@compiled
def _row_of_bit(place: int) -> int:
    """Return the row, of 64, that a bit is of."""
    return (place % 4) * 16 + place // 4


@compiled
def retrieve(
    rows: int,
    postings: _Arrays,
    bitmaps: _Arrays,
    wanted: np.ndarray,
    weights: np.ndarray,
    width: int,
    margin: int,
    allowed: np.ndarray,
    best: np.ndarray,
    sums: np.ndarray,
    skips: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows above 0 whose score is at most ``margin`` below the k-th best, and scores.

    The rows are in no order. ``postings`` and ``bitmaps`` are the arrays of
    `lexvla_indexer.embedded.postings.Postings` and of its bitmaps. ``wanted`` are the query's
    terms, of ``width``; ``weights``, int32, are from 0 to 32,767. ``allowed`` says which rows may
    be found, and is empty for all. ``best``, int32, is a heap of the k best scores so far, the
    least first, or zeros; ``sums``, int32, is room for the scores of a block. ``skips`` says
    whether to skip rows by bounds; after a block in which few could be skipped, none are.
    """
    none: Any = np.int64(0)  # for a plain 0, functions would be compiled once more
    found, scores, used = np.empty(8 * _SPAN, np.int64), np.empty(8 * _SPAN, np.int32), none
    lists, marked = np.empty((2, 4, len(wanted)), np.int64), np.empty((2, 3, len(wanted)), np.int64)
    needed = np.empty(_SPAN // GROUP, np.int32)
    by_span, unskipped = skips, none if best[0] else _FIRST
    blocks, ids, impacts = len(postings[0]) - 1, postings[3], postings[4]
    counts = _choose(none, postings, bitmaps, wanted, weights, width, lists[0], marked[0])
    for block in range(blocks):
        few, many = lists[block & 1, :, : counts[0]], marked[block & 1, :, : counts[1]]
        if block + 1 < blocks:  # early, so that its postings are on their way
            own, other = lists[~block & 1], marked[~block & 1]
            counts = _choose(block + 1, postings, bitmaps, wanted, weights, width, own, other)
        base, skipped, scored = block * BLOCK, none, none
        if not by_span:
            sums[:] = 0
            _add_lists(few, ids, impacts, sums)
        for start in range(0, min(BLOCK, rows - base), _SPAN):
            if used + _SPAN > len(found):
                found, scores, used = _shortened(found, scores, used, best[0] - margin)
            part, first = sums[start : start + _SPAN], base + start
            if by_span:
                part = sums[:_SPAN]
                part[:] = 0
                _add_lists_of_span(start + _SPAN, few, ids, impacts, part)
            if skips and first >= unskipped:
                needed[:] = max(best[0] - margin, 1)
                _subtract_peaks(start // GROUP, many, bitmaps[4], needed)
                now, used = _take_reached(
                    base, start, rows, many, bitmaps, impacts, part, needed, margin,
                    allowed, best, found, scores, used,
                )  # fmt: skip
                skipped, scored = skipped + _SPAN // PIECE, scored + now
            else:
                _add_frequent(start // PIECE, many, bitmaps, impacts, part)
                used = _take_span(first, rows, part, margin, allowed, best, found, scores, used)
        skips = skips and scored * _FEW_PIECES <= skipped
    used = _keep(found, scores, used, best[0] - margin)
    return found[:used], scores[:used]


@compiled
def _take_span(
    first: int,
    rows: int,
    sums: np.ndarray,
    margin: int,
    allowed: np.ndarray,
    best: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    used: int,
) -> int:
    """Add the rows from ``first`` on, by their scores, to those found, and return their count."""
    address = np.uint64(sums.ctypes.data)
    for start in range(0, len(sums), PIECE):
        if reaching(address, max(best[0] - margin, 1)):
            own = sums[start : start + PIECE]
            used = _take(first + start, rows, own, margin, allowed, best, found, scores, used)
        address += np.uint64(4 * PIECE)
    return used


@compiled
def _take_reached(
    base: int,
    start: int,
    rows: int,
    many: np.ndarray,
    bitmaps: _Arrays,
    impacts: np.ndarray,
    sums: np.ndarray,
    needed: np.ndarray,
    margin: int,
    allowed: np.ndarray,
    best: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    used: int,
) -> tuple[int, int]:
    """Score the pieces of a span of which a row may reach the floor, and take their rows.

    ``base`` is the block's first row, ``start`` the span's, counted from it; ``needed`` says what
    a row of each group must have reached by its other terms. Returns how many pieces were scored,
    and the count of rows found.
    """
    scored, pieces = 0, len(sums) // PIECE
    address, place = np.uint64(sums.ctypes.data), np.uint64(needed.ctypes.data)
    for piece in range(pieces):
        if may_reach(address, place):
            first = piece * PIECE
            own = sums[first : first + PIECE]
            _add_frequent(start // PIECE + piece, many, bitmaps, impacts, own)
            row = base + start + first
            used = _take(row, rows, own, margin, allowed, best, found, scores, used)
            scored += 1
        address += np.uint64(4 * PIECE)
        place += np.uint64(4 * _GROUPS)
    return scored, used


@compiled
def _choose(
    block: int,
    postings: _Arrays,
    bitmaps: _Arrays,
    wanted: np.ndarray,
    weights: np.ndarray,
    width: int,
    few: np.ndarray,
    many: np.ndarray,
) -> tuple[int, int]:
    """Find a block's postings of the wanted terms. Return how many have lists, and how many bits.

    ``few`` takes where the rows of each list start and end, and where its impacts start; ``many``
    which frequent term each of the others is, and where its impacts start. Both end with weights.
    """
    blocks, terms, starts, ids, impacts = postings
    frequent, before = bitmaps[0], bitmaps[1]
    first, last = blocks[block], blocks[block + 1]
    places = first + _find(terms[first:last], wanted, width)
    low_own, high_own = np.searchsorted(frequent, first), np.searchsorted(frequent, last)
    owns = low_own + _find(frequent[low_own:high_own], places, last)
    fews, manys = 0, 0
    for i in range(len(wanted)):
        place, own = places[i], owns[i]
        if place == last or terms[place] != wanted[i]:
            continue
        start = min(max(starts[place], 0), len(impacts))  # the file may have changed
        if own < len(frequent) and frequent[own] == place:
            many[0, manys], many[1, manys], many[2, manys] = own, start, weights[i]
            manys += 1
            continue
        low = max(start - before[own], 0)
        high = min(starts[place + 1] - before[own], len(ids), low + len(impacts) - start)
        high = max(high, low)
        few[0, fews], few[1, fews], few[2, fews], few[3, fews] = low, high, start, weights[i]
        fews += 1
        for line in range(min((high - low + 31) // 32, _LINES)):
            prefetch(ids.ctypes.data + 2 * low + 64 * line)
            if line & 1 == 0:
                prefetch(impacts.ctypes.data + start + 32 * line)
    return fews, manys


@compiled
def _find(numbers: np.ndarray, wanted: np.ndarray, end: int) -> np.ndarray:
    """Return the first place of ascending numbers with at least each wanted one.

    No number is below 0 or repeated, nor is one ``end`` or more: so a number's place is at most
    itself, and less only by how many are missing. All are searched for in step: one search waits
    for memory at each step.
    """
    left = min(len(numbers), max(end - len(numbers), 0))
    places = np.empty(len(wanted), np.int64)
    for i in range(len(wanted)):
        places[i] = max(min(wanted[i] - (end - len(numbers)), len(numbers) - left), 0)
    while left > 1:
        half = left // 2
        for i in range(len(wanted)):
            places[i] += half if numbers[places[i] + half - 1] < wanted[i] else 0
        left -= half
    for i in range(len(wanted)):
        places[i] += left == 1 and numbers[places[i]] < wanted[i]
    return places


@compiled
def _add_lists(lists: np.ndarray, ids: np.ndarray, impacts: np.ndarray, sums: np.ndarray) -> None:
    """Add the products of lists to the scores of a block."""
    mask = np.uint64(len(sums) - 1)
    for i in range(lists.shape[1]):
        rows, values = ids[lists[0, i] : lists[1, i]], impacts[lists[2, i] :]
        weight = np.int32(lists[3, i])
        for j in range(min(len(rows), len(values))):
            sums[np.uint64(rows[j]) & mask] += weight * values[j]


@compiled
def _add_lists_of_span(
    end: int, lists: np.ndarray, ids: np.ndarray, impacts: np.ndarray, sums: np.ndarray
) -> None:
    """Add the products of lists to the scores of a span, and move the starts of the lists on.

    ``end`` is the first row after the span.
    """
    mask, one, eight = np.uint64(len(sums) - 1), np.uint64(1), np.uint64(8)
    for i in range(lists.shape[1]):
        at, stop, weight = np.uint64(lists[0, i]), np.uint64(lists[1, i]), np.int32(lists[3, i])
        shift = np.uint64(lists[2, i]) - at
        while at + eight <= stop and np.int64(ids[at + eight - one]) < end:
            for j in range(8):
                place = at + np.uint64(j)
                sums[np.uint64(ids[place]) & mask] += weight * np.int32(impacts[place + shift])
            at += eight
        while at < stop and np.int64(ids[at]) < end:
            sums[np.uint64(ids[at]) & mask] += weight * np.int32(impacts[at + shift])
            at += one
        lists[0, i] = np.int64(at)
        lists[2, i] = np.int64(at + shift)


@compiled
def _subtract_peaks(first: int, many: np.ndarray, peaks: np.ndarray, needed: np.ndarray) -> None:
    """Subtract the most that each frequent term can add to a score in each group of a span."""
    for i in range(many.shape[1]):
        own = peaks[many[0, i]][first : first + len(needed)]
        weight = np.int32(many[2, i] & 0x7FFF)
        for group in range(len(own)):
            needed[group] -= weight * np.int32(own[group])


def _add_by_vectors(
    piece: int, many: np.ndarray, bitmaps: _Arrays, impacts: np.ndarray, sums: np.ndarray
) -> None:
    """Add the products of the frequent terms to the scores of pieces of a block.

    ``piece`` is the first of them, and ``sums`` has the scores of all. The terms go in fours.
    """
    end = piece + len(sums) // PIECE
    base: Any = np.uint64(impacts.ctypes.data)
    limit: Any = np.int64(len(impacts) - PIECE)
    for i in range(0, many.shape[1], 4):
        bits_0, at_0, weight_0 = _term(i, piece, end, many, bitmaps)
        bits_1, at_1, weight_1 = _term(i + 1, piece, end, many, bitmaps)
        bits_2, at_2, weight_2 = _term(i + 2, piece, end, many, bitmaps)
        bits_3, at_3, weight_3 = _term(i + 3, piece, end, many, bitmaps)
        soon_0 = _coming(i + 4, piece, end, many, bitmaps, base)
        soon_1 = _coming(i + 5, piece, end, many, bitmaps, base)
        soon_2 = _coming(i + 6, piece, end, many, bitmaps, base)
        soon_3 = _coming(i + 7, piece, end, many, bitmaps, base)
        weights = weight_0, weight_1, weight_2, weight_3
        address = np.uint64(sums.ctypes.data)
        for j in range(len(bits_0)):
            if end - piece > 1:
                _ask_for(j, soon_0)
                _ask_for(j, soon_1)
                _ask_for(j, soon_2)
                _ask_for(j, soon_3)
            bits = bits_0[j], bits_1[j], bits_2[j], bits_3[j]
            low = base + np.uint64(min(at_0, limit)), base + np.uint64(min(at_1, limit))
            high = base + np.uint64(min(at_2, limit)), base + np.uint64(min(at_3, limit))
            add_products(bits, (*low, *high), weights, address)
            address += np.uint64(4 * PIECE)
            at_0, at_1 = at_0 + count_bits(bits[0]), at_1 + count_bits(bits[1])
            at_2, at_3 = at_2 + count_bits(bits[2]), at_3 + count_bits(bits[3])


@compiled
def _term(
    i: int, piece: int, end: int, many: np.ndarray, bitmaps: _Arrays
) -> tuple[np.ndarray, int, Any]:
    """Return a term's bits of pieces, where its impacts of them start, and its weight.

    After the last term the weight is 0.
    """
    last = many.shape[1] - 1
    own, start = many[0, min(i, last)], many[1, min(i, last)]
    weight = np.int32(many[2, i] if i <= last else 0)
    return bitmaps[2][own][piece:end], start + np.int64(bitmaps[3][own, piece]), weight


@compiled
def _coming(
    i: int, piece: int, end: int, many: np.ndarray, bitmaps: _Arrays, base: Any
) -> tuple[Any, Any, Any]:
    """Return where a term's impacts of pieces are, their size, and where its bits are.

    After the last term come the next pieces of the first.
    """
    width = bitmaps[2].shape[1]
    if i >= many.shape[1]:
        i = min(i - many.shape[1], many.shape[1] - 1)
        piece, end = min(end, width - 1), min(2 * end - piece, width)
    own = many[0, i]
    first: Any = np.int64(bitmaps[3][own, piece])
    size: Any = np.int64(bitmaps[3][own, end - 1]) - first
    return (
        base + np.uint64(many[1, i] + first),
        np.uint64(max(size, 0)),
        np.uint64(bitmaps[2].ctypes.data + 8 * (own * width + piece)),
    )


@compiled
def _ask_for(j: int, coming: tuple[Any, Any, Any]) -> None:
    """Ask for a line of the cache that a term will need, of impacts or of bits too."""
    prefetch(coming[0] + min(np.uint64(64 * j), coming[1]))
    if not j & 7:
        prefetch(coming[2] + np.uint64(8 * j))


def _add_by_bits(
    piece: int, many: np.ndarray, bitmaps: _Arrays, impacts: np.ndarray, sums: np.ndarray
) -> None:
    """Do what `_add_by_vectors` does, on any processor."""
    for i in range(many.shape[1]):
        own, weight = many[0, i], np.int32(many[2, i])
        for each in range(len(sums) // PIECE):
            begin = many[1, i] + np.int64(bitmaps[3][own, piece + each])
            place = np.uint64(min(begin, len(impacts) - PIECE))
            left, first = bitmaps[2][own, piece + each], np.uint64(PIECE * each)
            while left:
                row = first + np.uint64(_row_of_bit(first_bit(left)))
                sums[row] += weight * np.int32(impacts[place])
                place += np.uint64(1)
                left &= left - np.uint64(1)


_add_frequent = compiled(_add_by_vectors if INSTRUCTIONS else _add_by_bits)


@compiled
def _take(
    first: int,
    rows: int,
    sums: np.ndarray,
    margin: int,
    allowed: np.ndarray,
    best: np.ndarray,
    found: np.ndarray,
    scores: np.ndarray,
    used: int,
) -> int:
    """Add the rows of a piece, by their scores, to those found, and return their count."""
    floor = max(best[0] - margin, 1)
    high = reaching(sums.ctypes.data, floor)
    while high:
        place = first_bit(high)
        high &= high - np.uint64(1)
        row, score = first + place, sums[place]
        if score >= floor and row < rows and (not len(allowed) or allowed[row]):
            found[used], scores[used] = row, score
            used += 1
            if score > best[0]:
                _replace_least(best, score)
                floor = max(best[0] - margin, 1)
    return used


@compiled
def _replace_least(heap: np.ndarray, value: Any) -> None:
    place, child = 0, 1
    while child < len(heap):
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = value


@compiled
def _shortened(
    found: np.ndarray, scores: np.ndarray, used: int, floor: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Drop rows below the floor, and make room where many are left."""
    used = _keep(found, scores, used, floor)
    if 2 * used > len(found):
        found = np.concatenate((found, np.empty_like(found)))
        scores = np.concatenate((scores, np.empty_like(scores)))
    return found, scores, used


@compiled
def _keep(found: np.ndarray, scores: np.ndarray, used: int, floor: int) -> int:
    """Move what is not below the floor to the front, and return the count."""
    kept = 0
    for i in range(used):
        if scores[i] >= floor:
            found[kept], scores[kept] = found[i], scores[i]
            kept += 1
    return kept


@compiled
def row_scores(
    row_starts: np.ndarray,
    entries: np.ndarray,
    rows: np.ndarray,
    query: np.ndarray,
    scores: np.ndarray,
) -> bool:
    """Write the dot products of rows with a dense query. Return whether all rows are sound.

    The entries are those of `lexvla_indexer.embedded.stored_rows.entry_type`. Products are added in
    column order. Nothing is read outside the arrays.
    """
    for i in range(len(rows)):
        first, last = row_starts[rows[i]], row_starts[rows[i] + 1]
        if not 0 <= first <= last <= len(entries):
            return False
        scores[i], is_sound = _dot(entries[first:last], query)
        if not is_sound:
            return False
    return True


@compiled
def row_scores_by_reading(
    row_starts: np.ndarray,
    entries: np.ndarray,
    rows: np.ndarray,
    query: np.ndarray,
    place: tuple[int, int],
    scores: np.ndarray,
) -> bool:
    """Do what `row_scores` does, but read the rows from the file of entries.

    ``place`` has the number of the open file, and where its array starts.
    """
    (file, offset), size = place, entries.itemsize
    own = np.empty(0, entries.dtype)
    for i in range(len(rows)):
        prefetch(row_starts.ctypes.data + row_starts.itemsize * rows[i])
    for i in range(len(rows)):
        first, last = row_starts[rows[i]], row_starts[rows[i] + 1]
        if not 0 <= first <= last <= len(entries):
            return False
        if last - first > len(own):
            own = np.empty(last - first, entries.dtype)
        if not _read(file, offset + size * first, size * (last - first), own.ctypes.data):
            return False
        scores[i], is_sound = _dot(own[: last - first], query)
        if not is_sound:
            return False
    return True


@compiled
def _dot(entries: np.ndarray, query: np.ndarray) -> tuple[float, bool]:
    total = 0.0
    for i in range(len(entries)):
        column = np.int64(entries[i].column)
        if column < 0 or column >= len(query):
            return total, False
        total += np.float64(entries[i].weight) * query[column]
    return total, True


@compiled
def read_spans(file: int, firsts: np.ndarray, sizes: np.ndarray, room: np.ndarray) -> bool:
    """Read spans of a file, one after the other. Return whether all were there.

    In Python each read would release the global lock: beside busy threads, dozens of reads then
    wait dozens of times. Starts and sizes are in bytes; ``room`` is uint8, as long as all sizes.
    """
    place = 0
    for i in range(len(firsts)):
        if not _read(file, firsts[i], sizes[i], room.ctypes.data + place):
            return False
        place += sizes[i]
    return True


@compiled
def _read(file: int, first: int, left: int, address: int) -> bool:
    while left > 0:
        got = _pread(file, address, left, first)
        if got <= 0:
            return False
        address, first, left = address + got, first + got, left - got
    return True
