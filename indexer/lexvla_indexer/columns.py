"""The values of a metadata field by row, to sort and count by: for engines that number documents.

A column is read once for a commit; each question is then one of whole arrays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from lexvla_indexer.facets import Facet, FacetCounts
from lexvla_indexer.listing import Position
from lexvla_indexer.sort_keys import value_of

__all__ = ["Column", "count_facet", "in_order", "position_of"]

_LAST = 2**62  # the place of a document without the field


class Column:
    """The keys that each row has.

    Args:
        rows: How many rows there are.
        held: Rows with their keys, in any order; a row comes once at most, and a key of it too.
    """

    def __init__(self, rows: int, held: Iterable[tuple[int, Sequence[str]]]) -> None:
        pairs = [(row, key) for row, keys in held for key in keys]
        self.keys = sorted({key for _, key in pairs})
        place_of = {key: place for place, key in enumerate(self.keys)}
        owners = np.fromiter((row for row, _ in pairs), np.int64, len(pairs))
        places = np.fromiter((place_of[key] for _, key in pairs), np.int64, len(pairs))
        order = np.lexsort((places, owners))
        self.owners, self.places = owners[order], places[order]
        self.starts = np.concatenate([[0], np.bincount(owners, minlength=rows).cumsum()])

    def rank(self, rows: np.ndarray, descending: bool) -> np.ndarray:
        """Return numbers that order rows; one with several keys counts by its first of them."""
        starts, ends = self.starts[rows], self.starts[rows + 1]
        has, ranks = ends > starts, np.full(len(rows), _LAST)
        if descending:
            ranks[has] = -self.places[ends[has] - 1]
        else:
            ranks[has] = self.places[starts[has]]
        return ranks

    def rank_of(self, key: str | None, descending: bool) -> float:
        """Return the number of a key among those of `rank`, though no row may have it."""
        if key is None:
            return _LAST
        place: float = bisect_left(self.keys, key)
        if place == len(self.keys) or self.keys[int(place)] != key:
            place -= 0.5
        return -place if descending else place

    def key_at(self, row: int, descending: bool) -> str | None:
        """Return the key that a row is ordered by."""
        start, end = self.starts[row : row + 2].tolist()
        if start == end:
            return None
        return self.keys[int(self.places[end - 1 if descending else start])]


def in_order(
    rows: np.ndarray,
    ids: Column,
    columns: Sequence[tuple[Column, bool]],
    limit: int,
    after: Position | None,
) -> np.ndarray:
    """Return the first rows after a position, by columns, each descending or not, and by id."""
    by = [*columns, (ids, False)]
    ranks = [column.rank(rows, descending) for column, descending in by]
    if after is not None:
        later, equal = np.zeros(len(rows), bool), np.ones(len(rows), bool)
        for (column, descending), rank, key in zip(by, ranks, after, strict=True):
            limit_rank = column.rank_of(key, descending)
            later |= equal & (rank > limit_rank)
            equal &= rank == limit_rank
        rows, ranks = rows[later], [rank[later] for rank in ranks]
    return rows[np.lexsort(ranks[::-1])[:limit]]


def position_of(row: int, ids: Column, columns: Sequence[tuple[Column, bool]]) -> Position:
    """Return the position of a row in that order."""
    return tuple(column.key_at(row, descending) for column, descending in [*columns, (ids, False)])


def count_facet(facet: Facet, column: Column, chosen: np.ndarray) -> FacetCounts:
    """Count the chosen rows: (rows) bool."""
    own = chosen[column.owners]
    owners, places = column.owners[own], column.places[own]
    missing = int(np.count_nonzero(chosen)) - len(np.unique(owners))
    if facet.ranges is not None:
        counted = []
        for each in facet.asked_ranges:
            low, high = (bisect_left(column.keys, key) for key in each.keys)
            within = (places >= low) & (places < high)
            counted.append((each, len(np.unique(owners[within]))))
        return FacetCounts(ranges=counted, missing=missing)
    counts = np.bincount(places, minlength=len(column.keys))
    best = np.argsort(-counts, kind="stable")[: facet.limit]
    listed = [(value_of(column.keys[at]), int(counts[at])) for at in best.tolist() if counts[at]]
    other = int(counts.sum()) - sum(count for _, count in listed)
    return FacetCounts(values=listed, other=other, missing=missing)
