"""Rows of small impacts, both ways to search them, and brute force to hold those against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import sparse

from lexvla_indexer.embedded.postings import kernels

NUMBA = pytest.param(
    "numba",
    marks=pytest.mark.skipif(
        not find_spec("numba"), reason="needs numba: pip install 'lexvla[fast]'"
    ),
)
WAYS = pytest.mark.parametrize("way", [NUMBA, "numpy"])


@contextmanager
def searching(way: str) -> Iterator[None]:
    """Search by compiled loops, or as where numba is missing."""
    if way == "numba":
        with mock.patch("lexvla_indexer.embedded.postings.COMPILED_FROM", 0):
            assert kernels(0) is not None
            yield
        return
    with (
        mock.patch("lexvla_indexer.embedded.postings.kernels", lambda *_: None),
        mock.patch("lexvla_indexer.embedded.rescoring.kernels", lambda *_: None),
        mock.patch("lexvla_indexer.embedded.stored_rows.kernels", lambda *_: None),
    ):
        yield


def random_impacts(
    rng: np.random.Generator, rows: int, width: int, words: int, levels: int
) -> sparse.csr_array:
    """Return uint8 rows of up to so many words; few levels make many scores equal."""
    owners = np.repeat(np.arange(rows), words)
    columns = rng.integers(0, width, rows * words)
    cells = np.unique(owners * width + columns)
    values = rng.integers(1, levels + 1, len(cells)).astype(np.uint8)
    starts = np.searchsorted(cells, np.arange(rows + 1) * width)
    return sparse.csr_array((values, cells % width, starts), shape=(rows, width))


def brute_force(
    stored: sparse.csr_array,
    terms: np.ndarray,
    weights: np.ndarray,
    k: int,
    allowed: np.ndarray | None = None,
) -> list[tuple[float, int]]:
    """Return score and row of the k best rows above 0, scores added in the order of the terms."""
    columns = stored.tocsc()
    kind = np.float64 if np.asarray(weights).dtype.kind == "f" else np.int64
    scores = np.zeros(stored.shape[0], kind)
    for term, weight in zip(terms, weights, strict=True):
        span = slice(*columns.indptr[[term, term + 1]])
        scores[columns.indices[span]] += columns.data[span].astype(kind) * kind(weight)
    if allowed is not None:
        scores[~allowed] = 0
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return [(score, row) for score, row in zip(scores[order], order, strict=True) if score > 0]


def pairs(answer: tuple[np.ndarray, np.ndarray]) -> list[tuple[float, int]]:
    scores, rows = answer
    assert rows.dtype == np.int64
    return list(zip(scores.tolist(), rows.tolist(), strict=True))


MASKS = st.sampled_from(["all", "none", "half", "no mask"])


def mask(name: str, rows: int, rng: np.random.Generator) -> np.ndarray | None:
    if name == "no mask":
        return None
    return rng.random(rows) < {"all": 2, "none": 0, "half": 0.5}[name]
