"""The inner loop of dense bytes, compiled by numba for one width: see `kernels`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from lexvla_indexer.embedded.kernels import compiled

__all__ = ["products_of"]


@cache
def products_of(
    width: int,
) -> Callable[[np.ndarray, np.ndarray, float, float, np.ndarray], None]:
    """Return a loop over rows of a width, known to the compiler, which unrolls it.

    It writes ``base`` plus ``scale`` times the product of each int8 row with an int16 query, whose
    sums fit into int32, as float32.
    """

    def products(
        rows: np.ndarray, query: np.ndarray, base: float, scale: float, room: np.ndarray
    ) -> None:
        for i in range(len(rows)):
            row = rows[i]
            total = np.int32(0)
            for j in range(width):
                # In 32 bits: numba would widen the sum to 64, and half as many fit a vector.
                total = np.int32(total + np.int32(row[j]) * np.int32(query[j]))
            room[i] = base + scale * total

    return compiled(products)
