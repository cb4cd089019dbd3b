"""Which values count as numbers in queries and fusions."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np

__all__ = ["is_finite"]


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number, plain or of numpy; booleans are none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond float64
        return False
