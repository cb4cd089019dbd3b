"""What speed costs: how many of the best documents an approximate search finds, over a sample."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

__all__ = ["DEPTH", "SAMPLED_QUERIES", "SAMPLED_ROWS", "overlap", "spread"]

SAMPLED_ROWS = 1000
SAMPLED_QUERIES = 20  # of these rows
DEPTH = 10


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return up to ``count`` of the rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def overlap(best: Iterable[Collection[object]], found: Iterable[Collection[object]]) -> float:
    """Return the mean share of each query's best documents that were found.

    Queries without a best document do not count; the result is 1 if there are no others.
    """
    pairs = zip(best, found, strict=True)
    shares = [len({*right} & {*answer}) / len(right) for right, answer in pairs if right]
    return float(np.mean(shares)) if shares else 1.0
