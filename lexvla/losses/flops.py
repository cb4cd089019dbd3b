"""The FLOPs penalty: the expected cost of comparing two items in an inverted index."""

from __future__ import annotations

from torch import Tensor

from lexvla.losses.precision import at_least_float32

__all__ = ["flops_penalty"]


def flops_penalty(vectors: Tensor) -> Tensor:
    """Return ``sum_j sbar_j^2`` of a batch (LexVLA eq. 6).

    sbar is the mean vector of the batch. The penalty is 1 for uniform unit vectors, and at most
    `overuse_penalty`, which also weighs each word by its use.

    Args:
        vectors: (N, V) non-negative unit vectors of the global batch.

    References:
        Paria et al. 2020, "Minimizing FLOPs to Learn Efficient Sparse Representations",
        arXiv 2004.05665; Li et al. 2024 (LexVLA), arXiv 2407.17827.
    """
    return at_least_float32(vectors).mean(dim=0).pow(2).sum()
