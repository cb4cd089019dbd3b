"""What 8-bit impacts change: the error of weights, and of answers, over a sample of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.base import Leg
from indexer.embedded.reader import Snapshot
from lexvla.encoding import Encoding

__all__ = ["accuracy"]

SAMPLED_ROWS = 1000
SAMPLED_QUERIES = 20
DEPTH = 10


def accuracy(snapshot: Snapshot) -> dict[str, Any]:
    """Measure the postings of each sparse leg against the exact rows.

    Rows are taken at even distances from each segment, 1,000 in all, and 20 of them are queries.

    Returns:
        ``quantization``, and in it for each leg ``bits``; ``rows``, how many were sampled;
        ``mean_error`` and ``max_error`` of a weight; and ``overlap@10``, the mean share of the 10
        best documents by exact scores that are among the 10 best by integers alone.
    """
    legs: list[Leg] = [leg for leg in ("lexical", "codes") if leg in snapshot.state.widths]
    return {"quantization": {leg: _of_leg(snapshot, leg) for leg in legs}}


def _of_leg(snapshot: Snapshot, leg: Leg) -> dict[str, Any]:
    documents = max(snapshot.count(), 1)
    sampled, total, weights, worst, bits = 0, 0.0, 0, 0.0, set()
    overlaps: list[float] = []
    for number, segment in snapshot.segments.items():
        live = snapshot.live[number]
        rows = np.arange(segment.count) if live is None else np.flatnonzero(live)
        share = len(rows) / documents
        chosen = _spread(rows, int(np.ceil(SAMPLED_ROWS * share)))
        stored, _ = segment.sparse[leg].take(chosen)
        quantizer = segment.sparse[leg].quantizer
        error = quantizer.error(stored)
        bits.add(quantizer.bits)
        sampled += len(chosen)
        total += error["mean"] * stored.nnz
        weights += stored.nnz
        worst = max(worst, error["max"])
        asked = _spread(rows, int(np.ceil(SAMPLED_QUERIES * share)))
        overlaps += [_overlap(snapshot, query, leg) for query in segment.encoding(asked)]
    return {
        "bits": max(bits, default=8),
        "rows": sampled,
        "mean_error": total / max(weights, 1),
        "max_error": worst,
        f"overlap@{DEPTH}": float(np.mean(overlaps)) if overlaps else 1.0,
    }


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _overlap(snapshot: Snapshot, query: Encoding, leg: Leg) -> float:
    exact = snapshot.top(query, DEPTH, leg, snapshot.live, exact=True).ids
    found = snapshot.top(query, DEPTH, leg, snapshot.live, exact=False).ids
    return len({*exact} & {*found}) / len(exact) if exact else 1.0
