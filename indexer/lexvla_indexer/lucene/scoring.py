"""Weights of queries as integers, and how far rounding changes scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import sparse

from lexvla.errors import UnsupportedError
from lexvla_indexer.impacts import ImpactQuantizer

__all__ = ["QueryWeights", "error_bound", "query_weights"]

# Lucene's scores are float32, which has all integers up to 2^24. With impacts of at most 255
# a sum is exact if the query's integers add up to no more than `LARGEST_SUM`.
LARGEST_SCORE = 2**24 - 1
LARGEST_SUM = LARGEST_SCORE // 255


class QueryWeights(NamedTuple):
    """A query's integers, and the integer, before rounding, of a weight of 1."""

    integers: np.ndarray
    scale: float


def query_weights(query: sparse.csr_array, longest: float | None = None) -> QueryWeights:
    """Return the weights of a query, one row, as integers from 1, as large as exact sums allow.

    ``longest`` is the greatest length of a document's impacts as a vector, if known. A query of
    over 32,896 words raises UnsupportedError.
    """
    if query.nnz > LARGEST_SUM // 2:
        rule = f"a query of a Lucene index has at most {LARGEST_SUM // 2:,} words"
        raise UnsupportedError(f"{rule}, not {query.nnz:,}")
    if not query.nnz:
        return QueryWeights(np.empty(0, np.int64), 1.0)
    weights = query.data.astype(np.float64)
    scale = (LARGEST_SUM - query.nnz) / float(weights.sum())
    if longest:
        # No product is greater than that of the two lengths, and rounding moves each weight by
        # less than 1: for long queries this allows greater integers than the sum does.
        room = LARGEST_SCORE * (1 - 1e-9) / longest - math.sqrt(query.nnz)
        scale = max(scale, room / float(np.linalg.norm(weights)))
    # A power of 2: weights such as 1, 0.5 and 0.25 become integers without rounding.
    scale = math.ldexp(1.0, math.frexp(scale)[1] - 1)
    return QueryWeights(np.maximum(np.rint(weights * scale), 1).astype(np.int64), scale)


def error_bound(
    query: sparse.csr_array, integers: QueryWeights, quantizer: ImpactQuantizer | None
) -> float:
    """Return the most that rounding to integers can change a document's score for a query.

    ``quantizer`` is the documents'; ``None`` if their weights were integers to begin with.
    """
    whole, scale = integers
    kept = sparse.csr_array((whole / scale, query.indices, query.indptr), shape=query.shape)
    rounding = float(np.abs(query.data - kept.data).sum())
    if quantizer is None:
        return rounding * 255
    highest = max(quantizer.highest, quantizer.top)
    return highest * rounding + (quantizer.bound(kept) if kept.nnz else 0.0)
