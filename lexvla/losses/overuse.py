"""The overuse penalty: words that are active everywhere are shortcuts."""

from __future__ import annotations

from torch import Tensor

from lexvla.losses.precision import at_least_float32

__all__ = ["overuse_penalty"]


def overuse_penalty(vectors: Tensor) -> Tensor:
    """Return ``V * sum_j sbar_j^3 / sum_j sbar_j`` of a batch (LexVLA eq. 7).

    sbar is the mean vector of the batch. The penalty is 1 for uniform unit vectors and grows with
    words that most of the batch uses.

    Args:
        vectors: (N, V), non-negative, unit rows. N is the global batch: gather the rows of all
            processes first.
    """
    mean = at_least_float32(vectors).mean(dim=0)
    return len(mean) * mean.pow(3).sum() / mean.sum()
