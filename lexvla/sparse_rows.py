"""Sparse rows of words and codes: the rules of all runtimes, and what numpy makes of logits."""

from __future__ import annotations

import numpy as np
from scipy import sparse

__all__ = [
    "cut_of",
    "elu1p",
    "lexical_vector",
    "most_words",
    "sparsify",
    "top_codes",
    "unit_rows",
]

_LEAST = 1e-12  # length below which a vector is not scaled, as in torch's normalize


def elu1p(logits: np.ndarray) -> np.ndarray:
    """Return ``x + 1`` where x >= 0, else ``exp(x)`` (LexVLA eq. 2). Any shape."""
    return np.maximum(logits, 0) + np.exp(np.minimum(logits, 0))


def lexical_vector(logits: np.ndarray) -> np.ndarray:
    """Return unit vectors (n, V) of non-negative word weights from logits (LexVLA eqs. 2, 4)."""
    vectors = elu1p(logits)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return vectors / np.maximum(lengths, _LEAST)[:, None]


def sparsify(
    vectors: np.ndarray,
    rule: str,
    kept_words: int,
    threshold: float,
    max_active_dims: int | None = None,
) -> sparse.csr_array:
    """Keep the heaviest words of (n, V) unit vectors, as float32 CSR of unit rows.

    The rules are those of `cut_of`.
    """
    least, most = cut_of(rule, kept_words, threshold, vectors.shape[1], max_active_dims)
    rows, columns = (vectors > np.float32(least)).nonzero()
    return unit_rows(rows, columns, vectors[rows, columns], vectors.shape, most)


def cut_of(
    rule: str, kept_words: int, threshold: float, size: int, max_active_dims: int | None
) -> tuple[float, int]:
    """Return the weight that kept words exceed, and how many of them an item may have.

    Args:
        rule: ``mean`` keeps weights above ``1/sqrt(V)``, the root mean square of a unit vector
            (LexVLA section 4.4); ``top_k`` the largest; ``threshold`` those above a number.
        kept_words: Number of words for ``top_k``.
        threshold: Smallest weight for ``threshold``.
        size: Number V of words.
        max_active_dims: Largest number of words for all rules. Of equal weights at the limit, the
            words that come first are kept.
    """
    if rule not in ("mean", "top_k", "threshold"):
        raise ValueError(f"unknown sparsification {rule!r}: use mean, top_k or threshold")
    least = {"mean": size**-0.5, "top_k": 0.0, "threshold": max(threshold, 0.0)}[rule]
    most = most_words(max_active_dims, size)
    return least, min(kept_words, most) if rule == "top_k" else most


def most_words(max_active_dims: int | None, own: int) -> int:
    """Return how many words an item may have: the model's ``own`` number, or fewer if asked."""
    if max_active_dims is None:
        return own
    if max_active_dims < 1:
        raise ValueError(f"max_active_dims must be at least 1, not {max_active_dims}")
    return min(max_active_dims, own)


def unit_rows(
    rows: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    shape: tuple[int, ...],
    most: int,
) -> sparse.csr_array:
    """Return float32 CSR of unit rows, from the heaviest of entries that `_heaviest` takes."""
    made = _heaviest(rows, columns, weights, shape, most)
    owners = np.repeat(np.arange(shape[0]), np.diff(made.indptr))
    squares = np.bincount(owners, made.data.astype(np.float64) ** 2, shape[0])
    made.data = (made.data / np.maximum(np.sqrt(squares), _LEAST)[owners]).astype(np.float32)
    return made


def top_codes(assignment: np.ndarray, count: int) -> sparse.csr_array:
    """Keep the ``count`` most probable codes of each row of (n, K) probabilities.

    Returns:
        (n, K) float32 CSR with sorted columns; rows sum to at most 1. Of equal codes at the limit,
        those that come first are kept.
    """
    size = assignment.shape[1]
    least = np.partition(assignment, size - min(count, size), axis=1)[:, [size - min(count, size)]]
    # A probability may underflow to 0.
    rows, columns = ((assignment >= least) & (assignment > 0)).nonzero()
    return _heaviest(rows, columns, assignment[rows, columns], assignment.shape, count)


def _heaviest(
    rows: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    shape: tuple[int, ...],
    most: int,
) -> sparse.csr_array:
    """Return CSR of the ``most`` heaviest entries of each row, of equal ones the first.

    Entries come row by row, with ascending columns.
    """
    counts = np.bincount(rows, minlength=shape[0])
    if counts.max(initial=0) > most:
        order = np.lexsort((-weights, rows))
        firsts = np.repeat(counts.cumsum() - counts, counts)
        kept = np.sort(order[np.arange(len(rows)) - firsts < most])
        columns, weights, counts = columns[kept], weights[kept], np.minimum(counts, most)
    starts = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    return sparse.csr_array((weights, columns.astype(np.int32), starts), shape=shape)
