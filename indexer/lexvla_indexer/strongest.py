"""A document's strongest words: those that are shown, banned and required."""

from __future__ import annotations

import numpy as np

__all__ = ["SHOWN_WORDS", "strongest"]

SHOWN_WORDS = 16


def strongest(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the columns of the 16 greatest weights, greatest first; equal weights by column.

    Columns are (n) int, sorted; weights are (n) float.
    """
    return columns[np.argsort(-weights, kind="stable")[:SHOWN_WORDS]]
