"""The best rows of a segment by the weighted sum of several legs' scores, among all rows.

Each leg gives all rows scores that are near the exact ones, and how far one can be off. The k
greatest of their sums belong to rows whose exact sums are no more than an error below the k-th
greatest, so a row two errors below it has a lower exact sum than k others. All rows that are not
are scored exactly. The same holds for each leg alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lexvla_indexer.embedded.postings import best
from lexvla_indexer.embedded.segment import Segment
from lexvla_indexer.legs import Leg

__all__ = ["best_by_sum", "weighted_sum"]


def best_by_sum(
    segment: Segment,
    query: Mapping[Leg, Any],
    weights: Mapping[Leg, float],
    k: int,
    depth: int,
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, dict[Leg, np.ndarray]]:
    """Return the rows that are among the k best by the sum, or the ``depth`` best by a leg.

    Args:
        segment: Has these legs.
        query: Its row of each sparse leg, and its dense vector.
        weights: What each leg counts, above 0.
        k: How many rows by the sum.
        depth: How many rows by each leg.
        allowed: (rows) bool: which rows may be found; ``None`` for all.

    Returns:
        Their numbers, ascending, and their exact scores by leg.
    """
    near, above = np.zeros((2, segment.count), np.bool_)
    total, error = np.zeros(segment.count), 0.0
    for leg, weight in weights.items():
        scores, off = segment.near_scores(leg, query[leg], allowed)
        # A NaN, of numbers too great for float32, is near everything, here and in `_near`.
        may_be = ~(scores <= -off)
        if leg != "dense" and not segment.sparse[leg].quantizer.drop_zero:
            may_be = scores > 0  # every shared word is an impact of at least 1
        scores = np.maximum(scores, 0)
        near |= may_be & _near(scores, depth, off)
        above |= may_be
        total += weight * scores
        error += weight * off
    near |= above & _near(total, k, error * (1 + 1e-9))
    if allowed is not None:
        near &= allowed
    rows = np.flatnonzero(near)
    exact = {leg: segment.scores(leg, query[leg], rows) for leg in weights}
    kept = _best_places(weighted_sum(weights, exact), k)
    for scores in exact.values():
        kept |= _best_places(scores, depth)
    return rows[kept], {leg: scores[kept] for leg, scores in exact.items()}


def weighted_sum(weights: Mapping[Leg, float], scores: Mapping[Leg, np.ndarray]) -> np.ndarray:
    """Return the sum of weight times score, float64, added in the order of the weights."""
    parts = [weight * np.maximum(scores[leg], 0) for leg, weight in weights.items()]
    return np.sum(parts, axis=0)


def _near(scores: np.ndarray, k: int, error: float) -> np.ndarray:
    """Return which rows may be among the k best."""
    if len(scores) <= k:
        return np.ones(len(scores), np.bool_)
    return ~(scores < np.partition(scores, -k)[-k] - 2 * error)


def _best_places(scores: np.ndarray, k: int) -> np.ndarray:
    """Return which places are the k best above 0, of equal ones the first."""
    kept = np.zeros(len(scores), np.bool_)
    there = np.flatnonzero(scores > 0)
    kept[best(scores[there], there, k)[1]] = True
    return kept
