"""The overuse penalty, against words that are active everywhere."""

from __future__ import annotations

from torch import Tensor

from lexvla.losses.precision import at_least_float32

__all__ = ["overuse_penalty"]


def overuse_penalty(vectors: Tensor) -> Tensor:
    """Return ``V * sum_j sbar_j^3 / sum_j sbar_j`` of a batch (LexVLA eq. 7).

    sbar is the mean vector of the batch. The penalty is 1 for uniform unit vectors and grows with
    words that most of the batch uses.

    Args:
        vectors: (N, V) non-negative unit vectors of the global batch.
    """
    mean = at_least_float32(vectors).mean(dim=0)
    return len(mean) * mean.pow(3).sum() / mean.sum()
