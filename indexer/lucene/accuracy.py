"""What 8-bit impacts change: the error of all weights, and of answers over a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from indexer.impacts import ImpactQuantizer
from indexer.lucene.state import LegState

__all__ = ["SAMPLED_ROWS", "accuracy", "spread"]

SAMPLED_ROWS = 1000
SAMPLED_QUERIES = 20
DEPTH = 10


def accuracy(leg: LegState, rows: sparse.csr_array) -> dict[str, Any]:
    """Measure the impacts of one leg against the exact rows.

    Args:
        leg: How its weights became integers.
        rows: A sample of the exact rows; some of them are queries to the others.

    Returns:
        ``bits``; ``top``, the weight that the greatest integer stands for; ``clipped``, how many
        weights were above it; ``mean_error`` and ``max_error`` of a weight, over all that were
        ever committed; ``rows``, how many were sampled; and ``overlap@10``, the mean share of the
        10 best of these by exact scores that are among the 10 best by integers.
    """
    return {
        "bits": leg.quantizer.bits,
        "top": leg.quantizer.top,
        "clipped": leg.clipped,
        "mean_error": leg.total_error / max(leg.weights, 1),
        "max_error": leg.max_error,
        "rows": rows.shape[0],
        f"overlap@{DEPTH}": _overlap(leg.quantizer, rows),
    }


def _overlap(quantizer: ImpactQuantizer, rows: sparse.csr_array) -> float:
    asked = spread(rows.shape[0], SAMPLED_QUERIES)
    impacts = quantizer.quantize(rows).astype(np.float64)
    exact = (rows.astype(np.float64) @ rows[asked].astype(np.float64).T).toarray()
    found = (impacts @ impacts[asked].T).toarray()
    shares = []
    for column in range(len(asked)):
        best = _best(exact[:, column])
        if best:
            shares.append(len(best & _best(found[:, column])) / len(best))
    return float(np.mean(shares)) if shares else 1.0


def _best(scores: np.ndarray) -> set[int]:
    order = np.argsort(-scores, kind="stable")[:DEPTH]
    return {int(row) for row in order if scores[row] > 0}


def spread(rows: int, count: int) -> np.ndarray:
    """Return up to so many row numbers at even distances."""
    if rows <= count:
        return np.arange(rows)
    return np.linspace(0, rows - 1, count).astype(np.int64)
