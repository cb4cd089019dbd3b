"""Which segments to merge, and their rows in the order of a new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import IndexCorruptError
from lexvla_indexer.bm25 import TextRows
from lexvla_indexer.embedded.segment import Segment
from lexvla_indexer.legs import stack

__all__ = ["SEGMENT_ROWS", "SegmentRows", "due", "live_rows", "merged"]

SegmentRows = tuple[list[str], Encoding, TextRows]  # ids, vectors and words

SEGMENT_ROWS = 1 << 20  # the most rows of a segment, so that a merge fits into memory
FAN_IN = 8  # segments of about one size that become one
_SMALLEST = 1024  # below this, sizes do not matter


def due(rows: Mapping[int, int], deleted: Mapping[int, int]) -> list[int]:
    """Return the segments to merge now, if any, given their rows and how many of these are deleted.

    From 1,024 rows on, a row is copied about once for each eightfold growth of the index; below,
    small commits copy it more often, which costs little. An index of n rows has no more than about
    7 log8(n / 1024) segments of less than half the largest size.
    """
    live = {number: count - deleted.get(number, 0) for number, count in rows.items()}
    tiers: dict[int, list[int]] = {}
    for number, count in live.items():
        if 2 * count < SEGMENT_ROWS:
            tiers.setdefault(_tier(count), []).append(number)
    for tier in sorted(tiers, reverse=True):
        if len(tiers[tier]) >= FAN_IN:
            return sorted(n for t in tiers if t <= tier for n in tiers[t])
    return sorted(number for number, count in live.items() if 2 * count < rows[number])


def _tier(rows: int) -> int:
    tier = 0
    while rows >= _SMALLEST * FAN_IN**tier:
        tier += 1
    return tier


def live_rows(count: int, deleted: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows that are not deleted, ascending."""
    return np.delete(np.arange(count), deleted)


def merged(parts: Sequence[tuple[Segment, np.ndarray]], most: int) -> Iterator[SegmentRows]:
    """Yield ids, vectors and words of rows of segments by ascending id, at most ``most`` at a time.

    The parts are segments, each with the rows to take, ascending. A damaged file of a segment
    raises IndexCorruptError: nothing of it may be copied.
    """
    for segment, _ in parts:
        for damage in segment.damage():
            raise IndexCorruptError(damage)
    ids = [name for segment, rows in parts for name in segment.ids(rows)]
    owners = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts])
    numbers = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in parts)])
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
    for first in range(0, len(order), most):
        chosen = order[first : first + most]
        # A stable sort keeps the rows of a segment ascending, as their ids are.
        by_owner = np.argsort(owners[chosen], kind="stable")
        taken = [
            (parts[owner][0], numbers[chosen[owners[chosen] == owner]])
            for owner in np.unique(owners[chosen])
        ]
        place = np.empty_like(by_owner)
        place[by_owner] = np.arange(len(by_owner))
        encoding = stack([segment.encoding(rows) for segment, rows in taken])
        text = TextRows.stack([segment.text(rows) for segment, rows in taken])
        if len(taken) > 1:
            encoding, text = encoding[place], text[place]
        yield [ids[i] for i in chosen.tolist()], encoding, text
