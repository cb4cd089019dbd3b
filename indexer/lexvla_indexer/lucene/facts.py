"""What is told of an index: counts, sizes, versions, and what 8-bit impacts change."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from lexvla.vocabulary import Vocabulary
from lexvla_indexer.impacts import ImpactQuantizer
from lexvla_indexer.lucene.fields import FIELD_OF, unpack
from lexvla_indexer.lucene.jvm import java_class
from lexvla_indexer.lucene.reader import Snapshot
from lexvla_indexer.lucene.state import FORMAT_VERSION, LegState, State
from lexvla_indexer.lucene.store import Store

__all__ = ["facts"]

SAMPLED_ROWS = 1000
SAMPLED_QUERIES = 20
DEPTH = 10


def facts(
    snapshot: Snapshot,
    store: Store,
    vocabulary: Vocabulary,
    quantizer: ImpactQuantizer | None = None,
) -> dict[str, Any]:
    """Describe a commit.

    Args:
        snapshot: The commit.
        store: The directory.
        vocabulary: The terms of the lexical columns.
        quantizer: How the words' weights became integers in an index of Anserini, if known.

    Returns:
        The facts; in ``quantization``, for each leg with weights: ``bits``; ``scale``, the
        integer of a weight of 1; ``top``, the weight that the greatest integer stands for. Of an
        index of ours also: ``clipped``, how many weights were above it;
        ``mean_error`` and ``max_error`` of a weight, over all that were ever committed; ``rows``,
        how many were sampled; and ``overlap@10``, the mean share of the 10 best of these by exact
        scores that are among the 10 best by integers, with some of them as queries.
    """
    state = snapshot.state
    widths = {"lexical": len(vocabulary)} if state is None else dict(state.widths)
    found: dict[str, Any] = {
        "engine": "lucene",
        "documents": snapshot.count,
        "segments": snapshot.segments,
        "deleted_rows": snapshot.rows - snapshot.count,
        "bytes": store.size(),
        "mean_active_words": snapshot.mean_words(),  # of deleted rows too
        "legs": widths,
        "searched_legs": [leg for leg in widths if leg in FIELD_OF],
    }
    if state is not None:
        found["quantization"] = _quantization(snapshot, state)
    elif quantizer is not None:
        found["quantization"] = {"lexical": _scale(quantizer)}
    return found | {
        "vocabulary_size": len(vocabulary),
        "vocabulary_sha256": vocabulary.sha256,
        "model": state.model if state else None,
        "commit": snapshot.generation,
        "format_version": FORMAT_VERSION if state else None,
        "writer_version": state.writer_version if state else "another program",
        "lucene_version": str(java_class("org.apache.lucene.util.Version").LATEST.toString()),
    }


def _quantization(snapshot: Snapshot, state: State) -> dict[str, Any]:
    live = snapshot.live(_spread(snapshot.rows, SAMPLED_ROWS))
    if not live:
        return {}
    sample = unpack([snapshot.vectors(number) for number in live], state.widths)
    rows = {"lexical": sample.lexical, "codes": sample.codes}
    return {leg: _accuracy(kept, rows[leg]) for leg, kept in state.legs.items()}


def _accuracy(leg: LegState, rows: sparse.csr_array) -> dict[str, Any]:
    return {
        **_scale(leg.quantizer),
        "clipped": leg.clipped,
        "mean_error": leg.total_error / max(leg.weights, 1),
        "max_error": leg.max_error,
        "rows": rows.shape[0],
        f"overlap@{DEPTH}": _overlap(leg.quantizer, rows),
    }


def _scale(quantizer: ImpactQuantizer) -> dict[str, Any]:
    return {"bits": quantizer.bits, "scale": quantizer.scale, "top": quantizer.top}


def _overlap(quantizer: ImpactQuantizer, rows: sparse.csr_array) -> float:
    asked = _spread(rows.shape[0], SAMPLED_QUERIES)
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


def _spread(rows: int, count: int) -> np.ndarray:
    """Return up to so many row numbers at even distances."""
    if rows <= count:
        return np.arange(rows)
    return np.linspace(0, rows - 1, count).astype(np.int64)
