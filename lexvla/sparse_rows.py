"""Sparse rows of words and codes, with numpy: what `lexvla.lexical_head` does with torch."""

from __future__ import annotations

import numpy as np
from scipy import sparse

__all__ = ["elu1p", "lexical_vector", "sparsify", "top_codes"]

_LEAST = 1e-12  # length below which a vector is not scaled, as in torch's normalize


def elu1p(logits: np.ndarray) -> np.ndarray:
    """Return ``x + 1`` where x >= 0, else ``exp(x)`` (LexVLA eq. 2). Any shape."""
    return np.maximum(logits, 0) + np.exp(np.minimum(logits, 0))


def lexical_vector(logits: np.ndarray) -> np.ndarray:
    """Return unit vectors (n, V) of non-negative word weights from logits (LexVLA eqs. 2, 4)."""
    return _unit(elu1p(logits))


def _unit(vectors: np.ndarray) -> np.ndarray:
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

    The rules are those of `lexvla.lexical_head.sparsify`. Of equal weights at the limit, the words
    that come first are kept.
    """
    size = vectors.shape[1]
    if rule == "mean":
        keep = vectors > np.float32(size**-0.5)
    elif rule == "threshold":
        keep = vectors > max(threshold, 0.0)
    elif rule == "top_k":
        keep = vectors > 0
        max_active_dims = min(kept_words, size if max_active_dims is None else max_active_dims)
    else:
        raise ValueError(f"unknown sparsification {rule!r}: use mean, top_k or threshold")
    if max_active_dims is not None:
        for row in np.flatnonzero(np.count_nonzero(keep, axis=1) > max_active_dims):
            columns = np.flatnonzero(keep[row])
            order = np.argsort(-vectors[row, columns], kind="stable")
            keep[row, columns[order[max_active_dims:]]] = False
    rows, columns = keep.nonzero()
    starts = np.concatenate([[0], np.count_nonzero(keep, axis=1).cumsum()]).astype(np.int32)
    data = vectors[rows, columns]
    squares = np.bincount(rows, data.astype(np.float64) ** 2, len(vectors))
    data = (data / np.maximum(np.sqrt(squares), _LEAST)[rows]).astype(np.float32)
    return sparse.csr_array((data, columns.astype(np.int32), starts), shape=vectors.shape)


def top_codes(assignment: np.ndarray, count: int) -> sparse.csr_array:
    """Keep the ``count`` most probable codes of each row of (n, K) probabilities.

    Returns:
        (n, K) float32 CSR with sorted columns; rows sum to at most 1.
    """
    count = min(count, assignment.shape[1])
    columns = np.sort(np.argpartition(-assignment, count - 1, axis=1)[:, :count], axis=1)
    weights = np.take_along_axis(assignment, columns, axis=1)
    kept = weights > 0  # a probability may underflow to 0
    starts = np.concatenate([[0], kept.sum(axis=1).cumsum()]).astype(np.int32)
    return sparse.csr_array(
        (weights[kept], columns[kept].astype(np.int32), starts), shape=assignment.shape
    )
