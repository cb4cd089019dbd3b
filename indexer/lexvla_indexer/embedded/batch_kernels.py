"""The loop over the queries of a batch, compiled by numba: see `kernels`.

One call answers many queries: Python's global lock, which threads pass on slowly, is taken once for
all of them. numba keeps compiled loops until their own file changes: after a change of
``kernels.py``, touch this file.
"""

from __future__ import annotations

import numpy as np

from lexvla_indexer.embedded.kernels import (
    compiled,
    retrieve,
    row_scores,
    row_scores_by_reading,
)
from lexvla_indexer.embedded.rescoring import MANY

__all__ = ["answer"]

_Arrays = tuple[np.ndarray, ...]


@compiled
def answer(
    queries: np.ndarray,
    asked: _Arrays,
    weights: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    k: int,
    rows: int,
    postings: _Arrays,
    bitmaps: _Arrays,
    allowed: np.ndarray,
    sums: np.ndarray,
    most_terms: int,
    forward: _Arrays,
    place: tuple[int, int],
    few: int,
    dense: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Return how many rows each query found, these rows, their scores, and if all rows are sound.

    Among a query's rows, in no order, are its k best; see `lexvla_indexer.embedded.rescoring`.

    Args:
        queries: Which of the queries to answer.
        asked: Where each query's terms start, its terms, and their weights as integers.
        weights: The terms' weights, float64.
        limits: Of each of ``queries``: the margin of `retrieve`, what its ``best`` starts with, the
            score of the integer 1, and how far a score by integers is off at most.
        k: How many rows to find.
        rows: As for `retrieve`, like the next five.
        postings: Likewise.
        bitmaps: Likewise.
        allowed: Likewise.
        sums: Likewise.
        most_terms: Queries of more terms do not skip rows.
        forward: The rows: where each starts, and their entries.
        place: As for `row_scores_by_reading`.
        few: Up to so many rows are read from the file.
        dense: Zeros, float64, as many as there are terms; they are zeros again afterwards.
    """
    counts, used, sound = np.zeros(len(queries), np.int64), 0, True
    found, exact = np.empty(64 * len(queries), np.int64), np.empty(64 * len(queries))
    starts, columns, integers = asked
    margins, firsts, units, bounds = limits
    for number in range(len(queries)):
        query = queries[number]
        first, last = starts[query], starts[query + 1]
        for entry in range(first, last):
            dense[columns[entry]] = weights[entry]
        margin, skips = margins[number], last - first <= most_terms
        best = np.full(min(k, rows), firsts[number], np.int32)
        near, scores = retrieve(
            rows, postings, bitmaps, columns[first:last], integers[first:last], len(dense), margin,
            allowed, best, sums, skips,
        )  # fmt: skip
        if len(near) > k + MANY:
            highest = near[scores >= best[0]][:k]
            own, is_sound = _scores(highest, forward, place, few, dense)
            sound = sound and is_sound
            if len(own) == k:
                near = near[scores * units[number] >= own.min() - bounds[number]]
        own, is_sound = _scores(near, forward, place, few, dense)
        sound = sound and is_sound
        while used + len(near) > len(found):
            found = np.concatenate((found, np.empty_like(found)))
            exact = np.concatenate((exact, np.empty_like(exact)))
        found[used : used + len(near)], exact[used : used + len(near)] = near, own
        used += len(near)
        counts[number] = len(near)
        for entry in range(first, last):
            dense[columns[entry]] = 0
    return counts, found[:used], exact[:used], sound


@compiled
def _scores(
    rows: np.ndarray,
    forward: _Arrays,
    place: tuple[int, int],
    few: int,
    query: np.ndarray,
) -> tuple[np.ndarray, bool]:
    starts, entries = forward
    scores = np.empty(len(rows))
    if len(rows) <= few:
        is_sound = row_scores_by_reading(starts, entries, rows, query, place, scores)
    else:
        is_sound = row_scores(starts, entries, rows, query, scores)
    return scores, is_sound
