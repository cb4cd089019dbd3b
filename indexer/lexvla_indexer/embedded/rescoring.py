"""Exact answers from quantised postings: find by integers, score again by the float rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import sparse

from lexvla.errors import IndexCorruptError
from lexvla_indexer.embedded.postings import (
    LARGEST_SUM,
    LARGEST_WEIGHT,
    Postings,
    best,
    kernels,
)
from lexvla_indexer.embedded.stored_rows import Rows, StoredRows
from lexvla_indexer.impacts import ImpactQuantizer

__all__ = ["MANY", "exact_top", "integer_scale", "integer_scores", "integer_top", "row_scores"]

# If more than this share of the rows is near the best, all are scored: reading them in order is
# faster than picking so many.
SHARE = 0.25
MANY = 32  # rows: scoring fewer takes less time than finding out which need not be
_CHUNK = 8192  # rows that numpy scores at a time


def exact_top(
    query: sparse.csr_array,
    forward: sparse.csr_array | StoredRows,
    quantizer: ImpactQuantizer,
    postings: Postings,
    k: int,
    allowed: np.ndarray | None = None,
    threads: int = 1,
    floor: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and numbers of the k best rows above 0, as all rows' float scores give them.

    Scores are float64: products of the float32 weights, added in column order; best first, of
    equal ones the first row. Proof that no row is missed: a quantised score is off by no more than
    a bound B. The k best by integers have at least the k-th best integer score less B, so each of
    the true k best has at least that, and an integer score of no less than the k-th best less 2B.
    Of those, the k best by integers are scored first. None of the true k best scores less than the
    least of them, so a row whose integer score is more than B below that least score is left out.

    ``forward`` is (rows, width) float32 above 0 with sorted columns, and ``query`` one such row.
    The quantiser was fitted to ``forward``, and the postings built from what it made of that.
    ``allowed``, (rows) bool, says which rows may be found. ``threads`` is for `Postings.retrieve`.
    Rows that score less than ``floor``, as k rows elsewhere do not, may be left out.
    """
    if query.shape != (1, postings.width) or forward.shape != (postings.rows, postings.width):
        shapes = f"{query.shape} and {forward.shape}"
        raise ValueError(f"{shapes} do not fit {postings.rows} rows of {postings.width} terms")
    integers, scale, bound = _integers(query, quantizer)
    margin = min(math.ceil(2 * bound * scale / quantizer.step) + 1, LARGEST_SUM)
    least = max(math.floor((floor - bound) * scale / quantizer.step), 0)
    scores, rows = postings.retrieve(query.indices, integers, k, margin, allowed, threads, least)
    # A row that shares only dropped words with the query may be among the best.
    may_miss = quantizer.drop_zero and (
        len(scores) < k or int(np.partition(scores, -k)[-k]) <= margin
    )
    if may_miss or len(rows) > SHARE * postings.rows:
        rows = np.arange(postings.rows) if allowed is None else np.flatnonzero(allowed)
    elif len(rows) > k + MANY:
        exact, highest = np.zeros(len(rows)), np.sort(np.argpartition(scores, -k)[-k:])
        exact[highest] = row_scores(forward, rows[highest], query)
        others = scores * (quantizer.step / scale) >= exact[highest].min() - bound
        others[highest] = False
        exact[others] = row_scores(forward, rows[others], query)
        return _best_found(exact, rows, k)
    return _best_found(row_scores(forward, rows, query), rows, k)


def _best_found(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = scores > 0
    return best(scores[found], rows[found], k)


def integer_top(
    query: sparse.csr_array,
    quantizer: ImpactQuantizer,
    postings: Postings,
    k: int,
    allowed: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 scores and numbers of the k best rows above 0 by the integers alone.

    A score is off the exact one by no more than `ImpactQuantizer.bound`, and what rounding the
    query's weights to 32,767 steps adds to that.
    """
    integers, scale, _ = _integers(query, quantizer)
    scores, rows = postings.top(query.indices, integers, k, allowed, threads)
    return scores * (quantizer.step / scale), rows


def integer_scores(
    query: sparse.csr_array,
    quantizer: ImpactQuantizer,
    postings: Postings,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Return the (rows) float64 scores of all rows by the integers, and how far one can be off.

    Rows that may not be found score 0.

    Args:
        query: As for `exact_top`, like all the others.
        quantizer: As for `exact_top`.
        postings: As for `exact_top`.
        allowed: As for `exact_top`.
    """
    integers, scale, bound = _integers(query, quantizer)
    found, rows = postings.retrieve(query.indices, integers, 1, LARGEST_SUM, allowed)
    scores = np.zeros(postings.rows)
    scores[rows] = found * (quantizer.step / scale)
    return scores, bound


def _integers(
    query: sparse.csr_array, quantizer: ImpactQuantizer
) -> tuple[np.ndarray, float, float]:
    """Return the query's weights as integers, their scale, and the scores' greatest error.

    The integers are as great as the postings take, so that nearly all of the error is that of the
    postings. None is 0: an integer score is 0 only where documents' words were dropped.
    """
    bound = quantizer.bound(query)
    if not query.nnz:
        return np.empty(0, np.int32), 1.0, 0.0
    weights = query.data.astype(np.float64)
    scale = float(integer_scale(len(weights), weights.sum(), weights.max()))
    integers = np.maximum(np.rint(weights * scale), 1)
    bound += quantizer.top * float(np.abs(weights - integers / scale).sum())
    return integers.astype(np.int32), scale, bound * (1 + 1e-9)


def integer_scale(terms: Any, total: Any, greatest: Any) -> Any:
    """Return the integer of a query weight of 1, as great as the postings take.

    Given are a query's number of terms, what their weights add up to, and the greatest of these;
    or an array of each, for several queries.
    """
    return np.minimum((LARGEST_SUM // 255 - terms - 1) / total, LARGEST_WEIGHT / greatest)


def row_scores(
    forward: sparse.csr_array | StoredRows, rows: np.ndarray, query: sparse.csr_array
) -> np.ndarray:
    """Return the (rows) float64 scores of some rows by their floats; see `exact_top`."""
    dense = np.zeros(query.shape[1])
    dense[query.indices] = query.data
    scores = np.empty(len(rows))
    if isinstance(forward, StoredRows) and (loops := kernels(forward.nnz)) is not None:
        if not forward.score(loops, rows, dense, scores):
            raise IndexCorruptError("a stored row is damaged")
        return scores
    if isinstance(forward, StoredRows):
        forward, rows = forward.near(rows)
    for first in range(0, len(rows), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        scores[chunk] = _row_scores_by_numpy(forward, rows[chunk], dense)
    return scores


def _row_scores_by_numpy(
    forward: sparse.csr_array | Rows, rows: np.ndarray, dense: np.ndarray
) -> np.ndarray:
    starts = forward.indptr[rows]
    lengths = forward.indptr[rows + 1] - starts
    try:
        owners = np.repeat(np.arange(len(rows)), lengths)
        places = np.arange(len(owners)) + (starts - np.cumsum(lengths) + lengths)[owners]
        products = forward.data[places] * dense[forward.indices[places]]
    except (IndexError, ValueError) as error:
        raise IndexCorruptError("a stored row is damaged") from error
    return np.bincount(owners, products, len(rows))  # adds in order
