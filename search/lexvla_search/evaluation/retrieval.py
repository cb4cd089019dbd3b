"""Measures over scores, ranks and gains, as arrays with a row for each query.

Scores and relevance are (queries, items). An item that is not stored in a sparse matrix of scores,
or whose score is ``-inf`` or ``nan`` in a dense one, was not retrieved. It counts as not found,
whatever k, so an unanswered query counts 0 and stays in the mean. Ties count against: an item ranks
behind all others with its score, so that a constant score finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from scipy import sparse

__all__ = [
    "dcg",
    "ndcg_at_k",
    "precision_at_k",
    "ranks",
    "recall_at_k",
    "recall_curve_of",
    "within",
]

Scores: TypeAlias = np.ndarray | sparse.csr_array


def ranks(scores: Scores, relevant_index: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the rank of each query's one relevant item, from 1; ``inf`` if not retrieved.

    Example:
        >>> ranks(np.array([[0.5, 0.9, 0.5]]), [0])
        array([3.])
    """
    matrix = _dense(scores)
    own_at = np.asarray(relevant_index, dtype=int)
    if own_at.shape != (matrix.shape[0],):
        raise ValueError(f"{len(own_at)} relevant items for {matrix.shape[0]} queries")
    if len(own_at) and not (own_at.min() >= 0 and own_at.max() < matrix.shape[1]):
        raise ValueError(f"a relevant item lies outside the {matrix.shape[1]} items")
    own = matrix[np.arange(len(own_at)), own_at][:, None]
    places = (matrix >= own).sum(axis=1)  # counts the item itself, so from 1
    return np.where(np.isneginf(own[:, 0]), np.inf, places)


def within(places: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Return, for each k, the share of ranks up to k."""
    return {k: float(np.mean(places <= k)) for k in ks}


def recall_at_k(
    scores: Scores, relevant_index: Sequence[int], ks: Sequence[int]
) -> dict[int, float]:
    """Return, for each k, the share of queries whose one relevant item is among the first k.

    Example:
        >>> recall_at_k(np.array([[0.9, 0.1], [0.8, 0.2]]), [0, 1], [1, 2])
        {1: 0.5, 2: 1.0}
    """
    places = ranks(scores, relevant_index)
    if not len(places):
        raise ValueError("no queries to measure")
    return within(places, ks)


def recall_curve_of(gains: np.ndarray, relevant: int) -> np.ndarray:
    """Return recall at each depth: (..., k), of the (..., k) relevance at each rank.

    Relevance above 0 is relevant; `relevant` counts all relevant items, found or not.
    """
    return np.cumsum(gains > 0, axis=-1) / relevant


def dcg(gains: np.ndarray) -> np.ndarray:
    """Return the discounted cumulative gain of ranked items: (...,) of (..., k) gains.

    References:
        Järvelin, Kekäläinen: Cumulated Gain-Based Evaluation of IR Techniques. TOIS 2002.
    """
    return gains @ (1 / np.log2(np.arange(2, gains.shape[-1] + 2)))


def precision_at_k(scores: Scores, relevant: np.ndarray | sparse.csr_array, k: int) -> float:
    """Return the mean share of relevant items among the first k, always out of k.

    Each row of `relevant` must have at least one relevant item.
    """
    return float(np.mean(_gains(scores, _truth(relevant), k).sum(axis=1) / k))


def ndcg_at_k(scores: Scores, relevant: np.ndarray | sparse.csr_array, k: int) -> float:
    """Return the mean nDCG of the first k with binary relevance; see `precision_at_k`."""
    truth = _truth(relevant)
    ideal = np.sort(truth, axis=1)[:, ::-1][:, :k].astype(float)
    return float(np.mean(dcg(_gains(scores, truth, k)) / dcg(ideal)))


def _gains(scores: Scores, truth: np.ndarray, k: int) -> np.ndarray:
    """Return (queries, first k): 1 where the item at a rank is relevant."""
    matrix = _dense(scores)
    if matrix.shape != truth.shape:
        raise ValueError(f"scores have the shape {matrix.shape}, relevance {truth.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not truth.any(axis=1).all() or not len(truth):
        raise ValueError("each query must have a relevant item, and there must be a query")
    order = np.lexsort((truth, -matrix), axis=1)[:, :k]  # among ties, relevant ones last
    found = np.take_along_axis(truth, order, axis=1)
    retrieved = ~np.isneginf(np.take_along_axis(matrix, order, axis=1))
    return (found & retrieved).astype(float)


def _truth(relevant: np.ndarray | sparse.csr_array) -> np.ndarray:
    return sparse.coo_array(relevant).toarray().astype(bool)


def _dense(scores: Scores) -> np.ndarray:
    if not sparse.issparse(scores):
        matrix = np.array(scores, dtype=float)
        matrix[np.isnan(matrix)] = -np.inf
        return matrix
    stored = sparse.coo_array(scores)
    matrix = np.full(stored.shape, -np.inf)
    matrix[stored.row, stored.col] = stored.data
    return matrix
