"""Clustered rows, lists of them, and a brute-force search to hold the dense leg against."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from scipy import sparse

from lexvla_indexer.embedded.dense_lists import DenseLists, write_lists

HEAD, OF, INDEX = FILES = ("dense.list.head.npy", "dense.list.of.npy", "dense.list.faiss")


def score(row: np.ndarray, vector: np.ndarray) -> float:
    return float((row.astype(float) * vector).sum())


def brute_force(rows, vector, k, allowed=None) -> list[tuple[float, int]]:
    chosen = range(len(rows)) if allowed is None else np.flatnonzero(allowed).tolist()
    found = [(score(rows[row], vector), row) for row in chosen]
    return sorted(((s, row) for s, row in found if s > 0), key=lambda hit: (-hit[0], hit[1]))[:k]


def pairs(answer) -> list[tuple[float, int]]:
    scores, rows = answer
    assert (scores.dtype, rows.dtype) == (np.float64, np.int64)
    return list(zip(scores.tolist(), rows.tolist(), strict=True))


def codes_of(*rows: dict[int, float], width: int = 0) -> sparse.csr_array:
    width = width or 1 + max(max(row, default=0) for row in rows)
    matrix = sparse.lil_array((len(rows), width), dtype=np.float32)
    for i, row in enumerate(rows):
        for code, weight in row.items():
            matrix[i, code] = weight
    return matrix.tocsr()


def one_code(lists) -> sparse.csr_array:
    return codes_of(*({int(code): 1.0} for code in lists))


def listed(folder: Path, rows: np.ndarray, codes: sparse.csr_array) -> DenseLists:
    """Write and open lists."""
    pytest.importorskip("faiss", reason="needs faiss: pip install 'lexvla[fast]'")
    folder.mkdir(exist_ok=True)
    write_lists(folder, rows, codes)
    return DenseLists.open(folder, *rows.shape)


def clustered(seed: int, count: int = 300, lists: int = 12) -> tuple[np.ndarray, sparse.csr_array]:
    """Return rows in eighths around centres, many of them equal, and the codes of their centres."""
    rng = np.random.default_rng(seed)
    own = (lists * rng.random(count) ** 2).astype(int)  # some far larger than others
    rows = rng.integers(-8, 9, (lists, 5))[own] * 4 + rng.integers(-2, 3, (count, 5))
    return (rows / 8).astype(np.float32), one_code(own)


def as_asked():
    """Read no more lists than a search asks for, where k is small."""
    return mock.patch("lexvla_indexer.embedded.dense._ROWS_PER_HIT", 1)
