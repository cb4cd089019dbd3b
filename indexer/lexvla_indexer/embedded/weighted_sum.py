"""The best rows of a segment by the weighted sum of several legs' scores, among all rows.

Each leg finds its own best rows, exactly. The k-th best of their sums is the floor: a row with a
lower sum is not among the k best. A row that no leg found scores at most the last found score of
each leg. So all but few of those stay below the floor, by that alone or by their products with the
dense vector, which a scan gives for every row. The few are scored exactly. If they are many, every
row gets a sum that is near the exact one, and those within its error of the floor are scored.

Of several segments, each is told the `Floors` that those before it set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lexvla_indexer.embedded.dense import Found, Scan
from lexvla_indexer.embedded.postings import THREADS, best
from lexvla_indexer.embedded.segment import Segment
from lexvla_indexer.legs import Leg

__all__ = ["Floors", "best_by_sum", "weighted_sum"]

_DEEPER = 2  # times k: how many rows each leg finds at least, so that few others reach the floor
_FEW = 4096  # rows: scoring them exactly is faster than a near sum of a million
_LEAST = np.float32(-np.inf)
_ROUNDING = 1e-9  # more than float64 rounds a sum by, as a part of it


class Floors(NamedTuple):
    """Hold what rows found elsewhere score: lower scores are not among the best.

    Attributes:
        total: The k-th best sum.
        legs: A score of each leg that as many rows have as a search finds by the leg.
    """

    total: float
    legs: Mapping[Leg, float]

    @classmethod
    def of(
        cls, weights: Mapping[Leg, float], scores: Mapping[Leg, np.ndarray], k: int, depth: int
    ) -> Floors:
        """Return the floors that rows set, given their exact scores by leg."""
        each = max(depth, _DEEPER * k)
        legs = {leg: _nth(own, each) for leg, own in scores.items()}
        return cls(_nth(weighted_sum(weights, scores), k), legs)


def best_by_sum(
    segment: Segment,
    query: Mapping[Leg, Any],
    weights: Mapping[Leg, float],
    k: int,
    depth: int,
    allowed: np.ndarray | None,
    floors: Floors | None = None,
) -> tuple[np.ndarray, dict[Leg, np.ndarray]]:
    """Return the rows that are among the k best by the sum, or the ``depth`` best by a leg.

    Args:
        segment: Has these legs.
        query: Its row of each sparse leg, and its dense vector.
        weights: What each leg counts, above 0.
        k: How many rows by the sum.
        depth: How many rows by each leg.
        allowed: (rows) bool: which rows may be found; ``None`` for all.
        floors: Rows that do not reach them are left out.

    Returns:
        Their numbers, ascending, and their exact scores by leg.
    """
    floors = floors or Floors(0.0, dict.fromkeys(weights, 0.0))
    found: dict[Leg, Found] = {}
    scan: Scan | None = None
    each = max(depth, _DEEPER * k)
    for leg in weights:
        floor = floors.legs[leg]
        if leg == "dense" and segment.dense is not None:
            scan = segment.dense.scan(query[leg], each, allowed, floor)
            found[leg] = scan.found
        else:
            top = segment.sparse[leg].top
            found[leg] = top(query[leg], each, allowed, True, THREADS, floor)
    rows = np.unique(np.concatenate([own for _, own in found.values()]))
    exact = {leg: _scores(segment, leg, query[leg], rows, found[leg]) for leg in weights}
    total = weighted_sum(weights, exact)
    lasts = {
        leg: float(scores[-1]) if len(scores) == each else floors.legs[leg]
        for leg, (scores, _) in found.items()
    }
    search = _Search(segment, query, weights, k, allowed, scan)
    others = search.others(lasts, max(_nth(total, k), floors.total))
    if len(others):
        others = np.setdiff1d(others, rows, assume_unique=True)
        order = np.argsort(rows := np.concatenate([rows, others]), kind="stable")
        rows = rows[order]
        for leg, scores in exact.items():
            more = segment.scores(leg, query[leg], others)
            exact[leg] = np.concatenate([scores, more])[order]
        total = weighted_sum(weights, exact)
    kept = _best_places(total, k, floors.total)
    for leg, scores in exact.items():
        kept |= _best_places(scores, depth, floors.legs[leg])
    return rows[kept], {leg: scores[kept] for leg, scores in exact.items()}


def weighted_sum(weights: Mapping[Leg, float], scores: Mapping[Leg, np.ndarray]) -> np.ndarray:
    """Return the sum of weight times score, float64, added in the order of the weights."""
    parts = [weight * np.maximum(scores[leg], 0) for leg, weight in weights.items()]
    return np.sum(parts, axis=0)


def _scores(segment: Segment, leg: Leg, query: Any, rows: np.ndarray, found: Found) -> np.ndarray:
    """Return a leg's exact scores of ascending rows, among them those that it found."""
    scores = np.empty(len(rows))
    is_missing = np.ones(len(rows), np.bool_)
    places = np.searchsorted(rows, found[1])
    scores[places], is_missing[places] = found[0], False
    scores[is_missing] = segment.scores(leg, query, rows[is_missing])
    return scores


