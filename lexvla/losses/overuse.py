"""The overuse penalty: words that are active everywhere are shortcuts."""

from __future__ import annotations

from torch import Tensor

__all__ = ["overuse_penalty"]


def overuse_penalty(vectors: Tensor) -> Tensor:
    """Return ``V * sum_j sbar_j^3 / sum_j sbar_j`` of a batch (LexVLA eq. 7).

    sbar is the mean vector of the batch. The penalty is 1 for uniform unit vectors and grows with
    words that most of the batch uses.

    Args:
        vectors: (N, V), non-negative, unit rows.
    """
    mean = vectors.float().mean(dim=0)
    return len(mean) * mean.pow(3).sum() / mean.sum()
