"""Postings of frequent terms: a bit a row instead of a number, and what a search skips by.

A term is frequent in a block if it has at least `FREQUENT` postings there. Which of a block's
65,536 rows have it is said by bits, so that vector instructions can add the products of 64 rows at
once, and its rows are not in ``LEG.posting.row``. Its impacts are in the order of the bits:

    LEG.posting.bits     uint64   (terms, 1024) which rows have it: of each 64 rows, the row
                                  16 j + i by the bit 4 i + j, counted from the lowest
    LEG.posting.begin    uint16   (terms, 1024) where the impacts of each 64 rows start, counted
                                  from its first of the block
    LEG.posting.peak     uint8    (terms, 4096) its greatest impact in each 16 rows

A search of few words skips most rows of a block, and still finds the best. It adds up the products
of the other terms, which have few postings. In a group of 16 rows, the frequent terms add at most
the sum of weight times peak to a row's score. Their products are added only to 64 rows of which one
may then reach the least score that can still be found. Scores are integers, so bounds are exact:
the rows found are those that a search without skipping finds, with the same scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "BITMAP_FILES",
    "BLOCK",
    "FREQUENT",
    "GROUP",
    "PIECE",
    "Bitmaps",
    "frequent_terms",
    "mark_rows",
    "rows_of_bits",
]

BLOCK = 1 << 16  # rows: as many as a uint16 can number
GROUP = 16  # rows of a peak
PIECE = 64  # rows of a begin, and of a number of bits
# Postings of 65,536 rows. Bits, begins and peaks take less room than numbers only from 7,168 on,
# but searches that skip rows need peaks of terms that are less frequent too.
FREQUENT = 1 << 11
BITMAP_FILES: dict[str, tuple[type[np.generic], int]] = {
    "bits": (np.uint64, PIECE),
    "begin": (np.uint16, PIECE),
    "peak": (np.uint8, GROUP),
}

_ROWS = np.arange(PIECE).reshape(4, 16).T.ravel()  # the row of each bit
_PLACES = np.argsort(_ROWS)
_ROWS_OF_BLOCK = (np.arange(0, BLOCK, PIECE)[:, None] + _ROWS).ravel().astype(np.uint16)


class Bitmaps(NamedTuple):
    """Hold the postings of frequent terms.

    Attributes:
        frequent: int64: their places in `Postings.terms`, ascending.
        before: (frequent + 1) int64: how many postings the frequent terms before each have.
        bits: As in the file.
        begins: As in the file.
        peaks: As in the file.
    """

    frequent: np.ndarray
    before: np.ndarray
    bits: np.ndarray
    begins: np.ndarray
    peaks: np.ndarray

    def find(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which frequent term is at each place of `Postings.terms`, or -1.

        Also return how many postings the frequent terms before each place have: so many fewer rows
        than impacts are stored before it.
        """
        own = np.searchsorted(self.frequent, places)
        after = np.searchsorted(self.frequent, places, "right")
        return np.where(after > own, own, -1), self.before[own]


def frequent_terms(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two arrays of `Bitmaps`, given `Postings.starts`."""
    lengths = np.diff(starts)
    frequent = np.flatnonzero(lengths >= FREQUENT)
    before = np.append(0, np.cumsum(lengths[frequent])).astype(np.int64)
    return frequent, before


def mark_rows(
    rows: np.ndarray, impacts: np.ndarray, bits: np.ndarray, peaks: np.ndarray
) -> np.ndarray:
    """Write a term's bits and peaks in a block, zeros before, given its rows and their impacts.

    Return the impacts in the order of the bits.
    """
    places = _PLACES[rows % PIECE]
    np.bitwise_or.at(bits, rows // PIECE, np.uint64(1) << places.astype(np.uint64))
    np.maximum.at(peaks, rows // GROUP, impacts)
    return impacts[np.argsort(rows // PIECE * PIECE + places)]


def rows_of_bits(bits: np.ndarray) -> np.ndarray:
    """Return the rows of a term in a block, uint16, in the order of the bits."""
    little = bits.astype("<u8", copy=False).view(np.uint8)
    places = np.flatnonzero(np.unpackbits(little, bitorder="little").view(np.bool_))
    return _ROWS_OF_BLOCK[places]
