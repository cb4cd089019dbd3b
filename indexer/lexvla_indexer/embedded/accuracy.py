"""What speed costs: the error of 8-bit impacts and the recall of inverted lists, over a sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from lexvla.encoding import Encoding
from lexvla.errors import OptionalDependencyError
from lexvla_indexer.embedded.reader import Snapshot
from lexvla_indexer.legs import Leg

__all__ = ["accuracy"]

SAMPLED_ROWS = 1000
SAMPLED_QUERIES = 20
DEPTH = 10


def accuracy(snapshot: Snapshot) -> dict[str, Any]:
    """Measure what searches use against the exact rows.

    Rows are taken at even distances from each segment, 1,000 in all, and 20 of them are queries.

    Returns:
        ``quantization``, and in it for each sparse leg ``bits``; ``rows``, how many were sampled;
        ``mean_error`` and ``max_error`` of a weight; and ``overlap@10``, the mean share of the 10
        best documents by exact scores that are among the 10 best by integers alone.

        ``dense_search``, if there is a dense leg: ``listed_rows``, how many rows are searched by
        inverted lists and not by a scan; ``lists``, how many there are in all segments, and
        ``nprobe``, how many of them a search reads at the least; and ``recall@10`` of such
        searches, a scan counted as 1, or ``None`` where faiss is missing.
    """
    legs: list[Leg] = [leg for leg in ("lexical", "codes") if leg in snapshot.state.widths]
    facts: dict[str, Any] = {"quantization": {leg: _of_leg(snapshot, leg) for leg in legs}}
    if "dense" in snapshot.state.widths:
        facts["dense_search"] = _of_dense(snapshot)
    return facts


def _of_dense(snapshot: Snapshot) -> dict[str, Any]:
    listed, lists, nprobe, missed = 0, 0, 0, 0.0
    recall: float | None = 1.0
    for segment in snapshot.segments.values():
        if segment.dense is None or segment.dense.lists is None:
            continue
        listed += segment.count
        lists += segment.dense.lists.lists
        nprobe += min(segment.dense.lists.nprobe, segment.dense.lists.lists)
        try:
            missed += (1 - segment.dense.recall(DEPTH, SAMPLED_QUERIES)) * segment.count
        except OptionalDependencyError:
            recall = None
    if listed and recall is not None:
        recall = 1 - missed / sum(entry.rows for entry in snapshot.state.segments.values())
    return {"listed_rows": listed, "lists": lists, "nprobe": nprobe, f"recall@{DEPTH}": recall}


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
        overlaps += _overlaps(snapshot, segment.encoding(asked), leg)
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


def _overlaps(snapshot: Snapshot, queries: Encoding, leg: Leg) -> list[float]:
    exact, found = (
        snapshot.search(queries, DEPTH, leg, snapshot.live, exact) for exact in (True, False)
    )
    return [
        len({*a.ids} & {*b.ids}) / len(a.ids) if a.ids else 1.0
        for a, b in zip(exact, found, strict=True)
    ]