@dataclass(frozen=True)
class _Search:
    """Look for rows that no leg found; the fields are as in `best_by_sum`."""

    segment: Segment
    query: Mapping[Leg, Any]
    weights: Mapping[Leg, float]
    k: int
    allowed: np.ndarray | None
    scan: Scan | None

    def others(self, lasts: Mapping[Leg, float], floor: float) -> np.ndarray:
        """Return the rows that may reach the floor, of those that no leg found; maybe some more.

        ``lasts`` is the most that each leg gives any of them.
        """
        parts = {leg: weight * lasts[leg] for leg, weight in self.weights.items()}
        most, least = sum(parts.values()), floor * (1 - _ROUNDING)
        if most == 0 or most < least:
            return np.empty(0, np.int64)
        if self.scan is not None:
            beside = sum(part for leg, part in parts.items() if leg != "dense")
            product = (least - beside * (1 + _ROUNDING)) / self.weights["dense"]
            if 0 < product - self.scan.error < math.inf:
                reached = np.nextafter(np.float32(product - self.scan.error), _LEAST)
                near = self.scan.products >= reached
                if np.count_nonzero(near) <= _FEW:
                    return np.flatnonzero(near)
        return self._near(floor)

    def _near(self, floor: float) -> np.ndarray:
        """Return the rows whose sum may reach the floor, by sums that are near the exact ones."""
        above = np.zeros(self.segment.count, np.bool_)
        total, error = np.zeros(self.segment.count), 0.0
        for leg, weight in self.weights.items():
            if leg == "dense" and self.scan is not None:
                scores, off = self.scan.products, self.scan.error
            else:
                scores, off = self.segment.sparse[leg].near_scores(self.query[leg], self.allowed)
            # A NaN, of numbers too great for float32, is near everything, here and below.
            if leg == "dense" or self.segment.sparse[leg].quantizer.drop_zero:
                above |= ~(scores <= -off)
            else:
                above |= scores > 0  # every shared word is an impact of at least 1
            total += weight * np.maximum(scores, 0, dtype=np.float64)
            error += weight * off * (1 + _ROUNDING)
        if self.allowed is not None:
            above &= self.allowed
        rows = np.flatnonzero(above)
        total = total[rows]
        if len(rows) > self.k:
            floor = max(floor, _nth(total, self.k) - error)
        return rows[~(total < floor - error)]


def _nth(scores: np.ndarray, n: int) -> float:
    """Return the n-th best score, or 0 if there are fewer or it is below."""
    return max(float(np.partition(scores, -n)[-n]), 0.0) if len(scores) >= n else 0.0


def _best_places(scores: np.ndarray, k: int, floor: float) -> np.ndarray:
    """Return which places are the k best above 0 that reach a floor, of equal ones the first."""
    kept = np.zeros(len(scores), np.bool_)
    there = np.flatnonzero((scores > 0) & (scores >= floor))
    kept[best(scores[there], there, k)[1]] = True
    return kept
